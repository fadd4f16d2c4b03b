"""The faults: how each is made and undone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np

from scripts.faults.case import GRACE_S, Case, Job
from scripts.faults.hooks import REASONS, TICKET
from scripts.faults.job import PATIENCE_S, TIMEOUT_S
from scripts.faults.places import Fleet, RayNodes, database, movable_clock, small_disk


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        inject: makes it while a job runs.
        heal: makes it undone, before the job is started again.
        per_job: how many times one job goes through it; 1: it ends the job.
        place: what has to be there while a case lasts; gives more arguments of its job.
        bound_s: the longest silence after it: a time-out, and 5 s.
    """

    inject: Callable[[Case, Job, np.random.Generator], None]
    heal: Callable[[Case], None] = lambda case: None
    per_job: int = 1
    place: Callable[[Case], AbstractContextManager[Sequence[str]]] = lambda case: nullcontext(())
    bound_s: float = TIMEOUT_S + GRACE_S


def kill_worker(case: Case, job: Job, rng: np.random.Generator) -> None:
    """Kill one process that the job has started, whichever."""
    family = [p for p in case.family() if p.pid != job.process.pid]
    if family:
        with suppress(Exception):
            family[int(rng.integers(len(family)))].kill()


def ticket(how: str) -> Callable[[Case, Job, np.random.Generator], None]:
    """Make the next candidate misbehave."""

    def inject(case: Case, _job: Job, _rng: np.random.Generator) -> None:
        (case.control / f"{TICKET}{how}").touch()
        case.reasons[REASONS[how]] += 1

    return inject


def take_tickets(case: Case) -> None:
    """Remove tickets that no candidate took."""
    for path in case.control.glob(f"{TICKET}*"):
        path.unlink()


def remove_compiler(case: Case, _job: Job, _rng: np.random.Generator) -> None:
    """Every tool is gone."""
    case.bin.rename(case.bin.with_name("gone"))


def bring_compiler(case: Case) -> None:
    """The tools are back."""
    if case.bin.exists():
        shutil.rmtree(case.bin)
    case.bin.with_name("gone").rename(case.bin)


def break_compiler(case: Case, _job: Job, _rng: np.random.Generator) -> None:
    """Every tool is there, and fails."""
    whole = case.bin.with_name("gone")
    case.bin.rename(whole)
    case.bin.mkdir()
    for tool in whole.iterdir():
        (case.bin / tool.name).write_text("#!/bin/sh\necho 'internal error: nothing works' >&2\nexit 1\n")
        (case.bin / tool.name).chmod(0o755)


def fill(which: str) -> Callable[[Case, Job, np.random.Generator], None]:
    """Fill the file system of one of the folders."""

    def inject(case: Case, _job: Job, _rng: np.random.Generator) -> None:
        with suppress(OSError), (getattr(case, which) / "filling").open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)

    return inject


def empty(which: str) -> Callable[[Case], None]:
    """Free the space again."""
    return lambda case: (getattr(case, which) / "filling").unlink(missing_ok=True)


def kill_parent(_case: Case, job: Job, rng: np.random.Generator) -> None:
    """Kill the job itself, at any moment."""
    time.sleep(float(rng.uniform(0.0, 1.0)))
    job.kill()


def tear(case: Case, job: Job, rng: np.random.Generator) -> None:
    """The machine stops in the middle of a line."""
    kill_parent(case, job, rng)
    job.process.wait()
    with case.records.open("ab") as stream:
        stream.write(b'{"task":"0123456789abcdef","config":[0,1,'[: int(rng.integers(1, 40))])


def step_clock(case: Case, _job: Job, rng: np.random.Generator) -> None:
    """The wall clock jumps by up to a year, to either side."""
    case.clock.write_text(str(int(rng.integers(-(10**7), 3 * 10**7))))


def lose_device(case: Case, _job: Job, _rng: np.random.Generator) -> None:
    """The device loses its power."""
    case.around.kill_server()


def restart_tracker(case: Case, _job: Job, _rng: np.random.Generator) -> None:
    """The tracker ends and comes back; the device has to register again."""
    case.around.restart_tracker()


def restart_database(case: Case, _job: Job, rng: np.random.Generator) -> None:
    """The database is gone for a while, shorter than a job waits for it."""
    case.around.stop()
    time.sleep(float(rng.uniform(0.0, PATIENCE_S / 2)))
    case.around.start()


def lose_database(case: Case, _job: Job, _rng: np.random.Generator) -> None:
    """The database is gone, longer than a job waits for it."""
    case.around.stop()


def kill_node(case: Case, _job: Job, rng: np.random.Generator) -> None:
    """One of the nodes of the cluster is gone."""
    case.around.kill_node(rng)


REMOTE_S = 3 * TIMEOUT_S + 5.0 + GRACE_S
"""A candidate on a device may wait for it before and after it ran, see `chameleon.measure.remote`."""
NODE_S = 15.0
"""Seconds after which Ray says that a node is dead, at the latest."""

FAULTS: dict[str, Fault] = {
    "worker killed": Fault(kill_worker, per_job=5),
    **{name.replace("-", " "): Fault(ticket(name), take_tickets, per_job=5) for name in REASONS},
    "compiler missing": Fault(remove_compiler, bring_compiler),
    "compiler failing": Fault(break_compiler, bring_compiler),
    "/tmp full": Fault(fill("tmp"), empty("tmp"), place=lambda case: small_disk(case.tmp)),
    "disk full": Fault(fill("run"), empty("run"), place=lambda case: small_disk(case.run)),
    "parent killed": Fault(kill_parent),
    "record torn": Fault(tear),
    "clock stepped": Fault(step_clock, per_job=5, place=movable_clock),
    "device lost": Fault(lose_device, lambda case: case.around.start_server(), place=Fleet.place, bound_s=REMOTE_S),
    "tracker restarted": Fault(restart_tracker, place=Fleet.place, bound_s=REMOTE_S),
    "database restarted": Fault(restart_database, per_job=5, place=database),
    "database gone": Fault(lose_database, lambda case: case.around.start(), place=database),
    "Ray node killed": Fault(
        kill_node,
        lambda case: case.around.add_node(),
        place=RayNodes.place,
        bound_s=TIMEOUT_S + GRACE_S + NODE_S,
    ),
}
