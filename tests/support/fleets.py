"""Fleets on loopback: TVM's tracker, and servers in processes that a test may kill, stop and start again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from tvm.rpc.tracker import Tracker

from chameleon.measure.tracker import Tracker as Asked
from scripts.common.ports import free_port
from scripts.fleets import serve

KEY = "loopback"


class Server:
    """One device: `scripts/fleets/serve.py` in a process of its own."""

    def __init__(self, tracker: str, wait_s: float) -> None:
        self.port = free_port()
        self._command = [sys.executable, str(Path(serve.__file__)), "--tracker", tracker, "--key", KEY]
        self._command += ["--port", str(self.port), "--wait-s", str(wait_s)]
        self.start()

    @property
    def device(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _family(self) -> list[psutil.Process]:
        top = psutil.Process(self._process.pid)
        return [top, *top.children(recursive=True)]

    def _all(self, do: Callable[[psutil.Process], None]) -> None:
        """Do something to all of its processes, also to those that one of them has started meanwhile."""
        done: set[psutil.Process] = set()
        while new := [process for process in self._family() if process not in done]:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):  # a session that has just ended
                    do(process)
            done.update(new)

    def kill(self) -> None:
        """The device loses its power."""
        if self._process.poll() is None:
            self._all(psutil.Process.kill)
            self._process.wait()

    def stop(self) -> None:
        """The device hangs."""
        self._all(psutil.Process.suspend)

    def go_on(self) -> None:
        """A device that hung goes on."""
        self._all(psutil.Process.resume)


class LoopbackFleet:
    """A tracker with some servers.

    Args:
        wait_s: seconds that each candidate waits on its device.
    """

    def __init__(self, n: int, wait_s: float = 0.0) -> None:
        port = free_port()
        self._tracker = Tracker(host="127.0.0.1", port=port, port_end=port + 50, silent=True)
        self.tracker = f"127.0.0.1:{self._tracker.port}"
        self.servers = [Server(self.tracker, wait_s) for _ in range(n)]

    def wait_until_free(self, n: int, limit_s: float = 300.0) -> None:
        """Wait until the tracker has so many free devices."""
        asked, until_s = Asked(self.tracker), time.monotonic() + limit_s
        while asked.summary(KEY).free < n:
            assert time.monotonic() < until_s, asked.summary(KEY)
            time.sleep(0.2)
        asked.close()

    def close(self) -> None:
        for server in self.servers:
            server.kill()
        self._tracker.terminate()


@contextlib.contextmanager
def loopback_fleet(n: int, wait_s: float = 0.0) -> Iterator[LoopbackFleet]:
    """A fleet whose devices are all free, and which ends with the block."""
    fleet = LoopbackFleet(n, wait_s)
    try:
        fleet.wait_until_free(n)
        yield fleet
    finally:
        fleet.close()
