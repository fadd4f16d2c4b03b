"""Writes beside a result what it was made with: commit, platform, versions and arguments."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *(
        "chameleon-tvm",
        "apache-tvm",
        "apache-tvm-ffi",
        "xtc-tvm-python-bindings",
        "numpy",
        "torch",
        "scikit-learn",
        "xgboost",
    ),
    *("onnx", "onnxruntime", "numba", "ortools", "networkx", "kernel-tuner", "ray"),
)


def manifest(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that tell one run from another.

    Args:
        arguments: what the run was asked to do, seeds included, as plain data. Only the file name of a path is kept,
            since a folder tells about the machine and not about the result.

    Returns:
        The facts by name. `commit` and `dirty` are None if the code is not in a git checkout. A version is None if the
        package is not installed.
    """
    commit = _git("rev-parse", "HEAD")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "platform": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "arguments": {name: _plain(value) for name, value in arguments.items()},
    }


def write_manifest(path: Path, arguments: Mapping[str, Any]) -> None:
    """Write `manifest(arguments)` as JSON; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest(arguments), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.name if isinstance(value, Path) else value


def _git(*arguments: str) -> str | None:
    """The output of git in the folder of this code; None without git or outside of a checkout of this project."""
    here = Path(__file__).resolve().parent
    try:
        ran = subprocess.run(("git", "-C", here, *arguments), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 and (here.parent / "pyproject.toml").is_file() else None


def cpu_name() -> str:
    """The processor's name; `platform` does not know it on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
