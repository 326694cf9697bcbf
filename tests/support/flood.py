"""Progress of tasks as workers send it, at a rate that no few of them reach. Run as a program.

    python -m tests.support.flood BROKER_URL REPLY_QUEUE RATE SECONDS TASK_ID...

It prints how many messages the broker has taken, and in how many seconds.
"""

from __future__ import annotations

import json
import sys
import time
from urllib.parse import unquote, urlsplit

import amqp
from pika import frame, spec

#: Messages that are sent together.
_CHUNK = 100


def messages(queue: str, count: int, task_ids: list[str]) -> list[bytes]:
    """As many states, of each task in turn, as they go over the wire; the last ones are marked."""
    method = frame.Method(1, spec.Basic.Publish(exchange="", routing_key=queue)).marshal()
    made = []
    for number in range(count):
        task_id = task_ids[number % len(task_ids)]
        state = {"current": number, "last": number >= count - len(task_ids)}
        meta = {"task_id": task_id, "status": "PROGRESS", "result": state, "traceback": None, "children": []}
        body = json.dumps(meta).encode()
        properties = spec.BasicProperties("application/json", "utf-8", correlation_id=task_id)
        header = frame.Header(1, len(body), properties).marshal()
        made.append(method + header + frame.Body(1, body).marshal())
    return made


def flood(url: str, queue: str, rate: float, seconds: float, task_ids: list[str]) -> str:
    """Send as many states as rate and time make.

    :return: their number, and the seconds that it took until the broker had all
    """
    made = messages(queue, int(rate * seconds), task_ids)
    broker = urlsplit(url)
    with amqp.Connection(
        f"{broker.hostname}:{broker.port}",
        broker.username,
        broker.password,
        virtual_host=unquote(broker.path[1:]),
    ) as connection:
        channel = connection.channel(1)
        began = time.monotonic()
        for sent in range(0, len(made), _CHUNK):
            connection.transport.write(b"".join(made[sent : sent + _CHUNK]))
            time.sleep(max(0.0, began + (sent + _CHUNK) / rate - time.monotonic()))
        # The broker answers on a channel in order.
        channel.queue_declare(queue, passive=True)
        return f"{len(made)} {time.monotonic() - began}\n"


if __name__ == "__main__":
    sys.stdout.write(flood(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]))
