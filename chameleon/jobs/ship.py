"""`chameleon compile`: puts a compiled network into its place, only if it computes what an independent reference does.

`chameleon tune` ends in the same way.

A network that does not is searched for the schedule that is to blame. The search compiles the network with the
schedules of the first tasks only, and halves their number: it needs the logarithm of the number of tasks in
compilations. Running each kernel beside its untuned form would cost a compilation of each kernel as well, and would
miss what shows only in the network: a weight in the wrong order, or two kernels that overlap in memory.

The schedule that is to blame is left out from then on, and the next best of its task takes its place.
"""

# TVM's reflected attributes have no static types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tvm
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target
from tvm.tirx import PrimFunc

from chameleon.errors import ChameleonError, UsageError, described, doing
from chameleon.files import read_json
from chameleon.jobs.compile import Compiled, compile_model
from chameleon.jobs.run_folder import (
    JobSpec,
    Opened,
    export,
    open_run,
    recorded_tuners,
    resolved_run,
    target_of,
)
from chameleon.jobs.session import database_of
from chameleon.jobs.stages import Say, stage
from chameleon.jobs.task_tuner import TaskTuner
from chameleon.jobs.verify import Verdict, Verifier
from chameleon.measure.link import OBJECTS, Toolchain, find_compiler
from chameleon.memory.deadline import Deadline
from chameleon.memory.plan import MemoryOptions, Solve
from chameleon.search import Trial
from chameleon.target import check_runs_here, runs_here

MAX_WRONG = 16
"""After so many wrong schedules in one network, something else must be wrong."""

Mark = Callable[[TaskTuner, Trial], None]


class WrongOutputsError(ChameleonError):
    """The compiled network computes something else than its reference; the message says what is to blame."""


@dataclass(frozen=True)
class Shipped:
    """A network that took its place.

    Attributes:
        compiled: the network.
        verdict: how it was compared.
        database: the schedules that it has.
    """

    compiled: Compiled
    verdict: Verdict
    database: ms.database.Database = field(repr=False)


@dataclass(frozen=True)
class _Attempt:
    """A network that was compiled and compared, or the error of compiling it."""

    compiled: Compiled | None
    verdict: Verdict
    error: Exception | None = None

    @property
    def agrees(self) -> bool:
        return self.compiled is not None and self.verdict.agrees

    @property
    def fault(self) -> str:
        return described(self.error) if self.error else self.verdict.difference.fault


def ship(
    job: Opened,
    tuners: Sequence[TaskTuner],
    path: Path,
    say: Say,
    *,
    mark: Mark = lambda task, trial: None,
    elsewhere: str = "",
    solve: Solve | None = None,
    options: MemoryOptions | None = None,
    toolchain: Toolchain | None = None,
) -> Shipped:
    """Compile a network with the best schedules, compare it with its reference, and put it into its place.

    Args:
        mark: told of each schedule that computes wrong values, before the next best takes its place.
        elsewhere: why the network cannot run here, if it cannot; then it is not compared.
        solve: orders the network for the least memory; see `chameleon.jobs.compile.compile_model`.
        options: for that planning of memory.
        toolchain: links the library for another machine; None: this machine's compiler does.

    Raises:
        WrongOutputsError: if the outputs are wrong and no schedule of a task is to blame. Then nothing is written.
    """
    with Verifier(job.model, job.target, elsewhere=elsewhere) as verifier:
        builds = _Builds(job, verifier, solve, options, toolchain)
        for _ in range(MAX_WRONG):
            tuned = [t for t in tuners if t.best is not None]
            database = database_of(tuned, job.target)
            attempt = builds.attempt(database, into=path)
            if attempt.compiled is not None and attempt.agrees:
                return Shipped(attempt.compiled, attempt.verdict, database)
            say(f"{job.model.name} is wrong ({attempt.fault}); looking for the kernel that is to blame")
            guilty = tuned[builds.guilty(tuned, attempt)]
            trial = guilty.best
            assert trial is not None  # tasks without one are left out above
            mark(guilty, trial)
            guilty.drop(trial.config)
            then = "the next best takes its place" if guilty.best else "the default schedule takes its place"
            say(f"warning: a schedule of {guilty.task.name} computes wrong values; {then} ({list(trial.config)})")
    raise WrongOutputsError(f"{job.model.name}: {MAX_WRONG} schedules computed wrong values; {path} was not written")


def compile_tuned(spec: JobSpec, output: Path, say: Say, *, memory_aware: bool = False) -> Shipped:
    """Build the network with the best schedules in the folder's records and write it, if its outputs are right.

    Args:
        memory_aware: order the network for the least memory, counting the workspaces of these schedules, and put all
            its tensors into one arena.

    Raises:
        ChameleonError: if there are no records, if they belong to another model or target, or if the outputs are
            wrong.
    """
    spec = resolved_run(spec)
    _check_output(spec, output)
    job = open_run(spec, say)
    elsewhere = device_elsewhere(job.target, tracker=bool(read_json(job.out / "run.json").get("tracker")))
    tuners, deadline = recorded_tuners(job, spec), Deadline(spec.time_limit_s)
    solve = deadline.solver(spec.time_limit_s / 2) if memory_aware else None
    options = MemoryOptions(name=job.model.name, deadline=deadline)
    with stage(say, "compiling with the best schedules"):
        shipped = ship(
            job,
            tuners,
            output,
            say,
            elsewhere=elsewhere,
            solve=solve,
            options=options,
            toolchain=spec.toolchain,
        )
    if memory_aware and deadline.passed():
        say(f"the time limit of {spec.time_limit_s:g} s is over: order and arena are the best found until then")
    return shipped


