"""Makes libraries of compiled kernels: with GNU ld where it will do, else with a C++ compiler.

A compiler or linker that is missing or broken is a fault of the environment; only here it is known for certain.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.support import cc

from chameleon.errors import UsageError
from chameleon.workers.faults import COMPILER_ADVICE, EnvironmentFault

OBJECTS = ".tar"
"""The extension of what is exported without a linker: the objects, which TVM links where it loads them."""


@dataclass(frozen=True)
class Toolchain:
    """Links libraries for another machine.

    Attributes:
        compiler: a C++ compiler that links for that machine, such as `aarch64-linux-gnu-g++`; None: this machine's.
        sysroot: the folder with that machine's headers and libraries; None: the compiler's own.
    """

    compiler: str | None = None
    sysroot: Path | None = None

    def check(self) -> None:
        """Make sure that the compiler and the folder exist, before anything is built.

        Raises:
            UsageError: if they do not.
        """
        if self.compiler is not None and shutil.which(self.compiler) is None:
            raise UsageError(f"there is no compiler {self.compiler!r} (--cc); give its path, or write a .tar instead")
        if self.sysroot is not None and self.compiler is None:
            raise UsageError("--sysroot needs --cc: the compiler that links for the other machine")
        if self.sysroot is not None and not self.sysroot.is_dir():
            raise UsageError(f"there is no folder {self.sysroot} (--sysroot)")

    def to_json(self) -> dict[str, str | None]:
        """What a run keeps of it."""
        return {"cc": self.compiler, "sysroot": str(self.sysroot) if self.sysroot else None}

    @staticmethod
    def from_json(kept: Mapping[str, str | None]) -> Toolchain:
        """What a run has kept."""
        sysroot = kept.get("sysroot")
        return Toolchain(kept.get("cc"), Path(sysroot) if sysroot else None)

    def linker(self) -> Callable[..., None]:
        """A function that TVM's `export_library` calls to link."""
        options = [] if self.sysroot is None else [f"--sysroot={self.sysroot}"]

        def link(output: str, objects: list[str], **given: Any) -> None:
            given["options"] = [*options, *(given.get("options") or [])]
            _with_compiler(self.compiler or find_compiler(), output, objects, given)

        ask = cc.get_target_by_dump_machine(self.compiler) if self.compiler else cc.create_shared.get_target_triple
        link.get_target_triple = ask  # type: ignore[attr-defined] - TVM asks it for a library without kernels
        return link


def find_compiler() -> str:
    """The C++ compiler of this machine.

    Raises:
        EnvironmentFault: if there is none.
    """
    compiler = cc.get_cc() if sys.platform != "win32" else "clang"
    if compiler is None:
        raise EnvironmentFault(f"there is no C++ compiler on PATH, which links what TVM generates; {COMPILER_ADVICE}")
    if shutil.which(compiler.split()[0]) is None:
        raise EnvironmentFault(
            f"the compiler {compiler!r}, named by the variable CXX or CC, does not exist; {COMPILER_ADVICE}"
        )
    return compiler


def link_shared(output: str, objects: list[str], **options: Any) -> None:
    """Link objects to a shared library with `ld`: 5 ms where g++ takes 20.

    TVM's own way, through the C++ compiler, is taken for anything but plain objects and on machines without GNU ld.

    Raises:
        EnvironmentFault: if there is no compiler, or it cannot be started.
        RuntimeError: if linking fails.
    """
    linker, libraries = _linker()
    if linker is not None and not options and all(name.endswith(".o") for name in objects):
        done = subprocess.run([linker, "-shared", "-o", output, *objects, *libraries], capture_output=True)
        if done.returncode == 0:
            return
    _with_compiler(find_compiler(), output, objects, options)


def _with_compiler(compiler: str, output: str, objects: list[str], options: dict[str, Any]) -> None:
    try:
        cc.create_shared(output, objects, cc=compiler, **options)
    except (FileNotFoundError, PermissionError) as error:
        message = f"cannot start the compiler {compiler!r}: {error.strerror}; {COMPILER_ADVICE}"
        raise EnvironmentFault(message) from error


@functools.cache
def _linker() -> tuple[str | None, tuple[str, ...]]:
    """The linker, and the libraries that generated code may call.

    These are the maths library, and the compiler's own library for 16-bit floats. Without GNU ld or a C compiler there
    is no linker.
    """
    linker, compiler = shutil.which("ld"), shutil.which("gcc") or shutil.which("cc")
    if linker is None or compiler is None or os.name != "posix" or not os.path.exists("/proc"):
        return None, ()
    found = []
    for question in ("-print-file-name=libm.so.6", "-print-libgcc-file-name"):
        answer = subprocess.run([compiler, question], capture_output=True, text=True, timeout=10)
        path = answer.stdout.strip()
        if answer.returncode != 0 or not os.path.isabs(path):
            return None, ()
        found.append(path)
    return linker, tuple(found)
