"""Recordings that stand in for hardware in AutoTVM: any of its tuners runs on one without a change.

    recording = load_recording("conv.jsonl.gz")
    task = recording.task()
    option = autotvm.measure_option(builder=ReplayBuilder(), runner=ReplayRunner(recording))
    XGBTuner(task).tune(n_trial=100, measure_option=option)

A recording is a landscape of an AutoTVM space in our own format (`tuners.landscape`). Its header names the task. The
digits of a line are positions in AutoTVM's knobs, in AutoTVM's order. `scripts/papers/collect_landscape.py` makes
recordings. A recording may list only a sample of the space. Its task then has a `multi_filter` that lets only the
sample pass. So every tuner knows without a measurement what it may propose, as it knows a template's constraints.
"""

# Pyright sees today's TVM, which has no AutoTVM:
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tvm import autotvm, topi
from tvm.autotvm.measure.measure import Builder, MeasureErrorNo, MeasureInput, MeasureResult, Runner
from tvm.autotvm.measure.measure_methods import BuildResult

from chameleon.search import Status, Trial
from tuners.config_space import plain
from tuners.landscape import LandscapeError, landscape_name, read_lines

assert topi  # the import registers the templates

_ERRORS = {
    Status.BUILD_ERROR: MeasureErrorNo.COMPILE_HOST,
    Status.RUN_ERROR: MeasureErrorNo.RUNTIME_DEVICE,
    Status.TIMEOUT: MeasureErrorNo.RUN_TIMEOUT,
}


class Answer(NamedTuple):
    """What a recording holds for one configuration.

    Attributes:
        costs: seconds of each repeat that counts; empty if the configuration failed.
        error_no: AutoTVM's number for the failure; 0 if there was none.
        message: why it failed.
        all_cost_s: seconds that building and running took when the landscape was recorded.
    """

    costs: tuple[float, ...]
    error_no: int
    message: str
    all_cost_s: float


@dataclass(frozen=True)
class Recording:
    """A landscape with all that AutoTVM needs to replay it.

    Attributes:
        header: the file's first line; its field `task` holds template, args and target.
        answers: what was recorded, by AutoTVM's index of the configuration.
        points: how many indices the space has. If the recording is a sample, there are fewer answers.
    """

    name: str
    header: Mapping[str, Any] = field(repr=False)
    answers: Mapping[int, Answer] = field(repr=False)
    points: int

    @property
    def complete(self) -> bool:
        """Whether every configuration of the space is on record."""
        return len(self.answers) == self.points

    @property
    def best_seconds(self) -> float:
        """The shortest time on record; a configuration's time is the mean of its repeats."""
        return min(sum(a.costs) / len(a.costs) for a in self.answers.values() if a.costs)

    def task(self) -> Any:
        """The AutoTVM task that was recorded; if the recording is a sample, the task's space is restricted to it.

        Raises:
            LandscapeError: if this TVM gives the template other knobs than were recorded.
        """
        task = make_task(self.header["task"])
        space = task.config_space
        lengths = [len(knob["values"]) for knob in self.header["knobs"]]
        if list(space.space_map) != [k["name"] for k in self.header["knobs"]] or list(space.dims) != lengths:
            raise LandscapeError(
                f"{self.name}: expected the recorded knobs {[k['name'] for k in self.header['knobs']]} with {lengths} "
                f"values, got knobs {list(space.space_map)} with {list(space.dims)} values from this TVM's template "
                f"{task.name}; replay with the TVM version that recorded it"
            )
        if not self.complete:
            listed = frozenset(tuple(plain(e) for e in _entities(space, i).values()) for i in self.answers)
            space.multi_filter(filter=lambda entities: tuple(plain(e) for e in entities.values()) in listed)
        return task


def make_task(spec: Mapping[str, Any]) -> Any:
    """Makes the AutoTVM task of `template`, `args` (tensors as `["TENSOR", shape, dtype]`) and `target`.

    `spec` may also hold `every`: a number n for some of the knobs. Such a knob keeps only every n-th value. This gives
    a smaller space of the same shape, which can be measured completely.
    """
    task = autotvm.task.create(spec["template"], args=_tuples(spec["args"]), target=spec["target"])
    for name, step in spec.get("every", {}).items():
        knob = task.config_space.space_map[name]
        knob.entities = knob.entities[::step]
    task.config_space.clear_cache()
    return task


