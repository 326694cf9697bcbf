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
        # Whether what clients, and what the server, send is held back.
        self._held = (False, False)
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

    def hold(self, *, from_clients: bool = False, from_server: bool = False) -> None:
        """Forward nothing from these sides any more, as a silent network does; `release` delivers it."""
        self._held = (from_clients, from_server)
        self._stop.send(b"!")

    def release(self) -> None:
        """Forward everything, from both sides."""
        self.hold()

    def _run(self, selector: selectors.BaseSelector, listener: socket.socket, stopped: socket.socket) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        from_server: set[socket.socket] = set()
        with selector, listener, stopped:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    if ready in peers:
                        self._forward(ready, peers, selector)
                    elif ready is listener:
                        client, _ = listener.accept()
                        server = socket.create_connection(("127.0.0.1", self._target))
                        peers |= {client: server, server: client}
                        from_server.add(server)
                    elif ready is stopped and not stopped.recv(100):
                        for end in peers:
                            end.close()
                        return
                self._read(peers, from_server, selector)

    def _read(self, peers: dict, from_server: set[socket.socket], selector: selectors.BaseSelector) -> None:
        """Read what is not held back from now on."""
        for end in peers:
            is_read, is_held = end in selector.get_map(), self._held[end in from_server]
            if is_read and is_held:
                selector.unregister(end)
            elif not is_read and not is_held:
                selector.register(end, selectors.EVENT_READ)

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
