"""A Celery application whose tasks are made to be composed. Configured as `tests.support.taskapp` is."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, chord, group, signature
from celery.exceptions import Ignore, Reject

from tests.support.taskapp import BACKEND, BROKER, CONFIG

__all__ = ["ERRORS", "VALUES", "Coded", "app", "create_app"]


class Coded(Exception):
    """An exception of the application's, with two arguments."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class Keyed(Exception):
    """One that cannot be made again from its arguments."""

    def __init__(self, *, key: str) -> None:
        super().__init__(key)


class Holding(Exception):
    """One that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Mute(Exception):
    """One that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("mute")


class Tagging(Task):  # type: ignore[type-arg]  # Celery's own class takes no parameters when it runs
    """A base class with a way of its own to be sent."""

    def apply_async(self, args: Any = None, kwargs: Any = None, *others: Any, **options: Any) -> Any:
        headers = {**(options.pop("headers", None) or {}), "x": "tagged"}
        return super().apply_async(args, kwargs, *others, headers=headers, **options)


def chained_error() -> Exception:
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    return error


#: What `raising` can raise.
ERRORS = {
    "two arguments": lambda: Coded(3, "no"),
    "keywords only": lambda: Keyed(key="no"),
    "not to be pickled": lambda: Holding("no"),
    "not to be printed": lambda: Mute("no"),
    "a cause": chained_error,
    "of a class of its own": lambda: type("Local", (Exception,), {})("no", 1),
    "of the operating system": lambda: FileNotFoundError(2, "No such file", "/nowhere"),
    "of five arguments": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    "without arguments": ValueError,
    "with bytes": lambda: ValueError(b"\xff"),
    "with structure": lambda: ValueError({"a": [1, (2, None)]}),
    "a group": lambda: ExceptionGroup("several", [ValueError(1), KeyError(2)]),
    "a rejection": lambda: Reject("no", requeue=False),
    "a wish to be ignored": Ignore,
}

#: What `returning` can return.
VALUES = {
    "tuple": lambda: (1, (2, 3)),
    "nothing": lambda: None,
    "time": lambda: datetime.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    "day": lambda: datetime.date(2020, 1, 2),
    "decimal": lambda: decimal.Decimal("1.50"),
    "uuid": lambda: uuid.UUID(int=5),
    "bytes": lambda: b"\xff",
    "set": lambda: {1},
    "large number": lambda: 2**80,
    "infinity": lambda: float("inf"),
    "keys that are numbers": lambda: {1: 2},
    "text": lambda: "\u00e9\u2028\U0001f600\x00",
    "long text": lambda: "x" * 100_000,
    "exception": lambda: ValueError("a value"),
    "what no serializer knows": lambda: object,
}


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


def raising(kind: str) -> None:
    error = ERRORS[kind]()
    raise error


def returning(kind: str) -> Any:
    return VALUES[kind]()


def request(self: Task[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What a task was sent with, but for ids."""
    names = ("argsrepr", "kwargsrepr", "shadow", "group_index", "timelimit", "retries", "ignore_result")
    found = {name: getattr(self.request, name) for name in names}
    found["priority"] = self.request.delivery_info["priority"]
    found["headers"] = self.request.headers
    found["stamps"] = sorted((self.request.stamps or {}).items())
    found["callbacks"] = len(self.request.callbacks or ())
    found["errbacks"] = len(self.request.errbacks or ())
    found["is root"] = self.request.root_id == self.request.id
    return {**found, "args": args, "kwargs": kwargs}


def tagged(self: Task[..., Any]) -> Any:
    return (self.request.headers or {}).get("x")


def give_up(self: Task[..., Any], with_error: bool = False) -> None:
    raise self.retry(countdown=0, max_retries=1, exc=KeyError("given") if with_error else None)


def divide(x: Any, y: Any) -> Any:
    return x / y


def replaced_by_chord(self: Task[..., Any], x: Any) -> Any:
    tasks = self.app.tasks
    raise self.replace(chord([tasks["c.add"].s(x, n) for n in range(2)], tasks["c.total"].s()))


def widen(self: Task[..., Any], x: Any) -> Any:
    """Give the chord that it is in one more task."""
    self.add_to_chord(self.app.tasks["c.add"].s(x, 100))
    return x


def leave() -> None:
    raise SystemExit(3)


def die() -> None:
    os._exit(9)


def create_app(broker: str, backend: str, **config: Any) -> Celery:
    """A new application with all the tasks above, named ``c.<function>``."""
    new = Celery("canvasapp", broker=broker, backend=backend, set_as_current=False)
    new.conf.update(
        broker_connection_retry_on_startup=False, result_expires=600, result_chord_retry_interval=0.1
    )
    new.conf.update(config)
    plain = (
        *(add, mul, total, identity, constant, keywords, fail, fail_after, write, write_error, sleep),
        *(raising, returning, leave, die),
    )
    bound = (
        *(request, give_up, replaced_by_chord, widen),
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
    new.task(fail, name="c.quiet_failure", ignore_result=True, store_errors_even_if_ignored=True)
    new.task(tagged, name="c.tagged", bind=True, base=Tagging)
    retrying = {"autoretry_for": (ZeroDivisionError,), "max_retries": 1, "retry_backoff": False}
    new.task(divide, name="c.divide", default_retry_delay=0, **retrying)
    new.task(sleep, name="c.warned", soft_time_limit=0.3, time_limit=20)
    new.task(sleep, name="c.stopped", time_limit=0.5)
    return new


app = create_app(
    os.environ.get(BROKER, "memory://"),
    os.environ.get(BACKEND, "cache+memory://"),
    **json.loads(os.environ.get(CONFIG, "{}")),
)
