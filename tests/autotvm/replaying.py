"""A builder and a runner of AutoTVM that answer from a formula: the real tuning loop without the wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tvm import autotvm
from tvm.autotvm.measure import MeasureErrorNo, MeasureResult
from tvm.autotvm.measure.measure import Builder, Runner

Answer = Callable[[Any], "float | MeasureErrorNo"]


class NoBuilder(Builder):
    def __init__(self, n_parallel: int = 1) -> None:
        super().__init__(n_parallel=n_parallel)

    def build(self, measure_inputs: Any) -> list[None]:
        return [None for _ in measure_inputs]


class FormulaRunner(Runner):
    """Seconds of a configuration, or an error number, from a function of it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[int] = []

    def get_build_kwargs(self) -> dict[str, Any]:
        return {}

    def run(self, measure_inputs: Any, build_results: Any) -> list[MeasureResult]:
        self.asked += [inp.config.index for inp in measure_inputs]
        return [self.result(self.answer(inp.config)) for inp in measure_inputs]

    @staticmethod
    def result(answer: float | MeasureErrorNo) -> MeasureResult:
        if isinstance(answer, MeasureErrorNo):
            return MeasureResult(("a traceback", RuntimeError(f"made up: {answer.name}")), answer, 0.1, time.time())
        return MeasureResult((answer,) * 3, MeasureErrorNo.NO_ERROR, 0.1, time.time())


def formula_option(answer: Answer, n_parallel: int = 1) -> tuple[dict[str, Any], FormulaRunner]:
    runner = FormulaRunner(answer)
    return autotvm.measure_option(builder=NoBuilder(n_parallel), runner=runner), runner


def bowl(config: Any) -> float:
    """Seconds that grow with the distance of every split's innermost factor from 4."""
    seconds = 1e-3
    for name in config:
        size = getattr(config[name], "size", None)
        seconds *= 1 + (abs(size[-1] - 4) / 4 if size else 0)
    return seconds
