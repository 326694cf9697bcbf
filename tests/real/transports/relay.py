"""A TCP relay in front of a server, to take the network away and give it back."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

from tests.support.ports import free_port

__all__ = ["Relay"]


class Relay:
    """Forwards connections to a server on the loopback interface, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._stop: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.up()

    def up(self) -> None:
        """Take connections, and forward them."""
        # All descriptors are there when this returns, for tests that count theirs.
        listener = socket.create_server(("127.0.0.1", self.port))
        self._stop, stopped = socket.socketpair()
        selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, args=(selector, listener, stopped), name="relay")
        self._thread.start()

    def down(self) -> None:
        """Close all connections, and refuse new ones. Safe to call twice."""
        if self._thread is not None:
            self._stop.close()
            self._thread.join()
            self._thread = None

    def _run(self, selector: selectors.BaseSelector, listener: socket.socket, stopped: socket.socket) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        with selector, listener, stopped:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    if ready is stopped:
                        for end in peers:
                            end.close()
                        return
                    if ready is listener:
                        client, _ = listener.accept()
                        server = socket.create_connection(("127.0.0.1", self._target))
                        peers |= {client: server, server: client}
                        selector.register(client, selectors.EVENT_READ)
                        selector.register(server, selectors.EVENT_READ)
                    elif ready in peers:
                        self._forward(ready, peers, selector)

    def _forward(self, ready: socket.socket, peers: dict, selector: selectors.BaseSelector) -> None:
        try:
            data = ready.recv(65536)
            if data:
                peers[ready].sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (peers.pop(ready), ready):
                peers.pop(end, None)
                with suppress(KeyError):
                    selector.unregister(end)
                end.close()
