"""Runs TVM's RPC server on a device, and starts it again whenever it has ended.

It needs TVM and nothing of Chameleon, so this file can be copied to a device:

    python serve.py --tracker 192.168.1.5:9190 --key board --host 0.0.0.0

TVM's own command (`python -m tvm.exec.rpc_server`) has two habits that do not suit a fleet. Its listening thread ends
for good when a candidate crashes or a client is gone in the middle, while the process stays. And it listens on all
addresses unless told otherwise. A server runs any code that it is sent, so here it is loopback unless `--host` says
another address.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 1.0
"""Between the end of a server and the start of the next."""

LINGER_S = 2.0
"""A server whose session has crashed still listens for so long: so the client sees that the device itself lives."""


def serve_once(
    host: str, port: int, tracker: str, key: str, address: str | None, wait_s: float, session: list[str]
) -> None:
    """Serve until a session crashes.

    Args:
        host: the address to listen on.
        port: the port to listen on, or the next that is free.
        tracker: `host:port`.
        address: under which clients reach this device, if that is another than the tracker sees.
        wait_s: seconds that each candidate waits on the device, for trying out a fleet without devices.
        session: the words of a command that serves each session in place of TVM's loop; empty: none does.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type] - TVM would load it and does not need it
    from tvm.rpc import server

    load = server._load_module

    def wait_and_load(path: str) -> Any:
        time.sleep(wait_s)
        return load(path)

    server._load_module = wait_and_load  # called once for each candidate
    if session:
        server._serve_loop = _become(session)  # called once for each session, in a process and a folder of its own
    tracker_host, _, tracker_port = tracker.rpartition(":")
    where = (tracker_host, int(tracker_port))
    state = server.PopenRPCServerState(host, port, port + 100, False, where, key, None, address, True)
    print(f"serving {key} at {host}:{state.port} for the tracker {tracker}", flush=True)
    state.thread.join()  # it ends by an error only
    time.sleep(LINGER_S)


def _become(command: list[str]) -> Callable[..., None]:
    """A function that turns its process into a program, which is given the number of the session's socket."""

    def become(sock: Any, *_: Any) -> None:
        os.set_inheritable(sock.fileno(), True)
        os.execvp(command[0], [*command, str(sock.fileno())])

    return become


def serve(*given: Any) -> None:
    """Serve with no end: each server is a process of its own, and so is whatever it becomes of a crash."""
    while True:
        server = os.fork()
        if server == 0:
            try:
                serve_once(*given)
            finally:
                os._exit(1)
        signal.signal(signal.SIGTERM, lambda *_, pid=server: (os.kill(pid, signal.SIGTERM), os._exit(0)))
        os.waitpid(server, 0)
        print("the server ended; it is started again", flush=True)
        time.sleep(PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve this device to a TVM RPC tracker; run with no end.")
    parser.add_argument("--tracker", required=True, help="host:port of the tracker")
    parser.add_argument("--key", required=True, help="the kind of device; all devices with one key must be alike")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=9090, help="port to listen on, or the next free one")
    parser.add_argument("--address", help="under which clients reach this device, if the tracker sees another")
    parser.add_argument("--wait-s", type=float, default=0.0, help="a simulation: each candidate also takes so long")
    parser.add_argument("--session", default="", help="an emulated device: the command that serves a session there")
    given = parser.parse_args()
    session = shlex.split(given.session)
    serve(given.host, given.port, given.tracker, given.key, given.address, given.wait_s, session)


if __name__ == "__main__":
    main()
