"""Linking for other machines with Debian's cross compilers: checked before the first trial, and kept by the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvm.s_tir.meta_schedule.builder import BuilderInput

from chameleon.errors import UsageError
from chameleon.measure import WarmBuilder
from chameleon.measure.link import Toolchain
from chameleon.measure.preflight import check_toolchain
from chameleon.measure.tiny import tiny_kernel
from chameleon.target import parse_target

pytestmark = pytest.mark.tvm
ARM = "aarch64-linux-gnu"
RISC_V = "riscv64-linux-gnu"


def compiler(triple: str) -> str:
    name = f"{triple}-g++"
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here (Debian's package: g++-{triple})")
    return name


@pytest.mark.parametrize("triple", [ARM, RISC_V])
def test_a_cross_compiler_that_links_for_the_target_passes(triple: str) -> None:
    check_toolchain(Toolchain(compiler(triple)), parse_target(f"llvm -mtriple={triple} -num-cores=4"))


@pytest.mark.parametrize(("triple", "wrong"), [(ARM, RISC_V), (RISC_V, ARM)])
def test_a_compiler_for_another_machine_is_refused(triple: str, wrong: str) -> None:
    with pytest.raises(UsageError, match="does not link for"):
        check_toolchain(Toolchain(compiler(wrong)), parse_target(f"llvm -mtriple={triple} -num-cores=4"))


def test_a_file_for_another_machine_is_noticed(tmp_path: Path) -> None:
    """A compiler that says that all is well and writes code for this machine."""
    fake = tmp_path / "aarch64-g++"
    fake.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {shutil.which("true")} "$2"\n')
    fake.chmod(0o755)
    with pytest.raises(UsageError, match="makes code for"):
        check_toolchain(Toolchain(str(fake)), parse_target(f"llvm -mtriple={RISC_V} -num-cores=4"))


@pytest.mark.parametrize(("triple", "machine"), [(ARM, 183), (RISC_V, 243)])
def test_candidates_are_linked_for_the_other_machine(triple: str, machine: int) -> None:
    """By the number of the machine in the header of an ELF file, of its specification."""
    target = parse_target(f"llvm -mtriple={triple} -num-cores=4")
    with WarmBuilder(export="so", toolchain=Toolchain(compiler(triple)), n_workers=1) as builder:
        (built,) = builder.build([BuilderInput(tiny_kernel(target), target)])
        assert built.error_msg is None
        header = Path(str(built.artifact_path)).read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == machine


def test_a_run_keeps_its_toolchain() -> None:
    for toolchain in (Toolchain(), Toolchain("aarch64-linux-gnu-g++", Path("/opt/root"))):
        assert Toolchain.from_json(toolchain.to_json()) == toolchain
    assert Toolchain.from_json({}) == Toolchain()
