"""Compares a compiled network with an independent reference, before the network takes its place.

The reference is ONNX Runtime for an .onnx file and PyTorch for any other network. Both run the file itself, and
neither shares code with TVM. Where it cannot run the network, TVM without tuning takes its place.

The library runs in a process of its own: one that crashes is wrong as well.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from chameleon.errors import ChameleonError, described, first_line
from chameleon.jobs.compare import Arrays, Difference, difference, finite, tolerance_of, worst
from chameleon.jobs.run_library import LibraryRun
from chameleon.models.load import Model, input_arrays
from chameleon.models.references import independent_run
from chameleon.target import TVM_WITHOUT, usable_cores
from chameleon.workers.pool import PoolConfig, WorkerPool

DRAWS = 2
"""How many random inputs are compared: a fault that one input hides may show in another."""

TIMEOUT_S = 300.0
"""Time limit for all runs of one library, in seconds."""

_ILLEGAL_INSTRUCTION = "signal 4"


@dataclass(frozen=True)
class Verdict:
    """Whether a compiled network computes what its reference does.

    Attributes:
        reference: what it was compared with; empty if nothing was compared.
        note: why the reference is not an independent one, or why nothing was compared; else empty.
        difference: how far the outputs are apart, over all draws; its fault says what is wrong.
        tolerance: the largest relative difference of floating-point outputs that was allowed.
        draws: how many random inputs were compared.
        runs: whether the library ran at all.
    """

    reference: str
    note: str = ""
    difference: Difference = field(default_factory=Difference)
    tolerance: float = 0.0
    draws: int = 0
    runs: bool = True

    @property
    def agrees(self) -> bool:
        """Whether nothing is wrong; so it is where nothing was compared."""
        return self.difference.agrees

    def __str__(self) -> str:
        if not self.reference:
            return f"outputs were not compared: {self.note}"
        because = f" ({self.note})" if self.note else ""
        if not self.runs:
            return self.difference.fault
        if not self.agrees:
            return f"outputs are not {self.reference}'s{because}: {self.difference.fault}"
        return (
            f"outputs agree with {self.reference}'s{because}: off by {self.difference.relative:.1e} of the largest, "
            f"allowed {self.tolerance:g}, {self.draws} random inputs"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the report of a run."""
        return {
            "reference": self.reference or None,
            "note": self.note,
            "draws": self.draws,
            "absolute": finite(self.difference.absolute),
            "relative": finite(self.difference.relative),
            "tolerance": self.tolerance,
            "agrees": self.agrees,
            "fault": self.difference.fault,
            "summary": str(self),
        }


class Verifier:
    """Compares libraries of one network with its reference, whose outputs are computed once.

    Use it as a context manager.

    Args:
        elsewhere: why the target's device cannot be used here, if the caller knows; then nothing is compared.
    """

    def __init__(self, model: Model, target: Target, *, elsewhere: str = "", seed: int = 0) -> None:
        self._model, self._target = model, target
        self._elsewhere = elsewhere or _elsewhere(target)
        rng = np.random.default_rng(seed)
        self._inputs = [] if self._elsewhere else [input_arrays(model, rng) for _ in range(DRAWS)]
        self._expected: _Expected | None = None
        self._pool = WorkerPool(
            PoolConfig(
                "chameleon.jobs.run_library:run_library",
                forked=True,
                timeout_s=TIMEOUT_S,
                without=TVM_WITHOUT,
                retry_crash=False,
                # A library may spoil the process that runs it; and a process loads each path only once.
                recycle_after=1,
            )
        )

    def __enter__(self) -> Verifier:
        if not self._elsewhere:
            self._pool.start()  # it imports TVM while the network is compiled
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def check(self, library: Path) -> Verdict:
        """Run a library and compare it."""
        if self._elsewhere:
            return Verdict("", self._elsewhere)
        expected = self._reference()
        if not expected.name:
            return Verdict("", expected.note)
        tolerance = tolerance_of(self._model.mod)
        try:
            outputs = self._run(library)
        except _CannotRunHereError as error:
            return Verdict("", str(error))
        except ChameleonError as error:
            found = Difference(np.inf, np.inf, str(error))
            return Verdict(expected.name, expected.note, found, tolerance.floats, runs=False)
        found = worst([difference(a, b, tolerance) for a, b in zip(outputs, expected.outputs, strict=True)])
        return Verdict(expected.name, expected.note, found, tolerance.floats, DRAWS)

    def check_executable(self, executable: Any) -> Verdict:
        """Export an executable into a temporary folder, run it and compare it."""
        with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
            library = Path(folder) / "network.so"
            if not self._elsewhere:
                executable.export_library(str(library))
            return self.check(library)

    def _run(self, library: Path) -> list[Arrays]:
        kind = self._target.kind.name
        threads = int(self._target.attrs.get("num-cores", usable_cores()))
        device = "cpu" if kind == "llvm" else kind
        # an absolute path: the loader of the system looks for other names along its own path
        (outcome,) = self._pool.map([LibraryRun(str(library.resolve()), device, threads, self._inputs)])
        if outcome.ok:
            return outcome.value
        if _ILLEGAL_INSTRUCTION in outcome.message:
            raise _CannotRunHereError("this machine's processor lacks instructions of the target's")
        raise ChameleonError(f"the compiled network does not run: {first_line(outcome.message)}")

    def _reference(self) -> _Expected:
        if self._expected is None:
            self._expected = self._expect()
        return self._expected

    def _expect(self) -> _Expected:
        """The outputs of the best reference that can run the network."""
        reasons = []
        for find in (lambda: independent_run(self._model.source), self._untuned):
            try:
                name, run = find()
                return _Expected(name, "; ".join(reasons), [run(inputs) for inputs in self._inputs])
            except Exception as error:
                reasons.append(str(error) if isinstance(error, ChameleonError) else described(error))
        return _Expected("", "; ".join(reasons), [])

    def _untuned(self) -> tuple[str, Callable[[Arrays], Arrays]]:
        """TVM as it comes: it shares the importer with the network that is checked, but no schedule."""
        executable = tvm.compile(self._model.mod, self._target)
        with tempfile.TemporaryDirectory(prefix="chameleon-") as folder:
            library = Path(folder) / "network.so"
            executable.export_library(str(library))
            outputs = iter(self._run(library))
        return "untuned TVM", lambda _: next(outputs)


@dataclass(frozen=True)
class _Expected:
    """What the reference `name` computes, and why no better reference was taken."""

    name: str
    note: str
    outputs: list[Any]


class _CannotRunHereError(ChameleonError):
    """The library is for another processor than this machine's."""


def _elsewhere(target: Target) -> str:
    """Why code for a target cannot run on this machine; empty if it may."""
    kind = target.kind.name
    if kind != "llvm":
        return "" if tvm.device(kind).exist else f"this machine has no {kind} device"
    architecture = str(target.attrs.get("mtriple", "")).partition("-")[0]
    names = {"arm64": "aarch64", "amd64": "x86_64"}
    here = platform.machine().lower()
    if architecture and names.get(architecture, architecture) != names.get(here, here):
        return f"the target's architecture is {architecture}, this machine's is {here}"
    return ""
