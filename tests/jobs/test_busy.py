"""Who else used the machine: shares of the cores' time, by hand."""

import dataclasses
import subprocess
import sys
import time

import pytest

from chameleon.jobs.busy import Activity, activity, busy_warnings, spread_warnings

BEFORE = Activity(wall_s=100.0, busy_s=50.0, stolen_s=1.0, own_s=20.0, load=0.0, cores=2)


def after(**changes: float) -> Activity:
    """Ten seconds later, in which this process has used both cores for half of the time."""
    return dataclasses.replace(BEFORE, **{"wall_s": 110.0, "busy_s": 60.0, "own_s": 30.0, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"busy_s": 62.0}, []),  # 2 of 20 s
        ({"busy_s": 68.0}, ["other programs used 40% of the cores"]),
        ({"stolen_s": 3.0}, ["the host took 10% of the cores away"]),
        ({"busy_s": 68.0, "stolen_s": 3.0}, ["other programs used 40%", "the host took 10%"]),
        ({"busy_s": 50.0, "load": 2.5}, []),
        ({"busy_s": 50.0, "load": 7.0}, ["load average 7.0 on 2 cores"]),
        ({"wall_s": 100.2, "busy_s": 99.0}, []),  # too short to tell
    ],
)
def test_what_others_did_is_told(changes, says):
    found = busy_warnings("tuning", BEFORE, after(**changes))
    assert len(found) == len(says)
    assert all(part in warning and "tuning" in warning for part, warning in zip(says, found, strict=True))


def test_work_of_child_processes_is_our_own():
    before = activity()
    spin = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    own_s = activity().own_s - before.own_s
    assert 0.9 < own_s < 5


def test_the_clocks_go_forward():
    before = activity()
    time.sleep(0.01)
    assert activity().wall_s > before.wall_s
    assert before.cores >= 1


def test_a_wide_spread_is_told():
    assert spread_warnings({"tuned": (0.95, 1.0, 1.1)}) == []
    (warning,) = spread_warnings({"untuned": (1.0, 1.0, 1.0), "tuned": (0.09, 0.1, 0.15)})
    assert "tuned network spreads by 60%" in warning
    assert "90.0 us - 0.15 ms" in warning
