"""A private redis-server."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.debian import require
from tests.support.ports import free_port, reachable
from tests.support.process import Process

__all__ = ["RedisSentinel", "RedisServer"]


class RedisServer:
    """A redis-server that keeps nothing on disk, unless asked to. Its methods block.

    :param options: redis.conf's, such as ``appendonly="yes"``; dashes as underscores
    """

    def __init__(self, directory: Path, **options: object) -> None:
        self.port = free_port()
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": directory,
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        self._greeting = b"-NOAUTH" if "requirepass" in options else b"+PONG"
        command = [str(require("redis-server"))]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        self.process = Process(command, directory=directory, name=f"redis-{self.port}")

    def url(self, database: int = 0) -> str:
        """The URL of one of its databases, 0 to 15."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers a PING."""
        self.process.start()
        self.process.wait_until(
            lambda: reachable(self.port, send=b"PING\r\n", expect=self._greeting),
            timeout=20,
            what="it answers",
        )

    def kill(self) -> None:
        """Kill it (SIGKILL). All data is lost."""
        self.process.kill()

    def freeze(self) -> None:
        """Let it be connected to, and never answer, until `thaw`."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self.process.running:
            self.process.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it. Safe to call twice."""
        self.process.stop()


class RedisSentinel:
    """A sentinel that watches one master, and takes it for gone after half a second. Its methods block.

    :param master: the port of the master, which it calls ``ours``
    """

    def __init__(self, directory: Path, master: int) -> None:
        self.port = free_port()
        # It writes down what it learns there.
        config = directory / f"sentinel-{self.port}.conf"
        settings = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor ours 127.0.0.1 {master} 1",
            "sentinel down-after-milliseconds ours 500",
            "sentinel failover-timeout ours 3000",
        )
        config.write_text("\n".join(settings) + "\n")
        command = [str(require("redis-server")), str(config), "--sentinel"]
        self.process = Process(command, directory=directory, name=f"sentinel-{self.port}")

    def start(self) -> None:
        """Start it, and wait until it answers a PING."""
        self.process.start()
        self.process.wait_until(
            lambda: reachable(self.port, send=b"PING\r\n", expect=b"+PONG"), timeout=20, what="it answers"
        )

    def stop(self) -> None:
        """Stop it. Safe to call twice."""
        self.process.stop()
