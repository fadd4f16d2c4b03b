"""`chameleon zoo`: tunes a list of models; a workload that several models share is tuned only once.

For this, all models of a target write their trials into the same records. The folder of a zoo holds, beside these and
the folders of its runs:

    zoo.json     its entries and what became of each, for those who watch and for the page
    zoo.lock     locked while the zoo is tuned
    report.html  the page about all runs, written at the end
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon.errors import ChameleonError, UsageError, unknown
from chameleon.files import slug
from chameleon.jobs.config import TuneConfig, tune_config
from chameleon.jobs.run_folder import JobSpec, TuneReport, Watch, finished_report
from chameleon.jobs.stages import Say
from chameleon.jobs.tune import tune_model
from chameleon.jobs.zoo_state import LOCK, EntryState, folder_of, store_of, write_state
from chameleon.locks import try_lock
from chameleon.measure.link import Toolchain
from chameleon.models.shapes import parse_dims, parse_shapes
from chameleon.store.place import Place

PLACE_KEYS = ("target", "tracker", "device_key", "cc", "sysroot")
"""What a target of a zoo consists of: what code is built for, with which compiler, and where it is measured."""
ENTRY_KEYS = ("model", "name", "input_shape", "dims", *PLACE_KEYS)
ZOO_KEYS = ("out", "store", "defaults", "targets", "models")
Ended = Callable[[str, Path | None, TuneReport | None, str], None]


@dataclass(frozen=True)
class ZooEntry:
    """One model of a zoo with its budget."""

    spec: JobSpec
    config: TuneConfig


@dataclass(frozen=True)
class Zoo:
    """A list of models, the folder of their runs, and the store of their records; None: files in the folder."""

    out: Path
    entries: Sequence[ZooEntry]
    store: Place | None = None


@dataclass(frozen=True)
class ZooResult:
    """The result of one entry: its report, or why it failed."""

    entry: ZooEntry
    report: TuneReport | None
    skipped: bool = False
    error: str = ""


def read_zoo(content: Mapping[str, Any], folder: Path = Path(), ray: str | None = None) -> Zoo:
    """Read a zoo file: every model for every target.

    Its keys are `out` (a folder), `store` (the URL of a database for all records), `defaults` (a preset for all),
    `targets` (a list) and `models` (a list). A target is a text, or a mapping with the keys of `PLACE_KEYS`, `name`
    and those of a preset. A model is a text, or a mapping with `model`, optionally `name`, `input_shape` (a shape, or
    shapes by input name), `dims` (sizes by name), the keys of `PLACE_KEYS`, and those of a preset. Where a model names
    its own target, `targets` do not count for it.

    Args:
        folder: of the zoo file; a model's file or glob is looked for there.
        ray: the address of a Ray cluster that measures for all entries without a tracker.

    Raises:
        UsageError: on unknown or missing keys, a glob without a file, or entries that would share a folder.
    """
    for key in content:
        if key not in ZOO_KEYS:
            raise unknown("key of a zoo file", str(key), ZOO_KEYS)
    models, targets = content.get("models"), content.get("targets") or [{}]
    if not isinstance(models, list) or not models or not all(isinstance(m, str) or _has_model(m) for m in models):
        raise UsageError("a zoo file needs `models`: a list of entries such as {model: resnet18, trials: 256}")
    if not isinstance(targets, list) or not all(isinstance(t, (str, dict)) for t in targets):
        raise UsageError("`targets` of a zoo file is a list of targets such as llvm, or {target: cuda, trials: 256}")
    out, store = folder_of(content), store_of(content)
    given = [one for m in models for one in _files(m if isinstance(m, dict) else {"model": m}, folder)]
    places = [t if isinstance(t, dict) else {"target": t} for t in targets]
    defaults = dict(content.get("defaults") or {})
    pairs = [(m, place) for m in given for place in ([{}] if any(k in m for k in PLACE_KEYS) else places)]
    entries = [_entry(out, store, defaults, place, m, ray) for m, place in pairs]
    _check_folders(entries)
    return Zoo(out, entries, store)


def _has_model(given: Any) -> bool:
    return isinstance(given, dict) and "model" in given


def _files(given: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a model: of a glob one for each file, in order; a file that there is with its whole path."""
    model = str(given["model"])
    if any(letter in model for letter in "*?["):
        whole = Path(model) if Path(model).is_absolute() else folder / model
        found = sorted(p for p in Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))) if p.is_file())
        if not found:
            raise UsageError(f"no file is like {model!r} in {folder.resolve()}, the folder of the zoo file")
        yield from ({**given, "model": str(path)} for path in found)
    else:
        yield {**given, "model": str(folder / model) if (folder / model).is_file() else model}


