"""A Celery application that no bridge of the tests imports; configured as `tests.support.taskapp`."""

from __future__ import annotations

import os
import time

from celery import Celery, Task

from tests.support.taskapp import BACKEND, BROKER

__all__ = ["COUNT", "app"]

#: The environment variable with the number of tasks to make besides those below.
COUNT = "TWISTEDCELERY_TEST_COUNT"

app = Celery(
    "otherapp",
    broker=os.environ.get(BROKER, "memory://"),
    backend=os.environ.get(BACKEND, "cache+memory://"),
    set_as_current=False,
)
app.conf.broker_connection_retry_on_startup = False


@app.task(name="other.greet", bind=True, shared=False)
def greet(self: Task[..., str], name: str, seconds: float = 0) -> str:
    """Greet somebody, after some seconds."""
    if seconds:
        self.update_state(state="GREETING")
        time.sleep(seconds)
    return f"hello {name}"


@app.task(name="other.tell nobody", shared=False)
def tell_nobody() -> str:
    return "nobody was told"


@app.task(name="other.ignored", ignore_result=True, shared=False)
def ignored() -> str:
    return "nobody was told"


for number in range(int(os.environ.get(COUNT, "0"))):
    app.task(tell_nobody.run, name=f"many.task{number}", shared=False)
