"""Talks to TVM's RPC tracker: which devices there are, and the next free one of a key.

TVM's own client does both as well, but it waits without limit, tries again by itself, and connects to a device without
saying which. So the messages are sent from here. Their format, and everything on the other side, is TVM's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.rpc import base
from tvm.rpc.base import TrackerCode

from chameleon.errors import UsageError
from chameleon.workers.faults import EnvironmentFault

TRACKER_TIMEOUT_S = 5.0
"""How long a tracker may take to answer when it is asked for its devices."""

RETRY_S = 0.5
"""Pause before a tracker that does not answer is asked again; it may have been started again."""


class TrackerError(Exception):
    """A tracker does not answer, or what answers is no tracker."""


@dataclass(frozen=True)
class Grant:
    """A device that the tracker has handed out: nobody else gets it before it has served a session.

    Attributes:
        match_key: what the device expects to hear from whom it was handed out to.
    """

    host: str
    port: int
    match_key: str

    @property
    def device(self) -> str:
        """The device's address, as a name for it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Summary:
    """What a tracker knows of the devices of one key.

    Attributes:
        devices: how many are connected to it, those that are in use included.
        free: how many wait for a client.
        other_keys: the other keys for which there are devices.
    """

    devices: int
    free: int
    other_keys: tuple[str, ...]


def parse_tracker(tracker: str) -> tuple[str, int]:
    """Split the address of a tracker into host and port.

    Raises:
        UsageError: if the text has not the form `host:port`.
    """
    host, colon, port = tracker.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"a tracker is given as host:port, such as 192.168.1.5:9190; got {tracker!r}")
    return host.strip("[]"), int(port)


class Tracker:
    """One connection to a tracker, made when it is needed, and made again after it broke. For one thread."""

    def __init__(self, address: str) -> None:
        self._where, self._address = parse_tracker(address), address
        self._socket: socket.socket | None = None

    def summary(self, key: str) -> Summary:
        """The devices with a key.

        Raises:
            TrackerError: if the tracker does not answer within seconds.
        """
        answer = self._ask([TrackerCode.SUMMARY])
        try:
            code, found = answer
            servers = [str(server["key"]).partition(":")[2] for server in found["server_info"]]
            free = int(found["queue_info"].get(key, {}).get("free", 0))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise self._broken(f"it answered {str(answer)[:80]!r}") from error
        if code != TrackerCode.SUCCESS:
            raise self._broken(f"it answered with the code {code}")
        return Summary(servers.count(key), free, tuple(sorted({*servers} - {key})))

    def request(self, key: str, wait: Callable[[], bool]) -> Grant | None:
        """Wait in the tracker's queue for a free device with a key.

        Args:
            wait: asked several times a second; once it says no, the wait ends.

        Returns:
            The device; None if the wait ended.

        Raises:
            TrackerError: if the tracker does not answer, or breaks off.
        """
        stream = self._connected()
        try:
            base.sendjson(stream, [TrackerCode.REQUEST, key, "", 1])
            while not select.select([stream], [], [], 0.1)[0]:
                if not wait():
                    self.close()  # so that the tracker takes the request out of its queue
                    return None
            code, value = base.recvjson(stream)
            if code != TrackerCode.SUCCESS:
                raise ValueError(f"it answered with the code {code}")
            host, port, match_key = value
            return Grant(str(host), int(port), str(match_key))
        except (OSError, ValueError, TypeError, struct.error) as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """End the connection; the next question makes a new one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _ask(self, message: list[Any]) -> Any:
        stream = self._connected()
        try:
            base.sendjson(stream, message)
            return base.recvjson(stream)
        except (OSError, ValueError, struct.error) as error:
            raise self._broken(error) from error

    def _connected(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = socket.create_connection(self._where, timeout=TRACKER_TIMEOUT_S)
            except OSError as error:
                raise TrackerError(f"no RPC tracker answers at {self._address} ({error})") from error
            try:
                self._socket.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                if struct.unpack("<i", base.recvall(self._socket, 4))[0] != base.RPC_TRACKER_MAGIC:
                    raise ValueError("its greeting is another")
            except (OSError, ValueError) as error:
                raise self._broken(error) from error
        return self._socket

    def _broken(self, why: object) -> TrackerError:
        self.close()
        return TrackerError(f"what listens at {self._address} is no RPC tracker, or it broke off ({why})")


def check_tracker(tracker: str, device_key: str) -> Summary:
    """Ask a tracker whether devices with a key have registered.

    Raises:
        EnvironmentFault: if the tracker does not answer within seconds, or knows no such device.
        UsageError: if the tracker's address is not `host:port`.
    """
    asked = Tracker(tracker)
    try:
        found = asked.summary(device_key)
    except TrackerError as error:
        port = parse_tracker(tracker)[1]
        advice = f"start it with `python -m tvm.exec.rpc_tracker --port {port}`, or give another --tracker"
        raise EnvironmentFault(f"{error}; {advice}") from error
    finally:
        asked.close()
    if not found.devices:
        known = f"there are {', '.join(found.other_keys)}" if found.other_keys else "no device has registered"
        raise EnvironmentFault(
            f"the tracker at {tracker} knows no device with the key {device_key!r}: {known}; register it with "
            f"`python -m tvm.exec.rpc_server --tracker {tracker} --key {device_key}`, or give another --device-key"
        )
    return found


def next_device(tracker: Tracker, key: str, wait: Callable[[], bool]) -> Grant | None:
    """The next free device of a key. A tracker that is away may come back meanwhile.

    Args:
        wait: asked again and again; once it says no, the wait ends.

    Returns:
        The device; None if the wait ended.

    Raises:
        TrackerError: if the tracker did not answer when the wait ended.
    """
    while True:
        try:
            return tracker.request(key, wait)
        except TrackerError:
            if not wait():
                raise
            time.sleep(RETRY_S)


def give_back(grant: Grant) -> None:
    """Let go of a device that is not needed: it offers itself again after a session in which nothing was done."""
    with contextlib.suppress(OSError), socket.create_connection((grant.host, grant.port), timeout=2.0) as stream:
        key = f"client:{grant.match_key}".encode()
        stream.sendall(struct.pack("<ii", base.RPC_MAGIC, len(key)) + key)
        stream.recv(4)
