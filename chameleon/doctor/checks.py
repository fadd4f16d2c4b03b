"""Is the installation complete, and do its versions work together?

Nothing here imports tvm, because a broken tvm can crash the process that imports it. The checks that need tvm run in a
process of their own (`chameleon.doctor.probe`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chameleon.cores import usable_cores, usable_memory_bytes
from chameleon.workers.faults import COMPILER_ADVICE

PROBE_TIMEOUT_S = 180.0
MIN_FREE_BYTES = 1 << 30
_NEWEST_FFI = "pip install 'apache-tvm-ffi==0.1.14.post1'"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Requirement:
    """A distribution that must, or may, be there."""

    distribution: str
    at_least: str = "0"
    below: str | None = None
    optional_for: str = ""  # what does not work without it, if it may be missing
    advice: str = ""


REQUIREMENTS = (
    Requirement("apache-tvm", "0.27"),
    Requirement(
        "apache-tvm-ffi", "0.1.14", "0.1.15", advice=f"0.1.15 crashes TVM 0.27, older ones do not load: {_NEWEST_FFI}"
    ),
    Requirement("numpy", "1.26"),
    Requirement("torch", "2.4"),
    Requirement("xgboost", "2.1"),
    Requirement("scikit-learn", "1.5"),
    Requirement("psutil", "6.0"),
    Requirement("cloudpickle", "3.0", optional_for="RPC servers and TVM's own builder and runner"),
    Requirement("tornado", "6.4", optional_for="an RPC tracker"),
    Requirement("onnx", "1.17", optional_for="ONNX files"),
    Requirement("onnxruntime", "1.20", optional_for="the comparison with ONNX Runtime"),
    Requirement("pytorchcv", "0.0.60", optional_for="networks by name"),
)


def checks() -> list[Check]:
    """Make all checks, in the order in which to fix what they find."""
    return [_python(), same_folder(), *map(check_distribution, REQUIREMENTS), *_tools(), _cores(), _disk(), *_probed()]


def check_distribution(requirement: Requirement, version: str | None = None) -> Check:
    """Is the distribution installed, in a version that works?

    Args:
        version: checked in place of the installed one.
    """
    name = requirement.distribution
    wanted = f">={requirement.at_least}" + (f",<{requirement.below}" if requirement.below else "")
    advice = requirement.advice or f"pip install '{name}{wanted}'"
    if version is None:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if requirement.optional_for:
                return Check(name, True, f"not installed; only needed for {requirement.optional_for}", advice)
            return Check(name, False, "not installed", advice)
    found = release(version)
    ok = found >= release(requirement.at_least) and (requirement.below is None or found < release(requirement.below))
    return Check(name, ok, version if ok else f"{version}, needed {wanted}", "" if ok else advice)


def same_folder() -> Check:
    """Is there another distribution that installs a folder `chameleon`?

    The package index has a template engine of that name.
    """
    name = "no other `chameleon`"
    try:
        version = importlib.metadata.version("chameleon")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, True, "none")
    detail = f"the template engine chameleon {version} is installed too; both have a folder `chameleon`"
    advice = "pip uninstall chameleon, then pip install --force-reinstall --no-deps chameleon-tvm"
    return Check(name, False, detail, advice)


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `0.1.15.post2` gives `(0, 1, 15)`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in match.group().split(".")) if match else ()


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 10)
    return Check("Python", ok, found, "" if ok else "Python 3.10 or later is needed; developed on 3.11")


def _tools() -> Iterator[Check]:
    named = os.environ.get("CXX") or os.environ.get("CC")  # TVM takes this one, whether it exists or not
    names = named.split()[:1] if named else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    compiler = next((path for path in map(shutil.which, names) if path), None)
    found = compiler or (f"none: {named!r} of the variable CXX or CC does not exist" if named else "none")
    yield Check("C++ compiler", compiler is not None, found, "" if compiler else COMPILER_ADVICE)
    linker = shutil.which("ld")
    yield Check("linker", True, linker or "no GNU ld: the compiler links instead, a little slower")
    nvcc = shutil.which("nvcc")
    yield Check("nvcc", True, nvcc or "not found; only needed for CUDA targets")


def _cores() -> Check:
    memory = f"{usable_memory_bytes() / 2**30:.1f} GiB of memory"
    return Check("cores", True, f"{usable_cores()} usable of {os.cpu_count()}, {memory}")


def _disk() -> Check:
    try:
        places = {Path(tempfile.gettempdir()), Path.cwd()}
    except OSError as error:
        return Check("free disk", False, str(error), "set TMPDIR to a folder that can be written to")
    free = {place: shutil.disk_usage(place).free for place in places}
    detail = ", ".join(f"{n / 2**30:.1f} GiB in {place}" for place, n in free.items())
    ok = min(free.values()) >= MIN_FREE_BYTES
    return Check("free disk", ok, detail, "" if ok else f"at least {MIN_FREE_BYTES / 2**30:.0f} GiB is needed in each")


def _probed() -> list[Check]:
    """The checks that need TVM, made in a process of its own."""
    path = [os.path.abspath(entry) for entry in sys.path]
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from chameleon.doctor.probe import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(path)], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        advice = "the machine may be overloaded; else install the versions above anew"
        return [Check("TVM at work", False, f"no answer in {PROBE_TIMEOUT_S:.0f} s", advice)]
    return read_probe(done.stdout, done.stderr, done.returncode)


def read_probe(stdout: str, stderr: str, returncode: int) -> list[Check]:
    """Turn the lines that the probe printed into checks; if it did not reach its end, the last says where it broke."""
    found, last = [], "import tvm"
    for line in stdout.splitlines():
        kind, _, text = line.partition("\t")
        if kind == "next":
            last = text
        elif kind == "check":
            found.append(Check(**json.loads(text)))
    if returncode != 0:
        how = f"ended by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        reason = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
        advice = (
            "check the versions of apache-tvm and apache-tvm-ffi above; "
            f"the pair that works: 0.27.0.post1 and {_NEWEST_FFI}"
        )
        found.append(Check(last, False, f"{how}: {reason[:200]}", advice))
    return found
