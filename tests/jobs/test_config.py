"""Presets and flags."""

import numpy as np
import pytest

from chameleon.errors import UsageError
from chameleon.jobs.config import TuneConfig, duration_s, preset_names, read_preset, read_yaml, tune_config
from chameleon.search import SEARCHERS, KnobSpace, make_searcher, option


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (45, 45)])
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3m", "ten", "10 minutes", "1m30s"])
def test_no_durations(text):
    with pytest.raises(UsageError, match="expected a duration"):
        duration_s(text)


def test_flags_override_the_preset_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("searcher: release\nbatch: 4\nallocation: {alpha: 0.5}\n")
    config = tune_config(read_yaml(file), {"searcher": "random", "seed": None, "trials": 7})
    assert (config.searcher, config.batch, config.seed, config.trials) == ("random", 4, TuneConfig().seed, 7)
    assert config.allocation.alpha == 0.5


def test_asking_for_trials_lifts_the_default_bound_on_time():
    assert tune_config({}, {}).time_budget_s == TuneConfig().time_budget_s
    assert tune_config({}, {"trials": 100}).time_budget_s is None
    assert tune_config({}, {"trials": 100, "time_budget": "2m"}).time_budget_s == 120


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ({"sercher": "random"}, "did you mean searcher"),
        ({"batch": "many"}, "expected int"),
        ({"batch": 0}, "at least 1"),
        ({"allocation": 3}, "key: value"),
        ({"allocation": {"alfa": 1}}, "did you mean alpha"),
        ({"time_budget": "soon"}, "expected a duration"),
        ({"confirm": {"round": 1}}, "did you mean rounds"),
        ({"confirm": {"contenders": 0}}, "at least 1"),
    ],
)
def test_bad_presets_are_refused_with_what_is_allowed(preset, says):
    with pytest.raises(UsageError, match=says):
        tune_config(preset, {})


def test_unreadable_presets(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for name, says in (("none.yaml", "cannot read"), ("list.yaml", "key: value"), ("broken.yaml", "not valid YAML")):
        with pytest.raises(UsageError, match=says):
            read_yaml(tmp_path / name)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_that_is_shipped_is_valid(name):
    config = tune_config(read_preset(name), {})
    assert config.searcher in SEARCHERS
    make_searcher(config.searcher, KnobSpace([option("any", [0, 1])]), np.random.default_rng(0), **config.options)


def test_a_preset_is_named_or_a_file(tmp_path):
    assert {"quick", "release"} <= set(preset_names())
    assert read_preset("quick")["batch"] == 8
    file = tmp_path / "mine.yaml"
    file.write_text("batch: 4\n")
    assert read_preset(str(file)) == {"batch": 4}
    with pytest.raises(UsageError, match="did you mean quick"):
        read_preset("quik")
    with pytest.raises(UsageError, match="cannot read"):
        read_preset(str(tmp_path / "missing.yaml"))


def test_a_flag_can_share_what_a_preset_keeps_apart():
    assert tune_config({}, {"share": None}).share
    assert not tune_config({"share": False}, {"share": None}).share
    assert tune_config({"share": False}, {"share": True}).share
    with pytest.raises(UsageError, match="'share': expected bool"):
        tune_config({"share": "no"}, {})


@pytest.mark.parametrize(("given", "share"), [("1%", 0.01), (" 0.5 % ", 0.005), ("0.02", 0.02), (0.02, 0.02)])
def test_a_share_is_a_number_or_a_percentage(given, share):
    assert tune_config({"until": given}, {}).until == pytest.approx(share)


@pytest.mark.parametrize("given", ["0", "100%", "-1%", "soon", "1.5"])
def test_what_is_no_share_is_refused(given):
    with pytest.raises(UsageError, match="a share such as 1%"):
        tune_config({}, {"until": given})
