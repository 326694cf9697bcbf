"""The program: ``python -m bench.stub BROKER_URL BACKEND_URL``. It prints ``ready`` once it consumes."""

from __future__ import annotations

import json
import sys

from bench.stub.progress import Reporter
from bench.stub.rabbitmq import RabbitMQReplies, RabbitMQTasks
from bench.stub.redis import RedisReplies, RedisTasks
from bench.stub.results import result


def main(broker: str, backend: str) -> None:
    """Answer tasks until the process is ended."""
    tasks = RabbitMQTasks(broker) if broker.startswith("amqp") else RedisTasks(broker)

    def replies() -> RabbitMQReplies | RedisReplies:
        return RabbitMQReplies(broker) if backend.startswith("rpc") else RedisReplies(backend)

    # Its threads have a connection of their own.
    answers_at_once, reporter = replies(), Reporter(replies())
    print("ready", flush=True)
    while True:
        answers = []
        for task_id, reply_to, body in tasks.receive():
            args, kwargs, _ = json.loads(body)
            if "delay" in kwargs:
                reporter.begin(task_id, reply_to, **kwargs)
            else:
                answers.append((task_id, reply_to, result(task_id, "SUCCESS", sum(args))))
        answers_at_once.send(answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
