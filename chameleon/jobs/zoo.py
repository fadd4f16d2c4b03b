"""`chameleon zoo`: tunes a list of models; a workload that several models share is tuned only once.

For this, all models of a target write their trials into the same records file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError, unknown
from chameleon.files import slug
from chameleon.jobs.config import TuneConfig, tune_config
from chameleon.jobs.run_folder import JobSpec, TuneReport, Watch, finished_report
from chameleon.jobs.stages import Say
from chameleon.jobs.tune import tune_model
from chameleon.models.shapes import parse_dims, parse_shapes
from chameleon.store.place import Place, place_of

ENTRY_KEYS = ("model", "target", "input_shape", "dims")
ZOO_KEYS = ("out", "store", "defaults", "models")


@dataclass(frozen=True)
class ZooEntry:
    """One model of a zoo with its budget."""

    spec: JobSpec
    config: TuneConfig


@dataclass(frozen=True)
class ZooResult:
    """The result of one entry: its report, or why it failed."""

    entry: ZooEntry
    report: TuneReport | None
    skipped: bool = False
    error: str = ""


def read_zoo(content: Mapping[str, Any]) -> list[ZooEntry]:
    """Read the entries of a zoo file.

    Its keys are `out` (a folder), `store` (the URL of a database for all records), `defaults` (a preset for all) and
    `models`: a list of mappings with `model`, optionally `target`, `input_shape` (a shape, or shapes by input name)
    and `dims` (sizes by name), and any key of a preset.

    Raises:
        UsageError: on unknown or missing keys.
    """
    for key in content:
        if key not in ZOO_KEYS:
            raise unknown("key of a zoo file", str(key), ZOO_KEYS)
    models = content.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) and "model" in m for m in models):
        raise UsageError("a zoo file needs `models`: a list of entries such as {model: resnet18, trials: 256}")
    out = Path(content.get("out", "runs/zoo"))
    store = place_of(str(content["store"])) if content.get("store") else None
    return [_entry(out, store, dict(content.get("defaults") or {}), m) for m in models]


def _entry(out: Path, store: Place | None, defaults: dict[str, Any], given: Mapping[str, Any]) -> ZooEntry:
    config = tune_config(defaults, {k: v for k, v in given.items() if k not in ENTRY_KEYS})
    model, target = str(given["model"]), given.get("target")
    target = json.dumps(target) if isinstance(target, dict) else target
    place = slug(target) if target else "this-machine"
    spec = JobSpec(
        model,
        target,
        out / slug(f"{Path(model).stem}-{place}"),
        parse_shapes(given.get("input_shape")),
        records=store or out / f"trials-{place}.jsonl",
        dims=parse_dims(given.get("dims")),
    )
    return ZooEntry(spec, config)


def tune_zoo(entries: Sequence[ZooEntry], watch: Watch, say: Say) -> list[ZooResult]:
    """Tune every model that is not finished; one that fails does not stop the others."""
    results = []
    for number, entry in enumerate(entries, start=1):
        assert entry.spec.out is not None  # `read_zoo` gives every entry a folder
        done = finished_report(entry.spec.out, entry.config)
        say(f"[{number}/{len(entries)}] {entry.spec.model}{': finished before' if done else ''}")
        if done:
            results.append(ZooResult(entry, done, skipped=True))
            continue
        try:
            report, _ = tune_model(entry.spec, entry.config, watch, say)
        except ChameleonError as error:
            say(f"error: {error}")
            results.append(ZooResult(entry, None, error=str(error)))
        else:
            results.append(ZooResult(entry, report))
    return results
