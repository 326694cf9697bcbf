"""Replies that no worker of ours sent arrive in the client's reply queue, while calls are made."""

from __future__ import annotations

import json
import pickle
import time
import uuid
import zlib
from itertools import cycle, islice
from urllib.parse import unquote, urlsplit

import amqp
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.real.faults.tasks import APP
from tests.real.faults.trial import Size, fault
from tests.support.taskapp import create_app


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return exec, ("import os; os._exit(1)",)


ENDED = {"status": "SUCCESS", "result": "hostile", "traceback": None, "children": []}

#: Bodies and properties of messages that are no results of ours.
HOSTILE = [
    (b'{"task_id": "', {}),
    (b"", {}),
    (b"[" * 50_000, {}),
    (json.dumps({**ENDED, "status": ["?"]}).encode(), {}),
    (json.dumps({**ENDED, "status": "FAILURE", "result": {"exc_type": "SystemExit"}}).encode(), {}),
    (pickle.dumps(Bomb()), {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
    (json.dumps(ENDED).encode(), {}),
]

#: 50 MB each.
COMPRESSED = [
    (zlib.compress(b"x" * 50_000_000), {"application_headers": {"compression": "application/x-gzip"}})
]


def messages(replies):
    """Replies again and again, each of another task."""
    for body, properties in cycle(replies):
        own = {
            "correlation_id": str(uuid.uuid4()),
            "content_type": "application/json",
            "content_encoding": "utf-8",
        }
        yield amqp.Message(body, **{**own, **properties})


def send(url, queue, replies, count, seconds):
    """Send so many, spread over a time. It blocks."""
    broker = urlsplit(url)
    host = f"{broker.hostname}:{broker.port}"
    vhost = unquote(broker.path[1:])
    with amqp.Connection(host, broker.username, broker.password, virtual_host=vhost) as connection:
        channel = connection.channel(1)
        began = time.monotonic()
        for number, message in enumerate(islice(messages(replies), count)):
            channel.basic_publish(message, routing_key=queue)
            if number % max(1, count // 100) == 0:
                time.sleep(max(0.0, began + number * seconds / count - time.monotonic()))
        # The broker answers on a channel in order.
        channel.queue_declare(queue, passive=True)


async def receive(trial, broker_url, worker, new_client, replies):
    """Let so many of these replies come beside the calls."""
    await deferToThread(worker, app=APP)
    tx_app = new_client(create_app(broker_url, "rpc://"), lost_after=None)
    reply_to = (await tx_app.send_task("taskapp.request_info"))["reply_to"]
    async with trial.calls(tx_app) as load:
        load.start(trial.size.rate)
        await deferToThread(send, broker_url, reply_to, replies, trial.size.calls, trial.size.seconds)
    assert trial.counts.results == trial.counts.calls


@fault(
    "Replies: 100,000 hostile ones, truncated, nested, pickled, of unknown tasks",
    short=Size(calls=2000, seconds=2, rate=20),
    long=Size(calls=100_000, seconds=60, rate=50),
)
@pytest_twisted.ensureDeferred
async def test_hostile(trial, broker_url, worker, new_client):
    """None is taken for a result, none is executed, and each call gets its own."""
    await receive(trial, broker_url, worker, new_client, HOSTILE)


@fault("Replies: 100 that decompress to 50 MB each", short=None, long=Size(calls=100, seconds=10, rate=20))
@pytest_twisted.ensureDeferred
async def test_compressed(trial, broker_url, worker, new_client):
    """They do not keep the client from its results, nor from its connection."""
    await receive(trial, broker_url, worker, new_client, COMPRESSED)
