"""Every setting of the engine has a range, and a value outside of it is refused with a message that helps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chameleon.errors import UsageError
from chameleon.search import SEARCHERS, EarlyStopping, KnobSpace, make_searcher, option
from chameleon.search.ranges import Count, Share, Within, check_ranges

CONFIGS = {type(c): c for recipe in SEARCHERS.values() for c in recipe.options.values()}
FIELDS = [(kind, f.name) for kind in CONFIGS for f in dataclasses.fields(kind)]
SPACE = KnobSpace([option("o", range(9)), option("p", range(9)), option("q", range(9))])


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("value", [-3, math.nan, math.inf, "3", [1]])
def test_no_setting_takes_what_is_senseless_for_all_of_them(kind: type, name: str, value: Any) -> None:
    if name == "least_gain" and value == -3:
        return  # any finite number will do
    with pytest.raises(UsageError, match=rf"{name}\b.*got") as caught:
        dataclasses.replace(CONFIGS[kind], **{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("searcher", "options", "message"),
    [
        ("chameleon", {"explorer": {"walkers": -3}}, "walkers of AgentConfig to be an integer of at least 1, got -3"),
        ("chameleon", {"explorer": {"walkers": 2.5}}, r"walkers .* an integer of at least 1, got 2\.5"),
        ("chameleon", {"explorer": {"walkers": True}}, "walkers .* an integer of at least 1, got True"),
        ("chameleon", {"explorer": {"clip": 0}}, "clip .* a number above 0, got 0"),
        ("chameleon", {"sampler": {"least": 0}}, "least .* an integer of at least 1, got 0"),
        ("chameleon", {"sampler": {"least": 9, "most": 8}}, "least <= most .* got least=9, most=8"),
        ("chameleon", {"model": {"eta": 1.5}}, r"eta .* a number above 0 and at most 1, got 1\.5"),
        (
            "chameleon",
            {"planner": {"select": "best"}},
            "select .* to be 'clusters' or 'top', got 'best'",
        ),
        ("chameleon", {"planner": {"synthesis": 1}}, "synthesis .* to be False or True, got 1"),
        ("annealing", {"picker": {"epsilon": 2}}, "epsilon .* a number of at least 0 and at most 1, got 2"),
        ("genetic", {"genetic": {"population": 0}}, "population .* at least 1, got 0"),
    ],
)
def test_the_message_says_which_setting_what_was_expected_and_what_came(
    searcher: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_searcher(searcher, SPACE, 0, **options)


@pytest.mark.parametrize(("patience", "min_trials"), [(0, 0), (-1, 0), (1, -1), (2.5, 0)])
def test_early_stopping_has_ranges(patience: Any, min_trials: Any) -> None:
    with pytest.raises(UsageError, match="of EarlyStopping to be an integer of at least"):
        EarlyStopping(patience, min_trials)


@given(st.floats(-5, 5), st.floats(-2, 2), st.floats(0, 3), st.booleans(), st.booleans(), st.integers(-6, 6))
@settings(derandomize=True, deadline=None)
def test_ranges_by_their_definition(
    value: float, low: float, width: float, above: bool, whole: bool, integer: int
) -> None:
    for x in (value, integer, low, low + width):
        inside = (low < x if above else low <= x) and x <= low + width and (isinstance(x, int) or not whole)
        within = Within(low, low + width, above, whole)
        if inside:
            assert within.checked("it", x) == x
        else:
            with pytest.raises(UsageError):
                within.checked("it", x)


def test_numbers_of_numpy_become_plain() -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        count: Count
        share: Share

        def __post_init__(self) -> None:
            check_ranges(self)

    globals()["Settings"] = Settings
    made = Settings(np.int32(3), np.float32(0.5))  # type: ignore[arg-type]
    assert [type(made.count), type(made.share)] == [int, float]
    assert made == Settings(3, 0.5)


@pytest.mark.parametrize("explorer", [{"walkers": 1, "steps": 1}, {"walkers": 3, "steps": 1, "elite": 1.0, "pool": 1}])
def test_the_smallest_settings_work(explorer: dict[str, Any]) -> None:
    """A minibatch is never empty, since the mean of nothing is no number."""
    searcher = make_searcher("chameleon", SPACE, 0, explorer={**explorer, "hidden": 1}, model={"trees": 1})
    for _ in range(6):
        rows = searcher.ask(8)
        searcher.tell([_trial(row) for row in rows])
    weights = searcher.state()["planner"]["explorer"]["policy"]["weights"]
    assert all(np.isfinite(w).all() for w in weights)


def _trial(row: np.ndarray) -> Any:
    from chameleon.search import Status, Trial

    return Trial(tuple(row), Status.OK, 1.0 + float(row.sum()))
