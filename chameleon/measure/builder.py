"""A MetaSchedule builder with warm, isolated workers.

It builds the same as the stock builder (`s_tir.meta_schedule.builder.default_build`), but faster, for three reasons:

- A worker imports tvm once and not for every batch.
- It leaves out the import of all tensor intrinsics: a module that is already scheduled holds their bodies.
- It links with `ld` itself instead of through g++.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm.runtime import Module, load_param_dict, save_param_dict
from tvm.s_tir.meta_schedule.builder import BuilderInput, BuilderResult
from tvm.s_tir.meta_schedule.builder.builder import _PyBuilder

from chameleon.cores import usable_memory_bytes
from chameleon.kernels.intrinsics import import_intrinsics
from chameleon.measure.inputs import write_ranges
from chameleon.measure.link import OBJECTS, Toolchain, link_shared
from chameleon.measure.tiny import tiny_kernel
from chameleon.target import TVM_WITHOUT, usable_cores
from chameleon.workers.child import resolve
from chameleon.workers.faults import EnvironmentFault, cause_of, last_line
from chameleon.workers.pool import Outcome, PoolConfig, WorkerPool

EXPORTS = ("so", "tar")  # a shared library; objects for another machine, which links them itself
_FOLDER_PREFIX = "chameleon-build-"
_LOCK_NAME = "owner.lock"


@dataclass(frozen=True)
class BuildConfig:
    """How candidates are built."""

    export: str = "so"  # "so" for runners on this machine, "tar" for RPC unless there is a toolchain
    toolchain: Toolchain = field(default_factory=Toolchain)  # links for the machine where candidates run
    n_workers: int | None = None  # None: one for each usable core
    timeout_s: float = 30.0
    memory_limit_bytes: int | None = None  # of one worker; None: an equal share of three quarters of the memory
    recycle_after: int = 500  # a worker is replaced after so many builds
    f_build: str | None = None  # builds in place of the default; module:function (mod, target, params) -> Module

    def __post_init__(self) -> None:
        if self.export not in EXPORTS:
            raise ValueError(f"BuildConfig.export must be one of {', '.join(EXPORTS)}, got {self.export!r}")


@dataclass(frozen=True)
class BuildRequest:
    """What a worker needs to build one candidate."""

    mod: tvm.IRModule
    target: tvm.target.Target
    params: bytes | None
    folder: str
    export: str
    toolchain: Toolchain
    f_build: str | None


class WarmBuilder(_PyBuilder):
    """Builds candidates in warm workers; for any MetaSchedule call that takes a builder.

    Each artifact lies alone in a folder of its own. Whoever runs the artifact removes this folder, as MetaSchedule
    does. Folders that are left are removed together with the builder.

    The base class is the one below TVM's `PyBuilder`. The usual way, `derived_object`, has three faults: it forwards
    no special methods, it hides the type, and its call through C++ turns Ctrl-C into a RuntimeError without a message.
    """

    __slots__ = ("__dict__",)

    def __init__(self, config: BuildConfig | None = None, **options: Any) -> None:
        """Take the settings.

        Args:
            config: the settings; or give its fields as keywords (`export="tar"`).
        """
        self._engine = _BuildEngine(config or BuildConfig(**options))
        super().__init__(self._engine.build)

    def __enter__(self) -> WarmBuilder:
        self._engine.pool.start()  # so the imports run while the caller prepares the first candidate
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and remove artifacts that are left. A later `build` starts anew."""
        self._engine.close()

    def build(self, build_inputs: Sequence[BuilderInput]) -> list[BuilderResult]:
        """Build all inputs: one result for each, in order; the `error_msg` of a failure begins with its reason."""
        return self._engine.build(build_inputs)

    @property
    def last_build_s(self) -> list[float]:
        """Seconds that each candidate of the last call took, from sending it to getting its outcome."""
        return self._engine.last_build_s

    def worker_pids(self) -> list[int]:
        """Process ids of the workers' supervisors."""
        return self._engine.pool.pids()


