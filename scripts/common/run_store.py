"""A file to which finished runs are appended, so that an experiment that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError
from chameleon.manifest import write_manifest
from chameleon.workers.pool import PoolConfig, WorkerPool
from tuners.landscape import read_lines, write_lines

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}


class RunStore:
    """The file of an experiment: a header that says how all runs were made, then a line for each finished run.

    Raises:
        ChameleonError: if the runs in the file were made in another way.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], key: Callable[[Mapping[str, Any]], Hashable]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._key = path, key
        if not path.exists():
            write_lines([header], path)
        text = path.read_text()
        if not text.endswith("\n"):  # a writer was killed in the middle of a line
            path.write_text(text[: text.rfind("\n") + 1])
        found, *lines = read_lines(path)
        if found != json.loads(json.dumps(header)):
            raise ChameleonError(f"{path} holds runs made with {found}, asked for were {header}; give another --out")
        self.lines = {key(line): line for line in lines}

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a finished run to the file."""
        self.lines[self._key(line)] = dict(line)
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def fill(self, requests: Mapping[Any, Any], config: PoolConfig) -> list[dict[str, Any]]:
        """Return the lines of all requests, in their order.

        A request that is not on record is run first: the pool's target makes one line of it.

        Raises:
            ChameleonError: if a run failed.
        """
        missing = [request for key, request in requests.items() if key not in self.lines]
        with WorkerPool(config) as pool:
            for done, (request, outcome) in enumerate(_mapped(pool, missing, config.n_workers), start=1):
                if not outcome.ok:
                    raise ChameleonError(f"a run failed: {request}: {outcome.message}")
                self.add(outcome.value)
                print(f"{done}/{len(missing)} runs, last took {outcome.wall_s:.1f} s: {tuple(request)}", flush=True)
        return [self.lines[key] for key in requests]


def _mapped(pool: WorkerPool, requests: Sequence[Any], at_once: int) -> Iterator[tuple[Any, Any]]:
    """Requests and outcomes, as many at a time as there are workers, so that little is lost if it is stopped."""
    for start in range(0, len(requests), at_once):
        batch = requests[start : start + at_once]
        yield from zip(batch, pool.map(batch), strict=True)


def write_results(
    out: Path, rows: Sequence[Mapping[str, Any]], text: str, arguments: Mapping[str, Any], took_s: float
) -> None:
    """Write `results.json`, `table.md` and `manifest.json` of an experiment, and print the table.

    Args:
        took_s: seconds that the runs took.
    """
    (out / "results.json").write_text(json.dumps({"results": rows}, indent=1) + "\n")
    (out / "table.md").write_text(text)
    write_manifest(out / "manifest.json", {**arguments, "took_s": round(took_s, 1)})
    print(text)
