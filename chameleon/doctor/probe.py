"""The part of the doctor that uses TVM.

It runs in a process of its own, because a broken TVM may crash it. Before each step it prints which step comes. So a
crash is reported with the step in which it happened.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from typing import Any

from chameleon.doctor.checks import Check


def main() -> None:
    """Print `next<TAB>step` before and `check<TAB>json` after each step."""
    _announce("import tvm")
    import tvm

    from chameleon.measure.tiny import tiny_kernel
    from chameleon.target import detect_target, usable_cores

    _report(Check("import tvm", True, str(tvm.__version__)))
    _announce("target of this machine")
    target, cores = detect_target(), usable_cores()  # before TVM makes its threads: that binds this thread to one core
    threads = tvm.get_global_func("runtime.NumThreads")()
    note = f"; TVM itself would use {threads} of {cores} threads" if threads != cores else ""
    _report(Check("target of this machine", True, f"{target}{note}"))
    _announce("tuning database")
    _use_database(tiny_kernel(target), target)
    _report(Check("tuning database", True, "written and read"))
    _announce("tiny build and run")
    _report(_build_and_run(target))


def _announce(step: str) -> None:
    print(f"next\t{step}", flush=True)


def _report(check: Check) -> None:
    print(f"check\t{json.dumps(asdict(check))}", flush=True)


def _use_database(mod: Any, target: Any) -> None:
    """Write and read a record; versions of TVM's packages that do not fit together crash here."""
    from tvm.s_tir import Schedule
    from tvm.s_tir import meta_schedule as ms

    with tempfile.TemporaryDirectory(prefix="chameleon-doctor-") as folder:
        database = ms.database.JSONDatabase(work_dir=folder)
        workload = database.commit_workload(mod)
        args_info = ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True)
        trace: Any = Schedule(mod).trace
        database.commit_tuning_record(ms.database.TuningRecord(trace, workload, [1.0], target, args_info))
        if len(ms.database.JSONDatabase(work_dir=folder).get_all_tuning_records()) != 1:
            raise RuntimeError("a record that was written to a tuning database is not read back")


def _build_and_run(target: Any) -> Check:
    from chameleon.measure import WarmBuilder, WarmRunner
    from chameleon.measure.preflight import check_environment
    from chameleon.workers.faults import EnvironmentFault

    name = "tiny build and run"
    with WarmBuilder(n_workers=1) as builder, WarmRunner() as runner:
        try:
            seconds = check_environment(target, builder, runner)
        except EnvironmentFault as fault:
            return Check(name, False, str(fault)[:500], "see what it says; the checks above may say more")
        return Check(name, True, f"{seconds * 1e6:.1f} us, each in a process of its own")
