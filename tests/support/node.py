"""A Crossbar.io node."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.ports import reachable
from tests.support.process import SOURCES, Process, python_program

__all__ = ["CrossbarNode"]


class CrossbarNode:
    """A node run by ``crossbar start``. Its methods block."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        *,
        port: int,
        path: str = "/ws",
        env: Mapping[str, str] | None = None,
        loglevel: str = "info",
    ) -> None:
        """Describe a node; `start` runs it.

        :param directory: becomes the node's directory (``--cbdir``)
        :param config: what ``config.json`` is to hold
        :param port: where the configuration has its WebSocket listen, on the loopback interface
        :param path: the WebSocket's path there
        """
        self.port, self._path = port, path
        self.url = f"ws://127.0.0.1:{port}{path}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config, indent=2))
        self.process = Process(
            [
                *(python_program("crossbar"), "start", "--cbdir", str(directory)),
                *("--color", "false", "--loglevel", loglevel),
            ],
            directory=directory,
            name="crossbar",
            env={"PYTHONPATH": os.pathsep.join(SOURCES), **(env or {})},
        )

    @property
    def ready(self) -> bool:
        """Whether it accepts a WebSocket that speaks WAMP."""
        key = base64.b64encode(b"sixteen bytes ok").decode()
        request = (
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: wamp.2.json\r\n\r\n"
        )
        return reachable(self.port, send=request.encode(), expect=b" 101 ")

    def start(self) -> None:
        """Start it and wait until it accepts WebSockets. Its container components may join later."""
        self.process.start()
        self.process.wait_until(lambda: self.ready, timeout=60, what="it accepts WebSockets")

    def kill(self) -> None:
        """Kill the node and its workers (SIGKILL)."""
        self.process.kill()

    def stop(self) -> None:
        """Stop it in good order. Safe to call twice."""
        self.process.stop()
