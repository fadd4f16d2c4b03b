"""Teachers: what was measured of other tasks, in this run and in earlier ones, for the first trials of a new task.

`chameleon.search.kin` says how a task learns from it. Here it is found: in the records of a run each task line holds
the knobs of its space, so nothing of the other network has to be loaded or lowered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from chameleon.errors import UsageError
from chameleon.jobs.records import RECORDS, Records, RecordsError
from chameleon.search import KnobSpace, Trial

logger = logging.getLogger("chameleon")

Teacher = tuple[KnobSpace, Sequence[Trial]]


def taught_by(records: Records, without: Sequence[str] = ()) -> list[Teacher]:
    """The tasks on record that have a successful trial, in any environment.

    Args:
        without: keys of tasks; what was measured of them in the records' own environment is left out.
    """
    found = []
    for key, task, own in records.histories():
        trials = [t for t in task.trials if t.seconds is not None and t.config not in task.wrong]
        if trials and not (own and key in without) and (space := task.knob_space()) is not None:
            found.append((space, trials))
    return found


def earlier_runs(folder: Path, target: str, given: Sequence[Path]) -> list[Teacher]:
    """The tasks of earlier runs for the same target.

    Args:
        folder: of this run. The runs beside it teach as well, as far as they can be read.
        given: folders of further runs, or their records.

    Raises:
        UsageError: if one of those `given` holds no records.
        RecordsError: if its records cannot be read, or are of another target.
    """
    found: list[Teacher] = []
    asked = [path / RECORDS if path.is_dir() else path for path in given]
    for path in asked:
        if not path.is_file():
            raise UsageError(
                f"--learn-from: expected a folder of a run, with its {RECORDS}, or such a file; got {path}"
            )
        found += _read(path, target)
    for path in _beside(folder, asked):
        try:
            found += _read(path, target)
        except (RecordsError, OSError) as error:  # of another target, most often
            logger.debug("nothing is learnt from %s: %s", path, error)
    return found


def _beside(folder: Path, asked: Sequence[Path]) -> Iterator[Path]:
    known = {path.resolve() for path in (*asked, folder / RECORDS)}
    yield from (p for p in sorted(folder.resolve().parent.glob(f"*/{RECORDS}")) if p.resolve() not in known)


def _read(path: Path, target: str) -> list[Teacher]:
    with Records(path, target, read_only=True) as records:
        return taught_by(records)