def _check_output(spec: JobSpec, output: Path) -> None:
    """Check that the library can be linked, before the model is loaded.

    Raises:
        UsageError: if it is for another architecture and no compiler for that was given.
        EnvironmentFault: if it is for this machine, which has no compiler.
    """
    spec.toolchain.check()
    if output.suffix == OBJECTS or spec.toolchain.compiler is not None:
        return
    target = target_of(spec)
    if not runs_here(target):
        raise UsageError(
            f"linking {output.name} for {target.attrs.get('mtriple', target)} needs a compiler for that machine: "
            f"--cc aarch64-linux-gnu-g++, for instance; or write its objects, -o {output.stem}.tar, which TVM links "
            "where it loads them"
        )
    find_compiler()


def device_elsewhere(target: Target, *, tracker: bool) -> str:
    """Why a network cannot run on this machine; empty if it may.

    A CPU behind a tracker may run the same code as this machine's: then the network is compared here.
    """
    try:
        check_runs_here(target)
    except UsageError:  # another architecture, or vector instructions that this processor lacks
        return "this machine cannot run code for its target"
    return "its device is behind a tracker" if tracker and target.kind.name != "llvm" else ""


class _Builds:
    """Compiles and compares forms of one network."""

    def __init__(
        self,
        job: Opened,
        verifier: Verifier,
        solve: Solve | None,
        options: MemoryOptions | None,
        toolchain: Toolchain | None,
    ) -> None:
        self._job, self._verifier, self._toolchain = job, verifier, toolchain
        self._solve, self._options = solve, options
        self._right_untuned = False

    def attempt(self, database: ms.database.Database, into: Path | None = None) -> _Attempt:
        """Compile with the schedules of a database, and compare.

        Args:
            into: where to put the network if its outputs agree.
        """
        return self._try(
            lambda: compile_model(self._job.lowered, self._job.target, database, self._solve, self._options), into
        )

    def guilty(self, tuned: Sequence[TaskTuner], whole: _Attempt) -> int:
        """The position of a task whose best schedule makes the network wrong.

        Args:
            whole: the network with all schedules, which is wrong.

        Raises:
            WrongOutputsError: if the network is wrong without any of the schedules.
            Exception: what compiling raised, if it fails without any of the schedules.
        """
        if not tuned or not self._right_untuned:
            self._check_untuned(self.attempt(ms.database.MemoryDatabase()) if tuned else whole)
            self._right_untuned = True
        return first_wrong(len(tuned), lambda n: not self.attempt(database_of(tuned[:n], self._job.target)).agrees)

    def _check_untuned(self, untuned: _Attempt) -> None:
        """Raise an error that says what is to blame, if a network is wrong without any schedule."""
        name = self._job.model.name
        if untuned.error:
            with doing(f"compiling {name}", self._job.out):
                raise untuned.error
        if not untuned.agrees:
            raise WrongOutputsError(f"{name}: {untuned.verdict}. {self._blame_untuned()}; nothing was written")

    def _blame_untuned(self) -> str:
        """What makes a network wrong that has no tuned schedule."""
        job, empty = self._job, ms.database.MemoryDatabase()
        if self._solve is not None and self._try(lambda: compile_model(job.lowered, job.target, empty)).agrees:
            return "The plan of its memory is to blame: without --memory-aware it is right"
        names = default_kernels(job.lowered) if job.target.kind.name == "llvm" else []

        def wrong(n: int) -> bool:
            """Whether it is wrong with default schedules for the first kernels, and plain loops for the others."""
            plain = frozenset(names[n:])
            return not self._try(
                lambda: compile_model(job.lowered, job.target, empty, self._solve, self._options, plain=plain)
            ).agrees

        if names and not wrong(0):
            return f"The default schedule of the kernel {names[first_wrong(len(names), wrong)]} is to blame"
        if self._verifier.check_executable(tvm.compile(job.model.mod, job.target)).agrees:
            return "How Chameleon lowers or rewrites it is to blame: TVM's own build of it is right"
        return "TVM's own build of it is wrong as well: its importer, or one of its passes, is to blame"

    def _try(self, build: Callable[[], Compiled], into: Path | None = None) -> _Attempt:
        try:
            compiled = build()
            verdict = self._compare(compiled, into)
        except (ChameleonError, OSError):
            raise
        except Exception as error:
            return _Attempt(None, Verdict(""), error)
        return _Attempt(compiled, verdict)

    def _compare(self, compiled: Compiled, into: Path | None) -> Verdict:
        if into is None:
            return self._verifier.check_executable(compiled.executable)
        return export(compiled, into, self._verifier.check, self._toolchain)


def default_kernels(lowered: IRModule) -> list[str]:
    """The names of a network's kernels, sorted."""
    return sorted(v.name_hint for v, f in lowered.functions_items() if isinstance(f, PrimFunc))


def first_wrong(n: int, wrong: Callable[[int], bool]) -> int:
    """The position of an item that makes a collection wrong.

    Args:
        n: the number of items. All together they are wrong; none of them is right.
        wrong: whether the first so many items together are wrong.
    """
    right, bad = 0, n
    while bad - right > 1:
        middle = (right + bad) // 2
        if wrong(middle):
            bad = middle
        else:
            right = middle
    return bad - 1
