"""How the throughput grows with the number of devices: loopback fleets with a measurement of a fixed, simulated time.

    python -m scripts.fleets.loopback --servers 1,2,4,8 --candidates 48 --out results/fleets

Each fleet is one tracker and some servers (`serve.py`) on this machine. Everything is real but the time: each
candidate waits on its server, without using the processor, before its small kernel runs. So the numbers tell what a
fleet of so many devices gains, as far as this machine's processor builds and sends fast enough.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from tvm import te
from tvm.ir import IRModule
from tvm.rpc.tracker import Tracker as TrackerServer
from tvm.s_tir import Schedule

from chameleon.cli import guarded
from chameleon.jobs.measurer import Measurer
from chameleon.measure import WarmBuilder, rpc_runner
from chameleon.measure.tracker import Tracker
from chameleon.target import detect_target
from scripts.common.run_store import RunStore, write_results
from scripts.common.tables import markdown
from scripts.fleets import serve

KEY = "simulated"
FIRST_PORT = 19190
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


@contextmanager
def fleet(n: int, wait_s: float = 0.0, *, key: str = KEY, session: Sequence[str] = ()) -> Iterator[str]:
    """A tracker and servers on loopback, all of them free; gives the tracker's address.

    Args:
        wait_s: seconds that each candidate waits on its server.
        session: the command that serves each session in place of TVM's loop.
    """
    tracker = TrackerServer(host="127.0.0.1", port=FIRST_PORT, port_end=FIRST_PORT + 100, silent=True)
    address = f"127.0.0.1:{tracker.port}"
    command = [sys.executable, str(Path(serve.__file__)), "--tracker", address, "--key", key, "--wait-s", str(wait_s)]
    command += ["--session", shlex.join(session)]
    servers = [
        subprocess.Popen([*command, "--port", str(FIRST_PORT + 200 + 20 * i)], stdout=subprocess.DEVNULL)
        for i in range(n)
    ]
    try:
        asked, until_s = Tracker(address), time.monotonic() + 60 + 30 * n
        while asked.summary(key).free < n:
            if time.monotonic() > until_s:
                raise SystemExit(f"only {asked.summary(key).free} of {n} servers came up")
            time.sleep(0.5)
        asked.close()
        yield address
    finally:
        for server in servers:  # what it started ends with it
            server.terminate()
            server.wait()
        tracker.terminate()


def candidate(number: int) -> Schedule:
    """A kernel that no other candidate has, so that each is built."""
    a: Any = te.placeholder((64, 64), name="a")
    b: Any = te.compute((64, 64), lambda i, j: a[i, j] * float(number), name="b")
    schedule = Schedule(IRModule({"main": te.create_prim_func([a, b])}))
    schedule.vectorize(schedule.get_loops(schedule.get_sblock("b"))[-1])
    return schedule


def measure(n: int, candidates: int, wait_s: float) -> dict[str, Any]:
    """Measure candidates on a fleet.

    Returns:
        A line with the servers, the seconds from the first build to the last trial, and the trials per minute.
    """
    with (
        fleet(n, wait_s) as address,
        WarmBuilder(export="tar") as builder,
        rpc_runner(address, KEY, min_repeat_ms=1) as runner,
    ):
        measurer = Measurer(detect_target(), builder, runner, runner.room)
        measurer.check()  # the workers have started when the clock does
        given = [((i,), candidate(i)) for i in range(candidates)]
        start_s = time.monotonic()
        trials = list(measurer(given, task="simulated", in_time=lambda: True))
        took_s = time.monotonic() - start_s
    failed = sum(trial.seconds is None for trial in trials)
    return {
        "servers": n,
        "candidates": candidates,
        "wait_s": wait_s,
        "took_s": round(took_s, 2),
        "failed": failed,
        "trials_per_minute": round(60 * candidates / took_s, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown; times the first row's throughput."""
    first = rows[0]["trials_per_minute"]
    head = ["servers", "candidates", "wait on the server", "took", "failed", "trials per minute", "times the first"]
    return markdown(
        head,
        [
            [
                str(row["servers"]),
                str(row["candidates"]),
                f"{row['wait_s']:g} s",
                f"{row['took_s']:.1f} s",
                str(row["failed"]),
                f"{row['trials_per_minute']:.1f}",
                f"{row['trials_per_minute'] / first:.2f}",
            ]
            for row in rows
        ],
    )


@app.command()
def main(
    servers: Annotated[str, typer.Option(help="Numbers of servers, separated by commas.")] = "1,2,4,8",
    candidates: Annotated[int, typer.Option(min=1, help="Candidates measured on each fleet.")] = 48,
    wait_s: Annotated[float, typer.Option(min=0.0, help="Seconds that a candidate waits on its server.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/fleets"),
) -> None:
    """Measure the throughput of loopback fleets."""
    numbers = [int(n) for n in servers.split(",")]
    header = {"candidates": candidates, "wait_s": wait_s}
    store = RunStore(out / "runs.jsonl", header, lambda line: line["servers"])
    start_s = time.monotonic()
    for n in numbers:
        if n not in store.lines:
            store.add(measure(n, candidates, wait_s))
            print(store.lines[n], flush=True)
    rows = [store.lines[n] for n in numbers]
    write_results(out, rows, table(rows), {"servers": numbers, **header}, time.monotonic() - start_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
