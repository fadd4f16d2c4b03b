"""`chameleon report --serve` as a process of its own: it says where it is, answers, and ends at Ctrl-C."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recorded_run import make_run
from tests.support.scripts import ROOT

pytestmark = pytest.mark.slow


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", ended=False)
    command = [sys.executable, "-m", "chameleon.cli", "report", str(folder), "--serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, b"interrupted" in answer.read()) == (200, True)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "ended\n"
        assert process.wait(60) == 0
    assert not (folder / "report.html").exists()  # served, not written
