"""The program: ``python -m bench.stub BROKER_URL BACKEND_URL``. It prints ``ready`` once it consumes."""

from __future__ import annotations

import json
import sys

from bench.stub.rabbitmq import RabbitMQReplies, RabbitMQTasks
from bench.stub.redis import RedisReplies, RedisTasks


def main(broker: str, backend: str) -> None:
    """Answer tasks until the process is ended."""
    tasks = RabbitMQTasks(broker) if broker.startswith("amqp") else RedisTasks(broker)
    replies = RabbitMQReplies(broker) if backend.startswith("rpc") else RedisReplies(backend)
    print("ready", flush=True)
    while True:
        answers = []
        for task_id, reply_to, body in tasks.receive():
            (x, y), _, _ = json.loads(body)
            result = {
                "task_id": task_id,
                "status": "SUCCESS",
                "result": x + y,
                "traceback": None,
                "children": [],
            }
            answers.append((task_id, reply_to, json.dumps(result).encode()))
        replies.send(answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
