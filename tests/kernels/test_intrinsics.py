"""All of TVM's intrinsics come in fast, and they are the ones that TVM would import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from chameleon.kernels.intrinsics import frames_know_their_modules

pytestmark = pytest.mark.tvm

IMPORTED = """
import sys
from chameleon.kernels.intrinsics import import_intrinsics
import tvm.s_tir
import_intrinsics("x86")
import_intrinsics("x86", "arm_cpu")  # a second call may ask for more
assert "tvm.s_tir.tensor_intrin" not in sys.modules
import_intrinsics()
for name in ("dot_16x4_vnni", "mma_sync_m16n8k8_f16f16f32", "dot_4x4_i8i8s32_neon"):
    print(tvm.s_tir.TensorIntrin.get(name, allow_missing=True) is not None)
"""


def test_parts_first_and_then_all() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout


def test_a_frame_has_the_module_that_python_finds_for_it() -> None:
    frames = [info.frame for info in inspect.stack()]
    usual = [inspect.getmodule(f) for f in frames], inspect.getmodule(Path)
    with frames_know_their_modules():
        found = [inspect.getmodule(f) for f in frames], inspect.getmodule(Path)
        assert all(ours is theirs for ours, theirs in zip(found[0], usual[0], strict=True) if theirs is not None)
        assert found[1] is usual[1]
    assert inspect.getmodule.__module__ == "inspect"