def load_recording(path: Path | str) -> Recording:
    """Read a recorded landscape of an AutoTVM task.

    Raises:
        LandscapeError: if the file is not a landscape in our own format, does not name its task, or holds no success.
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0] if lines else {}
    if header.get("kind") != "landscape" or "task" not in header:
        raise LandscapeError(
            f"{path}: not a recording of an AutoTVM task: expected a landscape whose header has a task, got fields "
            f"{sorted(header)[:8]}; make one with scripts/papers/collect_landscape.py"
        )
    dims = [len(knob["values"]) for knob in header["knobs"]]
    weights = [math.prod(dims[:i]) for i in range(len(dims))]  # in AutoTVM's index the first knob changes fastest
    answers = {sum(d * w for d, w in zip(line["config"], weights, strict=True)): _answer(line) for line in lines[1:]}
    if not any(a.costs for a in answers.values()):
        raise LandscapeError(f"{path}: nothing to find: none of its {len(answers)} configurations has a valid time")
    return Recording(landscape_name(path), header, answers, math.prod(dims))


class ReplayBuilder(Builder):
    """A builder for replays: it builds nothing.

    Args:
        n_parallel: how many configurations AutoTVM hands over at once, as for the builder that this one replaces.
    """

    def __init__(self, n_parallel: int = 8) -> None:
        super().__init__(n_parallel=n_parallel)

    def build(self, measure_inputs: Sequence[MeasureInput]) -> list[BuildResult]:
        return [BuildResult("", (), None, 0.0) for _ in measure_inputs]


class ReplayRunner(Runner):
    """A runner for replays: it answers from a recording, failures included."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(n_parallel=1)
        self._recording = recording

    def set_task(self, task: Any) -> None:
        """Take the task for which the answers are.

        Raises:
            LandscapeError: if it is not the recorded one.
        """
        recorded = self._recording.header["task"]
        points = task.config_space.range_length
        if (task.name, tuple(task.args), points) != (
            recorded["template"],
            _tuples(recorded["args"]),
            self._recording.points,
        ):
            raise LandscapeError(
                f"{self._recording.name} is a recording of {recorded['template']} {recorded['args']} with "
                f"{self._recording.points} configurations, not of {task.name} {task.args} with {points}; "
                "tune the task that `Recording.task` makes"
            )
        super().set_task(task)

    def get_build_kwargs(self) -> dict[str, Any]:
        return {}

    def run(self, measure_inputs: Sequence[MeasureInput], build_results: Sequence[Any]) -> list[MeasureResult]:
        return [self._result(inp.config.index) for inp in measure_inputs]

    def _result(self, index: int) -> MeasureResult:
        answer = self._recording.answers.get(index)
        if answer is None:  # the tuner does not ask the space's filter
            error = ValueError(f"configuration {index} is not on record: the space's filter excludes it")
            return MeasureResult((str(error), error), MeasureErrorNo.INSTANTIATION_ERROR, 0.0, time.time())
        if answer.error_no:
            error = RuntimeError(answer.message)
            return MeasureResult((answer.message, error), answer.error_no, answer.all_cost_s, time.time())
        return MeasureResult(answer.costs, MeasureErrorNo.NO_ERROR, answer.all_cost_s, time.time())


def _answer(line: Mapping[str, Any]) -> Answer:
    trial = Trial.from_json(line)
    spent_s = float(sum(trial.timings.values()))
    if trial.seconds is None:
        return Answer((), int(line.get("error_no", _ERRORS[trial.status])), trial.message, spent_s)
    return Answer(tuple(line.get("costs") or [trial.seconds]), 0, "", spent_s)


def _entities(space: Any, index: int) -> dict[str, Any]:
    """AutoTVM's entities of an index. The space's filter is not asked, since AutoTVM would evaluate it everywhere."""
    found = {}
    for name, knob in space.space_map.items():
        index, digit = divmod(index, len(knob))
        found[name] = knob[digit]
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
