"""AutoTVM's features of programs as the searcher's second look sees them."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon.errors import UsageError
from tests.autotvm.templates import create, kind_task
from tests.autotvm.test_tuner import MODEL, SMALL, tune
from tuners.autotvm import ChameleonTuner
from tuners.config_space import ConfigKnobs
from tuners.template_features import TemplateFeatures

pytestmark = pytest.mark.autotvm


@pytest.mark.parametrize("kind", ["itervar", "curve"])
def test_each_configuration_has_one_row_of_a_fixed_width(kind):
    task = create("chameleon/matmul", 64, 64)
    knobs = ConfigKnobs(task.config_space)
    rows = knobs.space.rows(0, 12)
    found = TemplateFeatures(task, knobs, kind)(rows)
    assert found.shape[0] == 12
    assert np.isfinite(found).any(axis=1).all()
    assert len(np.unique(found, axis=0)) > 6
    again = TemplateFeatures(task, knobs, kind)
    np.testing.assert_array_equal(found, np.vstack([again(rows[i : i + 1]) for i in range(11, -1, -1)])[::-1])


def test_what_the_template_refuses_has_no_features_and_is_not_instantiated_twice(monkeypatch):
    task = kind_task("invalid")
    knobs = ConfigKnobs(task.config_space)
    programs, rows = TemplateFeatures(task, knobs, "itervar"), knobs.space.rows(0, knobs.space.size)
    found = programs(rows)
    calls, instantiate = [], task.instantiate
    monkeypatch.setattr(task, "instantiate", lambda config: calls.append(config) or instantiate(config))
    refused = [programs.refusal(row) is not None for row in rows]
    assert not calls
    assert 0 < sum(refused) < len(rows)
    assert refused == np.isnan(found).all(axis=1).tolist()


@pytest.mark.parametrize("kind", ["itervar", "curve"])
def test_a_tuner_with_program_features_runs_and_repeats(kind):
    task = create("chameleon/matmul", 64, 64)

    def asked():
        return tune(ChameleonTuner(task, program_features=kind, explorer=SMALL, model=MODEL), 40, n_parallel=4)

    first = asked()
    assert len(set(first)) == 40
    assert asked() == first


def test_other_features_are_refused():
    with pytest.raises(UsageError, match="itervar"):
        ChameleonTuner(create("chameleon/matmul", 64, 64), program_features="itervars")
