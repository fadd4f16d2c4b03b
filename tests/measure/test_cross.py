"""Linking for other machines with Debian's cross compilers: checked before the first trial, and kept by the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from chameleon.errors import UsageError
from chameleon.measure.link import Toolchain
from chameleon.measure.preflight import check_toolchain
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


def test_a_run_keeps_its_toolchain() -> None:
    for toolchain in (Toolchain(), Toolchain("aarch64-linux-gnu-g++", Path("/opt/root"))):
        assert Toolchain.from_json(toolchain.to_json()) == toolchain
    assert Toolchain.from_json({}) == Toolchain()
