"""An application whose messages are signed, for workers; as a program, a client of it.

``python -m tests.support.signedapp TASK [ARGUMENT ...]`` prints what the task returns, or the name and
the text of the error. Each process configures it through the environment, as `tests.support.taskapp`:
with ``setup_security`` Celery changes what the whole process may decode.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from tests.support.taskapp import app
from twistedcelery import TwistedCelery

__all__ = ["app"]

app.setup_security()


async def _call(reactor: Any, name: str, *arguments: str) -> None:
    tx_app = TwistedCelery(app, reactor)
    call = tx_app.send_task(name, args=arguments)
    try:
        await call.published
        if name != "taskapp.touch":
            print(await call)  # noqa: T201  # it is what the program is for
    except Exception as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201  # as above
    else:
        call.addErrback(lambda _: None)
    await tx_app.disconnect()


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(_call(reactor, *sys.argv[1:])))
