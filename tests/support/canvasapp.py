"""A Celery application whose tasks are made to be composed. Configured as `tests.support.taskapp` is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, group, signature

from tests.support.taskapp import BACKEND, BROKER, CONFIG

__all__ = ["app", "create_app"]


def add(x: Any, y: Any) -> Any:
    return x + y


def mul(x: Any, y: Any) -> Any:
    return x * y


def total(numbers: list[Any]) -> Any:
    return sum(numbers)


def identity(value: Any) -> Any:
    return value


def constant() -> str:
    return "constant"


def keywords(**kwargs: Any) -> dict[str, Any]:
    return kwargs


def fail(message: str = "no", *_: Any) -> None:
    raise ValueError(message)


def fail_after(seconds: float, message: str) -> None:
    time.sleep(seconds)
    raise KeyError(message)


def write(value: Any, path: str) -> str:
    """Leave a value where a test can find it."""
    with Path(path).open("a") as file:
        file.write(f"{value}\n")
    return path


def write_error(request: Any, exc: BaseException, _traceback: Any, path: str) -> None:
    """An error callback."""
    write(f"{type(exc).__name__}: {exc}", path)


def retry_then_add(self: Task[..., Any], x: Any, y: Any) -> Any:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return x + y


def replaced_by_add(self: Task[..., Any], x: Any, y: Any) -> Any:
    raise self.replace(self.app.tasks["c.add"].s(x, y))


def replaced_by_chain(self: Task[..., Any], x: Any) -> Any:
    add_one = self.app.tasks["c.add"]
    raise self.replace(chain(add_one.s(x, 1), add_one.s(10)))


def replaced_by_group(self: Task[..., Any], x: Any) -> Any:
    raise self.replace(group(self.app.tasks["c.add"].s(x, number) for number in range(3)))


def stamps(self: Task[..., Any]) -> Any:
    headers = self.request.stamped_headers or []
    return {name: self.request.stamps[name] for name in headers}


def option(self: Task[..., Any], name: str) -> Any:
    return (self.request.headers or {}).get(name)


def spawn(self: Task[..., Any], count: int) -> list[str]:
    """Its children."""
    return [signature("c.add", (number, 1), app=self.app).apply_async().id for number in range(count)]


def quiet(x: Any) -> Any:
    """Its result is not stored."""
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def progress(self: Task[..., str], *_: Any) -> str:
    self.update_state(state="PROGRESS", meta={"current": 1})
    return "done"


def create_app(broker: str, backend: str, **config: Any) -> Celery:
    """A new application with all the tasks above, named ``c.<function>``."""
    new = Celery("canvasapp", broker=broker, backend=backend, set_as_current=False)
    new.conf.update(
        broker_connection_retry_on_startup=False, result_expires=600, result_chord_retry_interval=0.1
    )
    new.conf.update(config)
    plain = (add, mul, total, identity, constant, keywords, fail, fail_after, write, write_error, sleep)
    bound = (
        retry_then_add,
        replaced_by_add,
        replaced_by_chain,
        replaced_by_group,
        stamps,
        option,
        spawn,
        progress,
    )
    for function in plain:
        new.task(function, name=f"c.{function.__name__}")
    for function in bound:
        new.task(function, name=f"c.{function.__name__}", bind=True)
    new.task(quiet, name="c.quiet", ignore_result=True)
    return new


app = create_app(
    os.environ.get(BROKER, "memory://"),
    os.environ.get(BACKEND, "cache+memory://"),
    **json.loads(os.environ.get(CONFIG, "{}")),
)