def _entry(
    out: Path,
    store: Place | None,
    defaults: dict[str, Any],
    place: Mapping[str, Any],
    given: Mapping[str, Any],
    ray: str | None,
) -> ZooEntry:
    preset = {**defaults, **{k: v for k, v in place.items() if k not in ("name", *PLACE_KEYS)}}
    config = tune_config(preset, {k: v for k, v in given.items() if k not in ENTRY_KEYS})
    where = {k: v for k, v in {**place, **given}.items() if k in PLACE_KEYS}
    model, target = str(given["model"]), where.get("target")
    target = json.dumps(target) if isinstance(target, dict) else target
    at = slug(str(place.get("name") or target or where.get("device_key") or "this-machine"))
    sysroot = where.get("sysroot")
    spec = JobSpec(
        model,
        target,
        out / slug(f"{given.get('name') or Path(model).stem}-{at}"),
        parse_shapes(given.get("input_shape")),
        tracker=where.get("tracker"),
        device_key=where.get("device_key"),
        ray=None if where.get("tracker") else ray,
        records=store or out / f"trials-{at}.jsonl",
        toolchain=Toolchain(where.get("cc"), Path(sysroot) if sysroot else None),
        dims=parse_dims(given.get("dims")),
    )
    return ZooEntry(spec, config)


def _check_folders(entries: Sequence[ZooEntry]) -> None:
    """Refuse two entries with one folder.

    Raises:
        UsageError: that names both.
    """
    first: dict[Path | None, JobSpec] = {}
    for spec in (entry.spec for entry in entries):
        other = first.setdefault(spec.out, spec)
        if other is not spec:
            raise UsageError(
                f"{other.model} and {spec.model} would share the folder {spec.out}; give one of them another `name`"
            )


def tune_zoo(zoo: Zoo, watch: Watch, say: Say, ended: Ended) -> list[ZooResult]:
    """Tune every model that is not finished; one that fails does not stop the others.

    Args:
        ended: told of each model that is done with: its name, folder, report, and why it failed.

    Raises:
        UsageError: if another process tunes a zoo in the same folder.
    """
    states = [EntryState(e.spec.model, str(e.spec.target or ""), _folder(e).name) for e in zoo.entries]
    results = []
    with _locked(zoo.out):
        write_state(zoo.out, states)
        for number, entry in enumerate(zoo.entries):
            say(f"[{number + 1}/{len(zoo.entries)}] {entry.spec.model}, folder {_folder(entry)}")
            states[number] = dataclasses.replace(states[number], state="running")
            write_state(zoo.out, states)
            result = _tune_entry(entry, watch, say)
            states[number] = dataclasses.replace(
                states[number], state="finished" if result.report else "failed", error=result.error
            )
            write_state(zoo.out, states)
            ended(entry.spec.model, _folder(entry), result.report, result.error)
            results.append(result)
    return results


def _tune_entry(entry: ZooEntry, watch: Watch, say: Say) -> ZooResult:
    if done := finished_report(_folder(entry), entry.config):
        say(f"{entry.spec.model}: finished before")
        return ZooResult(entry, done, skipped=True)
    try:
        report, _ = tune_model(entry.spec, entry.config, watch, say)
    except ChameleonError as error:
        say(f"error: {error}")
        return ZooResult(entry, None, error=str(error))
    return ZooResult(entry, report)


def _folder(entry: ZooEntry) -> Path:
    assert entry.spec.out is not None  # `read_zoo` gives every entry a folder
    return entry.spec.out


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of a zoo's folder; it ends with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("a")
    except OSError as error:
        raise UsageError(
            f"cannot write to the folder of the zoo, {out}: {error.strerror}; give another `out`"
        ) from error
    with lock:
        if not try_lock(lock.fileno(), 0):
            raise UsageError(f"another process tunes the zoo in {out}; `chameleon zoo --watch {out}` follows it")
        yield
