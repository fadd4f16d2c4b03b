"""`run_replay`: the JSON it promises, its tables and plot, and what wrong input gets before anything runs."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from chameleon.errors import UsageError
from chameleon.report import print_replay, run_replay, summarise
from tuners.replay import LandscapeError, ReplayRun, load_landscape, replay

DATA = Path(__file__).parent / "data"
FILES = [DATA / "tiny_lines.jsonl.gz", DATA / "small_t4.t4.json.gz"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """JSON, text and plot of one small comparison; random is named twice and runs once."""
    folder = tmp_path_factory.mktemp("replay") / "new"
    console = Console(file=io.StringIO(), width=140)
    run_replay(
        FILES, ["random", "grid", "random"], 60, 3, folder / "r.json", folder / "r.png", jobs=1, console=console
    )
    return json.loads((folder / "r.json").read_text()), console.file.getvalue(), folder / "r.png"  # type: ignore[attr-defined]


def test_json_is_what_was_promised(outputs: tuple[dict, str, Path]) -> None:
    document = outputs[0]
    assert list(document) == ["results"]
    assert [(r["landscape"], r["searcher"]) for r in document["results"]] == [
        ("tiny_lines", "random"),
        ("tiny_lines", "grid"),
        ("small_t4", "random"),
        ("small_t4", "grid"),
    ]
    fields = [
        "landscape",
        "searcher",
        "seeds",
        "trials",
        "space_size",
        "fraction",
        "trials_to_95",
        "engine_s_per_trial",
    ]
    for result in document["results"]:
        assert list(result) == fields
        assert (result["seeds"], result["trials"]) == (3, 60)
        assert result["space_size"] == (288 if result["landscape"] == "tiny_lines" else 1152)
        assert list(result["fraction"]) == ["25", "50", "60"]
        assert 0 < result["fraction"]["25"] <= result["fraction"]["50"] <= 1
        assert result["engine_s_per_trial"] > 0


def test_json_numbers_are_those_of_single_runs(outputs: tuple[dict, str, Path]) -> None:
    landscape = load_landscape(FILES[0])
    runs = [replay(landscape, "random", trials=60, seed=seed) for seed in range(3)]
    result = outputs[0]["results"][0]
    for mark in ("25", "50"):
        best = [np.nanmin(run.values[: int(mark)]) for run in runs]
        assert result["fraction"][mark] == pytest.approx(
            statistics.mean(np.nanmin(landscape.values) / b for b in best)
        )


def test_tables_and_plot(outputs: tuple[dict, str, Path]) -> None:
    _, text, plot = outputs
    for part in (
        "tiny_lines: 288 configurations, 60 trials, 3 seeds",
        "small_t4",
        "Mean over 2 landscapes",
        "@25",
        "@50",
    ):
        assert part in text
    assert "@100" not in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def made(fractions: list[float], seed: int) -> ReplayRun:
    curve = np.maximum.accumulate(fractions)
    return ReplayRun("l", "s", seed, 1 / np.maximum(curve, 1e-9), curve, 0.5, 0)


def test_summary_by_hand() -> None:
    landscape = load_landscape(FILES[0])
    ended = [0.2] * 9 + [0.99]  # ten trials, then the space was exhausted: flat from there
    slow = [0.0] * 30 + [0.5] * 69 + [0.96]
    runs = [made(ended, 0), made(slow, 1), made([0.4] * 100, 2)]
    summary = summarise(landscape, runs, 100)
    means = {25: (0.99 + 0 + 0.4) / 3, 50: (0.99 + 0.5 + 0.4) / 3, 100: (0.99 + 0.96 + 0.4) / 3}
    assert summary.fraction == pytest.approx(means)
    assert summary.trials_to_95 == 100  # 10, 100, never
    assert summary.engine_s_per_trial == pytest.approx(1.5 / 210)
    assert summary.curves.shape == (3, 100)
    assert summarise(landscape, runs[2:] + runs[:1], 100).trials_to_95 is None  # the median of 10 and never
    assert summarise(landscape, runs[2:], 100).to_json()["trials_to_95"] is None


def test_never_is_shown() -> None:
    console = Console(file=io.StringIO(), width=140)
    print_replay([summarise(load_landscape(FILES[0]), [made([0.4] * 30, 0)], 30)], 1, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "never" in text
    assert "Mean over" not in text


def test_wrong_usage_shows_before_anything_runs(tmp_path: Path) -> None:
    run = lambda **changes: run_replay(**{"files": FILES, "searchers": ["random"], **changes})  # noqa: E731
    with pytest.raises(UsageError, match="annealing"):
        run(searchers=["random", "anealing"])
    with pytest.raises(UsageError, match="--trials must be at least 1, got 0"):
        run(trials=0)
    with pytest.raises(UsageError, match="--jobs must be at least 1, got 0"):
        run(jobs=0)
    with pytest.raises(UsageError, match="nothing to replay"):
        run(files=[])
    with pytest.raises(UsageError, match=r"cannot draw .*expected an extension out of .*png.*got '\.txt'"):
        run(plot=tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        run(json_out=tmp_path / "file" / "r.json")
    with pytest.raises(LandscapeError, match="No such file"):
        run(files=[tmp_path / "missing.json"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("trials", "columns"), [(20, ["@20"]), (25, ["@25"]), (30, ["@25", "@30"]), (1, ["@1"])])
def test_the_last_mark_is_always_shown(trials: int, columns: list[str]) -> None:
    console = Console(file=io.StringIO(), width=140)
    run_replay(FILES[:1], ["random"], trials, 1, jobs=1, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [word for word in text.split() if word.startswith("@")] == columns
