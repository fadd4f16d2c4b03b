"""Imports TVM's tensor intrinsics, all or those of one kind of hardware, without the wait.

`tvm.s_tir.tensor_intrin` parses some sixty kernels. For each line that it parses it asks Python where the line comes
from, and Python looks through all modules for that: 15 s of processor time, and a minute where torch is loaded. A
frame knows its module, so here the question is answered from the frame: 5 s.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INTRINSICS = "tvm.s_tir.tensor_intrin"


def import_intrinsics(*parts: str) -> None:
    """Import the parts of TVM's package of intrinsics, such as `x86` or `cuda`; all of them by default.

    Importing a part of a package imports the whole package first, and with it everything. So a bare module stands in
    its place meanwhile. A later import of the package finds the part that was imported here.
    """
    if INTRINSICS in sys.modules:
        return
    with frames_know_their_modules():
        if not parts:
            importlib.import_module(INTRINSICS)
            return
        import tvm.s_tir

        package = types.ModuleType(INTRINSICS)
        package.__path__ = [str(Path(tvm.s_tir.__file__).with_name("tensor_intrin"))]
        sys.modules[INTRINSICS] = package
        try:
            for part in parts:
                importlib.import_module(f"{INTRINSICS}.{part}")
        finally:
            del sys.modules[INTRINSICS]


@contextmanager
def frames_know_their_modules() -> Iterator[None]:
    """Inside the block `inspect.getmodule` takes the module of a frame from its globals."""
    usual = inspect.getmodule

    def getmodule(thing: Any, _filename: str | None = None) -> types.ModuleType | None:
        if inspect.isframe(thing):
            return sys.modules.get(thing.f_globals.get("__name__", ""))
        return usual(thing, _filename)

    inspect.getmodule = getmodule
    try:
        yield
    finally:
        inspect.getmodule = usual
