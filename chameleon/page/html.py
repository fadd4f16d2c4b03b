"""The page as HTML: one file without a link to anything else. Jinja escapes whatever comes from a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from chameleon.page.charts import HEIGHT, WIDTH, chart
from chameleon.page.facts import RunFacts, TaskFacts, TimeSpent, to_json
from chameleon.store.place import Place
from chameleon.wording import ratio_text, speed_text, time_text

PARTS = {
    "search_s": "choosing and learning",
    "build_s": "building",
    "run_s": "timing",
    "confirm_s": "timing the best again",
    "rest_s": "the rest: waiting",
}
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
LARGEST_PICTURE = 4_000_000
"""Bytes of a memory picture that go into the page; a larger one is only named."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing but what is in it. A script in it would not run."""


def render(runs: Sequence[RunFacts], source: Place, *, refresh_s: int | None = None) -> str:
    """The page.

    Args:
        source: that was reported on; the pictures are in this folder, or in the folders of its runs.
        refresh_s: after how many seconds a browser asks for the page again; None: never.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"us": us, "percent": percent, "seconds": seconds, "text": text, "ratio": ratio_text}
    environment.globals |= {"chart": chart, "width": WIDTH, "height": HEIGHT, "policy": POLICY, "speed": speed_text}
    shown = [
        {
            **run,
            "parts": _parts(facts.time),
            "picture": _picture(facts, source),
            "algorithms": _algorithms(facts.tasks),
        }
        for run, facts in zip(to_json(runs)["runs"], runs, strict=True)
    ]
    for run, facts in zip(shown, runs, strict=True):
        run["curve"], curves = facts.curve, [task.curve for task in facts.tasks]
        run["tasks"] = [{**t, "curve": curve} for t, curve in zip(run["tasks"], curves, strict=True)]
    name = source.resolve().name if isinstance(source, Path) else str(source)
    return environment.get_template("page.html.jinja").render(runs=shown, name=name, refresh_s=refresh_s)


def us(value: float | None) -> str:
    """A time in microseconds with its unit; a dash where there is none."""
    return time_text(value / 1e3) if value else "-"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def seconds(value: float) -> str:
    """A duration: `12.3 s`, `4 min 5 s`, `2 h 13 min`."""
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def text(value: Any) -> str:
    """A value of a file as people read it: plain text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(spent: TimeSpent) -> list[dict[str, Any]]:
    """The parts of the tuning time, with their shares of all of them."""
    found = {name: getattr(spent, name) for name in PARTS}
    total_s = sum(value or 0.0 for value in found.values())
    return [
        {"id": name, "what": PARTS[name], "seconds": value, "share": value / total_s if total_s else 0.0}
        for name, value in found.items()
        if value is not None
    ]


def _algorithms(tasks: Sequence[TaskFacts]) -> list[dict[str, Any]]:
    """The algorithms of the best schedules: of how many kernels, and their share of the time of all kernels."""
    shares: dict[str, list[float]] = {}
    for task in tasks:
        if task.share is not None:
            shares.setdefault(task.algorithm or "as written", []).append(task.share)
    return [{"name": name, "kernels": len(of), "share": sum(of)} for name, of in shares.items()]


def _picture(facts: RunFacts, folder: Place) -> str | None:
    """The memory picture as the source of an image, inside of which no script runs; None without one."""
    if facts.memory is None or not isinstance(folder, Path):
        return None
    places = (folder / facts.memory, folder / facts.folder / facts.memory)
    path = next((p for p in places if p.is_file() and p.stat().st_size <= LARGEST_PICTURE), None)
    return path and f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
