"""An application whose broker and result backend are Redis."""

from __future__ import annotations

import threading
from socket import getaddrinfo

import pytest
import pytest_twisted
from celery import chord, group
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.python.threadpool import ThreadPool

from tests.support.canvasapp import create_app
from twistedcelery import TwistedCelery

# Celery's Redis backend calls what redis-py calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest_twisted.ensureDeferred
async def test_no_thread_is_started_for_anything(redis_server, worker, monkeypatch):
    """Calls, canvases, results by id, saved groups, control, events and purging do without; there is
    nothing but Twisted's own lookup of addresses.
    """
    urls = redis_server.url(0), redis_server.url(1)
    running = await deferToThread(
        worker, *urls, app="tests.support.canvasapp", pool="threads", concurrency=2, events=True
    )
    started, work = [], []
    start, submit = threading.Thread.start, ThreadPool.callInThreadWithCallback

    def start_noted(thread):
        started.append(thread)
        start(thread)

    def submit_noted(pool, on_result, function, *args, **kwargs):
        work.append(function)
        submit(pool, on_result, function, *args, **kwargs)

    monkeypatch.setattr(threading.Thread, "start", start_noted)
    monkeypatch.setattr(ThreadPool, "callInThreadWithCallback", submit_noted)
    tx_app = TwistedCelery(create_app(*urls))
    add, total = (tx_app.app.tasks[f"c.{name}"] for name in ("add", "total"))
    stream = tx_app.events({}, state=True)
    await stream.ready
    call = tx_app.send_task("c.add", (2, 3))
    assert await call == 5
    result = tx_app.result(call.task_id)
    assert await result.state == "SUCCESS"
    assert await result.exists()
    await result.forget()
    assert await tx_app.apply_async(chord([add.s(1, 1), group(add.s(2, 2), add.s(3, 3))], total.s())) == 12
    grouped = tx_app.apply_async(group(add.s(1, 1), add.s(2, 2)))
    await grouped.async_result.save()
    assert await grouped == [2, 4]
    restored = await tx_app.group_result(grouped.task_id).restore()
    assert await restored.get() == [2, 4]
    await restored.delete()
    assert await tx_app.control.ping(limit=1, timeout=10) == [{running.name: {"ok": "pong"}}]
    assert await tx_app.control.inspect(limit=1, timeout=10).active() == {running.name: []}
    await tx_app.revoke("nobody-knows")
    assert await tx_app.control.purge() == 0
    assert running.name in [one.hostname for one in stream.state.alive_workers()]
    await tx_app.disconnect()
    # Twisted looks addresses up in the reactor's pool.
    assert set(work) <= {getaddrinfo}
    assert set(started) <= set(reactor.getThreadPool().threads)
