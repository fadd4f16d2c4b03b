"""The ablation in its small form, and what its variants change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon.search import KnobSpace, make_searcher, option, split
from scripts.tuning.ablation import REFERENCE, VARIANTS, Variant, described, prepared, summarise
from tests.support.scripts import ROOT, run_module
from tuners.landscape import load_landscape

KNOBS = (split("s", 16, 3), option("o", [1, 2, 4, 8]))
TINY = str(ROOT / "tests/data/tiny_lines.jsonl.gz")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_made(name: str) -> None:
    variant = VARIANTS[name]
    space = KnobSpace([described(k, variant.features) for k in KNOBS])
    assert len(make_searcher(REFERENCE, space, np.random.default_rng(0), **variant.options).ask(4)) == 4


def settings(variant: Variant) -> dict[str, Any]:
    """All settings of the searcher that a variant makes, by component and name, and its features."""
    made = make_searcher(REFERENCE, KnobSpace(KNOBS), 0, **variant.options).state()["searcher"]
    found = {f"{part}.{k}": v for part, of in made.items() if isinstance(of, dict) for k, v in of.items()}
    if "walkers" not in made["explorer"]:  # another explorer, whose settings have other meanings
        found = {k: v for k, v in found.items() if not k.startswith("explorer.")} | {"explorer": "annealing"}
    return {**found, "features": variant.features}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_differs_in_one_setting(name: str) -> None:
    ours, other = settings(VARIANTS[REFERENCE]), settings(VARIANTS[name])
    if "explorer" in other:
        ours = {k: v for k, v in ours.items() if not k.startswith("explorer.")}
    differ = [k for k in ours.keys() | other.keys() if ours.get(k) != other.get(k)]
    assert len(differ) == (name != REFERENCE), differ


def test_no_two_variants_are_the_same() -> None:
    every = [json.dumps(settings(variant), sort_keys=True) for variant in VARIANTS.values()]
    assert len(set(every)) == len(every)


def test_features_by_hand() -> None:
    tile, unroll = split("s", 4, 2), option("o", [1, 2, 6])  # (1, 4), (2, 2), (4, 1)
    assert tile.features.tolist() == [[0, 2, 2], [1, 1, 2], [2, 0, 2]]
    assert described(tile, "no products").features.tolist() == [[0, 2], [1, 1], [2, 0]]
    assert described(unroll, "no powers").features.shape == (3, 2)
    assert described(unroll, "position").features.tolist() == [[0], [1], [2]]
    assert described(tile, "one-hot").features.tolist() == np.eye(3).tolist()
    assert described(tile, "meaning").features is tile.features


def test_other_features_are_the_same_landscape() -> None:
    plain, other = load_landscape(TINY), prepared(TINY, "one-hot")
    np.testing.assert_array_equal(plain.configs, other.configs)
    np.testing.assert_array_equal(plain.values, other.values)


def test_differences_by_hand() -> None:
    lines = [
        {"variant": name, "landscape": where, "seed": seed, "fractions": [value], "engine_s": 0.1}
        for name, value in (("chameleon", 0.5), ("uniform walk", 0.25))
        for where in ("a", "b")
        for seed in (0, 1)
    ]
    row = summarise(lines, [1])[1]
    assert (row["fraction_1"]["mean"], row["difference_1"]["mean"]) == (0.25, -0.25)
    assert row["difference_1"]["high"] == -0.25


@pytest.mark.slow
def test_the_small_form(tmp_path: Path) -> None:
    arguments = (TINY, "--groups", "synthesis", "--seeds", 1, "--trials", 24, "--out", tmp_path)
    for expected in (2, 0):  # a second call finds all runs on record
        ran = run_module("scripts.tuning.ablation", *arguments)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("runs, last took") == expected
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["variant"] for row in results] == ["chameleon", "no synthesis"]
    assert all(0 < row["fraction_24"]["mean"] <= 1 for row in results)
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["seeds"] == 1
    assert "| chameleon | chameleon |" in (tmp_path / "table.md").read_text()
