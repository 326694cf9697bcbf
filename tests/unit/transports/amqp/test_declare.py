"""What kombu's entities declare, in the terms of AMQP."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from twistedcelery.transports.amqp.declare import Declaration, declarations


def methods(entity: Any) -> list[str]:
    return [each.method for each in declarations(entity)]


def test_an_exchange():
    """One declaration with kombu's defaults under pika's names."""
    (declared,) = declarations(Exchange("news", "topic"))
    assert declared == Declaration(
        "exchange_declare",
        {
            "exchange": "news",
            "exchange_type": "topic",
            "durable": True,
            "auto_delete": False,
            "arguments": None,
            "passive": False,
        },
    )


def test_a_queue_with_its_exchange_and_binding():
    """The exchange comes first, the binding last."""
    exchange, queue, bound = declarations(Queue("tasks", Exchange("tasks"), "key"))
    assert exchange.arguments["exchange"] == "tasks"
    assert (queue.method, queue.arguments["queue"], queue.arguments["durable"]) == (
        "queue_declare",
        "tasks",
        True,
    )
    assert bound.method == "queue_bind"
    assert {name: bound.arguments[name] for name in ("queue", "exchange", "routing_key")} == {
        "queue": "tasks",
        "exchange": "tasks",
        "routing_key": "key",
    }


def test_a_queue_of_the_default_exchange():
    """The default exchange is neither declared nor bound to."""
    assert methods(Queue("tasks")) == ["queue_declare"]


def test_arguments_of_a_queue():
    """Kombu's own names for RabbitMQ's arguments become RabbitMQ's, in its units."""
    queue = Queue(
        "tasks",
        expires=2.5,
        message_ttl=3,
        max_length=10,
        max_length_bytes=20,
        max_priority=5,
        queue_arguments={"x-queue-type": "quorum"},
    )
    (declared,) = declarations(queue)
    assert declared.arguments["arguments"] == {
        "x-queue-type": "quorum",
        "x-expires": 2500,
        "x-message-ttl": 3000,
        "x-max-length": 10,
        "x-max-length-bytes": 20,
        "x-max-priority": 5,
    }


def test_several_bindings():
    """Each binding is one declaration, with its own arguments."""
    exchange = Exchange("news", "topic")
    queue = Queue("tasks", [binding(exchange, "a"), binding(exchange, "b", arguments={"x": 1})])
    bound = [each.arguments for each in declarations(queue) if each.method == "queue_bind"]
    assert {each["routing_key"]: each["arguments"] for each in bound} == {"a": None, "b": {"x": 1}}
    assert len(bound) == 2


def test_entities_that_are_not_declared():
    """``no_declare`` is obeyed, and so are the names that belong to the broker."""
    assert methods(Queue("tasks", Exchange("tasks", no_declare=True), "key")) == [
        "queue_declare",
        "queue_bind",
    ]
    assert methods(Queue("tasks", Exchange("tasks"), "key", no_declare=True)) == []
    assert methods(Exchange("amq.topic", "topic")) == []
    assert methods(Exchange("")) == []


def test_an_exchange_that_must_exist():
    """A passive exchange is looked for, not made."""
    (declared,) = declarations(Exchange("news", passive=True))
    assert declared.arguments["passive"] is True


def test_a_broadcast_queue():
    """A queue of each consumer's own deletes itself, and its exchange is a fanout."""
    exchange, queue, _bound = declarations(Broadcast("all"))
    assert exchange.arguments["exchange_type"] == "fanout"
    assert queue.arguments["auto_delete"] is True


def test_the_entity_is_not_changed():
    """An entity of the application's stays unbound."""
    queue = Queue("tasks", Exchange("tasks"), "key")
    declarations(queue)
    assert not queue.is_bound
    assert not queue.exchange.is_bound
    assert declarations(queue) == declarations(queue)
