"""A process that writes trials into a store, and prints the number of each when it is on disk."""

from __future__ import annotations

import sys

from chameleon.jobs.records import Records
from chameleon.search import Status, Trial
from chameleon.store.place import Url
from tests.support.recorded_run import SPACE, TARGET


def write(url: str, model: str, first: int, count: int) -> None:
    from pathlib import Path

    with Records(Url(url) if "://" in url else Path(url), TARGET) as records:
        records.add_task("k1", "conv", SPACE)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(first, first + count):
            trial = Trial((number, 0), Status.OK, 1e-3 + number * 1e-6)
            records.append("k1", trial, model=model, elapsed_s=float(number))
            print(number, flush=True)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
