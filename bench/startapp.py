"""A Celery application with 200 tasks, for the time that a bridge takes to start."""

from __future__ import annotations

import os

from celery import Celery

from tests.support.taskapp import BACKEND, BROKER

__all__ = ["TASKS", "app"]

#: The names of its tasks.
TASKS = tuple(f"bench.task{number}" for number in range(200))


def nothing() -> None:
    """What each of them does."""


app = Celery("bench", broker=os.environ[BROKER], backend=os.environ[BACKEND], set_as_current=False)
for _name in TASKS:
    app.task(nothing, name=_name)
