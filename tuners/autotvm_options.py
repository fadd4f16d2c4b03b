"""What scripts hand to AutoTVM's own tuners: their options, and logs as names of files."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chameleon.errors import UsageError
from chameleon.search import SEARCHERS
from tuners.transfer import Record

logger = logging.getLogger(__name__)

_XGB = ("plan_size", "feature_type", "loss_type", "num_threads", "optimizer", "diversity_filter_ratio", "log_interval")
_GENETIC = ("pop_size", "elite_num", "mutation_prob")
_MEANING = {
    "plan_size": ("picker", "plan"),
    "pop_size": ("genetic", "population"),
    "elite_num": ("genetic", "elite"),
    "mutation_prob": ("genetic", "mutation"),
}
"""The options of AutoTVM's tuners that some of our searchers have too: their component and setting."""


def translated(task_name: str, searcher: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a searcher, where some may be those of AutoTVM's `XGBTuner` or `GATuner`.

    Where the searcher has the same setting, it gets the value. Otherwise the option is left out, and a line in the log
    says so.
    """
    recipe = SEARCHERS.get(searcher)
    parts = (*recipe.options, recipe.former) if recipe else ()
    found = {name: value for name, value in options.items() if name not in (*_XGB, *_GENETIC)}
    ignored = []
    for name in (name for name in options if name not in found):
        part, setting = _MEANING.get(name, ("", ""))
        given = found.get(part, {})
        if part in parts and isinstance(given, Mapping):
            found[part] = {setting: options[name], **given}
        else:
            ignored.append(f"{name}={options[name]!r:.40}")
    if ignored:
        logger.warning(
            "%s: options of AutoTVM's tuners that %s has no use for: %s", task_name, searcher, ", ".join(ignored)
        )
    return found


def records_of(data_set: Iterable[Record] | Path | str) -> list[Record]:
    """The records of AutoTVM: as given, or from the log of this name.

    Raises:
        UsageError: if there is no such file, it is no log of AutoTVM, or the records are none.
    """
    if isinstance(data_set, (str, Path)):
        return _from_log(Path(data_set))
    try:
        records = list(data_set)
    except TypeError:
        raise _wrong(data_set) from None
    for record in records:
        if not (isinstance(record, (tuple, list)) and len(record) == 2 and hasattr(record[0], "config")):
            raise _wrong(record)
    return records


def _from_log(path: Path) -> list[Record]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a log of AutoTVM")
    try:
        return list(importlib.import_module("tvm.autotvm.record").load_from_file(str(path)))
    except Exception as error:  # AutoTVM checks nothing, so a line of anything else may raise anything
        raise UsageError(
            f"{path}: expected a log of AutoTVM, one record a line; a line of it gave: {error!r}"
        ) from error


def _wrong(value: Any) -> UsageError:
    return UsageError(
        "expected the name of a log of AutoTVM, or its records, which are pairs of MeasureInput and MeasureResult, "
        f"got {value!r:.80}"
    )
