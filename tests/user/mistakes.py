"""A user's mistakes, each of which ``mypy --strict`` finds: an ignore without an error is an error, too."""

from __future__ import annotations

from typing import Any

import twistedcelery
from twistedcelery import TwistedCelery


async def mistakes(tx_app: TwistedCelery, task: Any) -> None:
    """Every line is wrong."""
    TwistedCelery()  # type: ignore[call-arg]  # of which application?
    TwistedCelery(task, timeout=1)  # type: ignore[call-arg]  # publish_timeout
    tx_app.send_taks("tasks.add")  # type: ignore[attr-defined]  # misspelt
    tx_app.send_task(task=task)  # type: ignore[call-arg]  # the name is missing
    tx_app.send_task(1)  # type: ignore[arg-type]  # not a name
    tx_app.send_task("tasks.add", args=3)  # type: ignore[arg-type]  # not a sequence
    tx_app.send_task("tasks.add").get()  # type: ignore[attr-defined]  # it is not an AsyncResult
    tx_app.send_task("tasks.add").on_update(print, 1)  # type: ignore[call-arg]  # takes a callback alone
    tx_app.send_task("tasks.add").on_update(lambda state: None)  # type: ignore[arg-type, misc]  # takes two
    tx_app.task(task).delai()  # type: ignore[attr-defined]  # misspelt
    published: str = await tx_app.send_task("tasks.add").published  # type: ignore[assignment, func-returns-value]
    state: str = tx_app.result("id").state  # type: ignore[assignment]  # a Deferred
    tx_app.result(1)  # type: ignore[arg-type]  # not an id
    await tx_app.result("id").state()  # type: ignore[operator]  # a property
    await tx_app.result("id").get(timeout="1")  # type: ignore[arg-type]  # seconds
    tx_app.result("id").join()  # type: ignore[attr-defined]  # of a group
    tx_app.control.pign()  # type: ignore[attr-defined]  # misspelt
    tx_app.control.revoke()  # type: ignore[call-arg]  # which one?
    tx_app.control.ping(timeout="1")  # type: ignore[arg-type]  # seconds
    tx_app.control.inspect(limits=1)  # type: ignore[call-arg]  # limit
    tx_app.control.inspect().actve()  # type: ignore[attr-defined]  # misspelt
    answer: list[str] = await tx_app.control.inspect().active()  # type: ignore[assignment]  # by worker
    tx_app.events({"*": lambda: None})  # type: ignore[dict-item, misc]  # takes the event
    tx_app.connected = True  # type: ignore[misc]  # read only
    twistedcelery.BrokerIsDown  # type: ignore[attr-defined]  # there is none  # noqa: B018  # that is what it shows
    print(published, state, answer)