class _BuildEngine:
    """Does the work of a builder.

    TVM's object holds this one, but this one does not hold TVM's object. So neither keeps the other alive.
    """

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        n_workers = config.n_workers or usable_cores()
        self.last_build_s: list[float] = []
        self.pool = WorkerPool(
            PoolConfig(
                target="chameleon.measure.builder:build_candidate",
                forked=True,
                n_workers=n_workers,
                timeout_s=config.timeout_s,
                memory_limit_bytes=config.memory_limit_bytes or usable_memory_bytes() * 3 // 4 // n_workers,
                recycle_after=config.recycle_after,
                environment={"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"},
                without=TVM_WITHOUT,  # as the runner: for another one the fork server would be started anew
            )
        )
        self._workspace = _Workspace()

    def close(self) -> None:
        """Stop the workers and remove artifacts that are left."""
        self.pool.close()
        self._workspace.remove()

    def build(self, build_inputs: Sequence[BuilderInput]) -> list[BuilderResult]:
        """One result for each input."""
        requests = [self._request(build_input) for build_input in build_inputs]
        outcomes = self.pool.map(requests)
        self.last_build_s = [outcome.wall_s for outcome in outcomes]
        return [_result(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]

    def _request(self, build_input: BuilderInput) -> BuildRequest:
        params = None if build_input.params is None else bytes(save_param_dict(build_input.params))
        folder = self._workspace.new_folder()
        how = (self.config.export, self.config.toolchain, self.config.f_build)
        return BuildRequest(build_input.mod, build_input.target, params, folder, *how)


def _result(request: BuildRequest, outcome: Outcome) -> BuilderResult:
    if outcome.ok:
        return BuilderResult(outcome.value, None)
    shutil.rmtree(request.folder, ignore_errors=True)
    word = "build_error" if outcome.reason == "error" else outcome.reason
    return BuilderResult(None, f"{word}:{outcome.message.partition(':')[2]}")


class _Workspace:
    """A temporary folder that is removed together with its owner.

    The owner holds a lock on the folder. If the owner is killed, the folder stays, but it is no longer locked. The
    next owner removes it.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open()
        _sweep(self._root.parent)

    def _open(self) -> None:
        try:
            self._root = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
        except OSError as error:  # no folder for temporary files can be written to
            raise EnvironmentFault(cause_of(error) or f"no folder for temporary files: {error}; set TMPDIR") from error
        self._lock = os.open(self._root / _LOCK_NAME, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.remove = weakref.finalize(self, _remove_locked, self._root, self._lock)

    def new_folder(self) -> str:
        """An empty folder for one artifact."""
        if not self.remove.alive:  # used again after close
            self._open()
        folder = self._root / str(next(self._numbers))
        try:
            folder.mkdir()
        except OSError as error:
            raise EnvironmentFault(cause_of(error) or f"cannot make the folder {folder}: {error.strerror}") from error
        return str(folder)


def _remove_locked(root: Path, lock_fd: int) -> None:
    shutil.rmtree(root, ignore_errors=True)
    os.close(lock_fd)


def _sweep(parent: Path) -> None:
    """Remove the folders of owners that were killed."""
    for root in parent.glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # locked by a living owner, another user's, or just gone
            lock_fd = os.open(root / _LOCK_NAME, os.O_RDWR)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(lock_fd)


# --- inside a worker ---


def build_candidate(request: BuildRequest) -> str:
    """Build one candidate, export it, and return the artifact's path.

    Raises:
        EnvironmentFault: if no other candidate would do better.
    """
    params = None if request.params is None else load_param_dict(bytearray(request.params))
    # What TVM and the compiler leave where this worker is killed goes with the builder's folder.
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path(request.folder).parent)
    build = default_build if request.f_build is None else resolve(request.f_build)
    path = Path(request.folder) / f"candidate.{request.export}"
    try:
        _export(build(request.mod, request.target, params), path, request.toolchain)
    except EnvironmentFault:
        raise
    except Exception:
        _check_environment(request)
        raise
    write_ranges(request.mod, path)
    return str(path)


def _export(rt_mod: Module, path: Path, toolchain: Toolchain) -> None:
    link = link_shared if toolchain.compiler is None else toolchain.linker()
    rt_mod.export_library(str(path), **({} if path.suffix == OBJECTS else {"fcompile": link}))


def _check_environment(request: BuildRequest) -> None:
    """After a failed build: find out whether the candidate is to blame, by building a kernel that cannot be.

    Raises:
        EnvironmentFault: if that fails as well.
    """
    try:
        mod = default_build(tiny_kernel(request.target), request.target)
        _export(mod, Path(request.folder) / f"tiny.{request.export}", request.toolchain)
    except EnvironmentFault:
        raise
    except Exception as error:
        kind = request.target.kind.name
        raise EnvironmentFault(cause_of(error) or f"no kernel at all builds for {kind}: {_summary(error)}") from error


def _summary(error: Exception) -> str:
    """What an error says, without the command line that TVM puts below a linker's words."""
    return last_line(str(error).partition("\nCommand line:")[0])


def default_build(mod: tvm.IRModule, target: tvm.target.Target, _params: Any = None) -> Module:
    """Build as the stock builder does, but without its slow import.

    Blocks that rewrite the layout of constant weights are removed, as there.
    """
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mod = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod)
        try:
            return tvm.tirx.build(mod, target=target)
        except Exception as error:
            if "TensorIntrin" not in str(error):
                raise
            import_intrinsics()
            return tvm.tirx.build(mod, target=target)
