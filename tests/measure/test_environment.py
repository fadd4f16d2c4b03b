"""Builders and runners in a broken environment: no candidate is blamed, and the preflight says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder.local_builder import default_export

from chameleon.measure import WarmBuilder, WarmRunner
from chameleon.measure.builder import default_build
from chameleon.measure.inputs import RANGES_FILE, make_inputs, read_ranges
from chameleon.measure.link import Toolchain, find_compiler
from chameleon.measure.preflight import check_environment
from chameleon.target import detect_target, parse_target
from chameleon.workers.faults import EnvironmentFault
from tests.support import misbuild
from tuners.outcomes import failure_reason

pytestmark = pytest.mark.tvm


def build(builder: ms.Builder, mod: tvm.IRModule) -> ms.builder.BuilderResult:
    return builder.build([ms.builder.BuilderInput(mod, detect_target())])[0]


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make PATH a folder with broken tools of these names only."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\necho 'internal error: nothing works' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.parametrize(("names", "words"), [((), "no C++ compiler"), (("g++", "gcc", "ld"), "nothing works")])
def test_a_missing_or_broken_compiler_is_no_candidates_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], words: str
) -> None:
    tools(tmp_path / "bin", monkeypatch, *names)
    with WarmBuilder(n_workers=1) as builder, WarmRunner() as runner:
        message = str(build(builder, misbuild.doubling()).error_msg)
        assert failure_reason(message) == "environment"
        assert words in message
        with pytest.raises(EnvironmentFault, match="not even a tiny kernel can be built for llvm"):
            check_environment(detect_target(), builder, runner)


def test_tvms_own_builder_without_a_compiler_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = default_build(misbuild.doubling(), detect_target())
    tools(tmp_path / "bin", monkeypatch)
    with pytest.raises((FileNotFoundError, RuntimeError)) as error:  # through TVM's interface it loses its type
        default_export(built)
    message = f"LocalBuilder: An exception occurred\n{error.value}"  # what TVM makes of it
    assert failure_reason(message) == "environment", message


def test_code_for_another_architecture_is_no_candidates_fault() -> None:
    target = parse_target('{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}')
    with WarmBuilder(n_workers=1) as builder:
        (result,) = builder.build([ms.builder.BuilderInput(misbuild.doubling(), target)])
    assert failure_reason(str(result.error_msg)) == "environment"


def test_the_preflight_passes_on_a_whole_machine_and_leaves_nothing() -> None:
    with WarmBuilder(n_workers=1) as builder, WarmRunner() as runner:
        assert 0 < check_environment(detect_target(), builder, runner) < 1
        root = Path(str(build(builder, misbuild.doubling()).artifact_path)).parents[1]
        assert len([p for p in root.iterdir() if p.is_dir()]) == 1


def test_a_folder_that_cannot_be_written_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read_only(*_: object, **__: object) -> str:
        raise OSError(30, os.strerror(30), str(tmp_path))

    monkeypatch.setattr("chameleon.measure.builder.tempfile.mkdtemp", read_only)
    with pytest.raises(EnvironmentFault, match="Read-only file system"):
        WarmBuilder()


def test_the_compiler_that_a_variable_names_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(EnvironmentFault, match="/no/such/compiler"):
        find_compiler()


@pytest.mark.parametrize(
    ("toolchain", "words"),
    [
        (Toolchain("no-such-g++"), "no-such-g++"),
        (Toolchain(None, Path("/")), "needs --cc"),
        (Toolchain("sh", Path("/no/such/folder")), "no folder"),
    ],
)
def test_a_toolchain_is_checked_before_it_is_needed(toolchain: Toolchain, words: str) -> None:
    with pytest.raises(Exception, match=words):
        toolchain.check()


def test_an_embedding_is_timed_with_ids_of_its_table() -> None:
    mod = misbuild.embedding()
    with WarmBuilder(n_workers=1) as builder, WarmRunner(timeout_s=10.0) as runner:
        path = Path(str(build(builder, mod).artifact_path))
        args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
        (future,) = runner.run([ms.runner.RunnerInput(str(path), "cpu", args_info)])
        assert future.result().error_msg is None
        signature = (("int64", (64,)), ("float32", (50, 8)), ("float32", (64, 8)))
        ranges = read_ranges(path, signature)
        assert ranges == ((0, 49), None, None)
        ids = make_inputs(signature, ranges, tvm.cpu(), lambda _: None)[0].numpy()
        assert ids.min() >= 0
        assert 40 < ids.max() < 50
        path.with_name(RANGES_FILE).unlink()  # as if another builder had made it
        assert read_ranges(path, signature) == ((0, 1), None, None)
