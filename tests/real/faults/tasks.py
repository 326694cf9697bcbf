"""The worker's application: the tasks of `tests.support.taskapp`, and tasks that note each execution."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

from tests.support.taskapp import app

__all__ = ["APP", "executions"]

#: As `tests.support.worker.Worker` takes it.
APP = "tests.real.faults.tasks"


@app.task(name="faults.run")
def run(number: int, path: str, seconds: float = 0.0, size: int = 0) -> list[object]:
    """Note the execution of a call, and return its number.

    :param size: characters that are returned beside it
    """
    _note(number, path)
    if seconds:
        time.sleep(seconds)
    return [number, "x" * size]


@app.task(name="faults.run_late", acks_late=True, reject_on_worker_lost=True)
def run_late(number: int, path: str, seconds: float = 0.0, size: int = 0) -> list[object]:
    """As `run`, and acknowledged afterwards."""
    return run(number, path, seconds, size)


@app.task(name="faults.die")
def die(number: int, path: str) -> None:
    """Kill the process that runs it."""
    _note(number, path)
    os.kill(os.getpid(), signal.SIGKILL)


def _note(number: int, path: str) -> None:
    # One write, so that several processes may append.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{number}\n".encode())
    finally:
        os.close(descriptor)


def executions(path: Path) -> Counter[int]:
    """How often each call was executed, by its number."""
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()
