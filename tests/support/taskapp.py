"""A Celery application for tests. Worker processes configure it through the environment."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject

__all__ = ["BACKEND", "BROKER", "CONFIG", "RESULTS", "Unrebuildable", "app", "create_app"]

#: Names of the environment variables that configure `app`: two URLs, and settings as a JSON object.
BROKER = "TWISTEDCELERY_TEST_BROKER"
BACKEND = "TWISTEDCELERY_TEST_BACKEND"
CONFIG = "TWISTEDCELERY_TEST_CONFIG"

#: What `taskapp.odd` and `taskapp.report` return for each name. ``object`` cannot be serialised; the
#: others go through Celery's JSON, and some are more than WAMP can carry.
RESULTS: dict[str, Any] = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "datetime": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
    "huge": 2**70,
    "date": datetime.date(2024, 2, 29),
    "uuid": uuid.UUID("00000000-0000-4000-8000-000000000001"),
    "decimal": decimal.Decimal("0.10000000000000000001"),
    "bytes": b"\x89PNG",
    "tuple": (1, (2, 3)),
    "largest": 2**64 - 1,
    "smallest": -(2**63),
    "too small": -(2**63) - 1,
    "float": 0.1,
    "text": "\u00fc \u2028 \U0001f600 \x7f",
    "nested": {"a": [None, True, {"b": {"nan": [float("nan")]}}]},
    "surrogate": "\ud800",
    "nul key": {"\0": 1},
    "deep": functools.reduce(lambda value, _: [value], range(200), 1),
    "mark": {"__type__": "nothing", "__value__": 1},
    "integer keys": {1: "one", 2: "two"},
    "nul string": "\0binary",
    "17 MiB": "x" * (17 * 1024 * 1024),
    "object": object(),
}


class Unrebuildable(Exception):
    """Its constructor does not take its own ``args``."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def add(x: float, y: float) -> float:
    return x + y


def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": list(args), "kwargs": kwargs}


def fail(message: str) -> None:
    raise ValueError(message)


def fail_unrebuildable() -> None:
    raise Unrebuildable("this", "that")


def countdown(self: Task[..., int], n: int, delay: float = 0.05) -> int:
    """``n`` steps of ``delay`` seconds, each with a PROGRESS state."""
    for current in range(1, n + 1):
        self.update_state(state="PROGRESS", meta={"current": current, "total": n})
        time.sleep(delay)
    return n


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def retry_once(self: Task[..., int], delay: float = 0.1) -> int:
    """Fail the first time; return how often it was retried."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("first attempt"), countdown=delay)
    return self.request.retries


def custom_state(self: Task[..., str], state: str, meta: dict[str, Any]) -> str:
    """Pass through a state of the caller's own."""
    self.update_state(state=state, meta=meta)
    return "done"


def send_progress(self: Task[..., int], n: int, delay: float = 0.05) -> int:
    """``n`` steps, each with an event of the task's own; what they count is not in its results."""
    for current in range(1, n + 1):
        self.send_event("task-progress", current=current, total=n)
        time.sleep(delay)
    return n


def reject(self: Task[..., str], requeue: bool, path: str) -> str:
    """Reject its message; the second time, with the file there, return."""
    if not Path(path).exists():
        Path(path).touch()
        raise Reject("not now", requeue=requeue)
    return path


def odd(kind: str) -> Any:
    return RESULTS[kind]


def report(self: Task[..., Any], kind: str) -> Any:
    """Report a value as progress, then return it."""
    self.update_state(state="PROGRESS", meta=RESULTS[kind])
    return RESULTS[kind]


def items(count: int) -> list[int]:
    return [0] * count


def touch(path: str) -> str:
    """Append a line to a file, so that a test sees how often the task ran."""
    with Path(path).open("a") as file:
        file.write("ran\n")
    return path


def ignored(x: Any) -> Any:
    """Its result is not stored."""
    return x


def request_info(self: Task[..., dict[str, Any]]) -> dict[str, Any]:
    """What the worker saw of the message."""
    seen = ("id", "headers", "correlation_id", "reply_to", "root_id", "parent_id", "group", "delivery_info")
    return {name: getattr(self.request, name, None) for name in seen}


def create_app(broker: str, backend: str, **config: Any) -> Celery:
    """A new application with all the tasks above, named ``taskapp.<function>``.

    :param config: Celery settings
    """
    new = Celery("taskapp", broker=broker, backend=backend, set_as_current=False)
    # Waiting forever for a broker that is not there would hide the reason of a failed test.
    new.conf.update(broker_connection_retry_on_startup=False, result_expires=600)
    new.conf.update(config)
    for function in (add, echo, fail, fail_unrebuildable, sleep, odd, items, touch):
        new.task(function, name=f"taskapp.{function.__name__}")
    for function in (countdown, report, retry_once, custom_state, send_progress, request_info):
        new.task(function, name=f"taskapp.{function.__name__}", bind=True)
    new.task(reject, name="taskapp.reject", bind=True, acks_late=True)
    new.task(ignored, name="taskapp.ignored", ignore_result=True)
    return new


app = create_app(
    os.environ.get(BROKER, "memory://"),
    os.environ.get(BACKEND, "cache+memory://"),
    **json.loads(os.environ.get(CONFIG, "{}")),
)
