"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["free_port", "reachable"]

# Below the range that the kernel takes source ports from, so that a server that is stopped and
# started again finds its port still free; and free of the standard ports of the servers under test.
# Each of pytest-xdist's processes has its own, so that no two of them find the same one free.
_FIRST = 26000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6)
_LAST = _FIRST + 1000
_random = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A port nobody listens on, and that this process was not given before."""
    while True:
        port = _random.randrange(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def reachable(port: int, *, send: bytes = b"", expect: bytes = b"") -> bool:
    """Whether a server on this port of the loopback interface takes connections.

    :param send: sent once connected
    :param expect: what the first bytes of the answer must contain
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            if not send:
                return True
            connection.sendall(send)
            return expect in connection.recv(4096)
    except OSError:
        return False
