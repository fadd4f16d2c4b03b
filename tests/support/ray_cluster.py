"""Measurers of made-up kernels for the nodes of a cluster, some of which fail to build."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import meta_schedule as ms

from scripts.common.ray_cluster import Sleeper, Sleeping


class _Failing(Sleeper):
    """Builds as the other one does, but kernels whose attribute `how` is `fail` do not build."""

    def build(self, inputs: Sequence[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        failed = ms.builder.BuilderResult(None, "build_error: made to fail")
        failing = [given.mod.attrs is not None and given.mod.attrs.get("how") == "fail" for given in inputs]
        return [failed if fails else built for fails, built in zip(failing, super().build(inputs), strict=True)]


class _SleepingOrFailing(Sleeping):
    def sleeper(self) -> Sleeper:
        return _Failing(self.build_s, self.run_s)


sleeping_measurer = _SleepingOrFailing(build_s=0.0, run_s=0.3)
"""Each candidate takes 0.3 s to run, and no time to build."""
