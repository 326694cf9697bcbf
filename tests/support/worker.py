"""A real Celery worker process."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import taskapp
from tests.support.process import SOURCES, Process, python_program

__all__ = ["Worker"]


class Worker:
    """One ``celery worker`` process. Its methods block."""

    def __init__(
        self,
        directory: Path,
        *,
        broker: str,
        backend: str,
        app: str = "tests.support.taskapp",
        config: Mapping[str, Any] | None = None,
        pool: str = "solo",
        concurrency: int = 1,
        queues: str | None = None,
        events: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe a worker; `start` runs it.

        :param app: as ``celery -A`` takes it; it reads broker and backend as `taskapp` does
        :param config: Celery settings that JSON can carry, for `taskapp`
        :param queues: names of the queues it consumes, with commas
        :param events: whether it sends task events (``-E``)
        """
        self.name = f"worker-{uuid.uuid4().hex[:8]}@localhost"
        options = ["--pool", pool, "--concurrency", str(concurrency), "--hostname", self.name]
        options += ["--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        if queues is not None:
            options += ["--queues", queues]
        if events:
            options += ["--task-events"]
        self.process = Process(
            [python_program("celery"), "-A", app, "worker", *options],
            directory=directory,
            name=self.name.partition("@")[0],
            env={
                "PYTHONPATH": os.pathsep.join(SOURCES),
                taskapp.BROKER: broker,
                taskapp.BACKEND: backend,
                taskapp.CONFIG: json.dumps(dict(config or {})),
                **(env or {}),
            },
        )

    def start(self) -> None:
        """Start it and wait until it consumes."""
        self.process.start()
        self.process.wait_for_output(f"{self.name} ready.", timeout=60)

    def kill(self) -> None:
        """Kill it and its pool (SIGKILL)."""
        self.process.kill()

    def stop(self) -> None:
        """Warm shutdown: it finishes the tasks it runs. Safe to call twice."""
        self.process.stop()
