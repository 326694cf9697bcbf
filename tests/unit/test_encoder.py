"""Celery's and kombu's own code, recorded: what becomes of a call before it reaches a transport."""

from __future__ import annotations

import datetime
import json
import socket
import threading
from typing import Any

import pytest
from celery import signals
from kombu import Exchange, Queue

from tests.support.transport import bare_app
from twistedcelery.encoding.encoder import Encoder
from twistedcelery.encoding.message import Encoded, OutgoingMessage
from twistedcelery.errors import EncodeError, InvalidCall


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding does no I/O: a socket is a failure."""

    def refuse(*_args: Any, **_options: Any) -> None:
        pytest.fail("a socket was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def receiver():
    """``receiver(signal, handler)``: a handler for the test's duration."""
    connected: list[tuple[Any, Any]] = []

    def connect(signal: Any, handler: Any) -> None:
        signal.connect(handler, weak=False)
        connected.append((signal, handler))

    yield connect
    for signal, handler in connected:
        signal.disconnect(handler)


def nothing() -> None:
    """What a task does here."""


def encoder(reply_to: str | None = "replies", **settings: Any) -> Encoder:
    return Encoder(bare_app(**settings), reply_to)


def encode(with_encoder: Encoder, name: str = "tasks.add", *args: Any, **options: Any) -> Encoded:
    return with_encoder.task(name, args, None, "id-1", with_encoder.options((), options))


def body_of(message: OutgoingMessage) -> Any:
    return json.loads(message.body)


# Messages


def test_protocol_2():
    """A task message of protocol 2 is addressed, serialised and headed as Celery does it."""
    message = encoder().task("tasks.add", (1, 2), {"z": 3}, "id-1", {}).messages[0]
    assert body_of(message) == [
        [1, 2],
        {"z": 3},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    assert (message.exchange, message.routing_key) == ("", "celery")
    assert message.headers["task"] == "tasks.add"
    assert message.headers["id"] == message.task_id == "id-1"
    assert message.properties["content_type"] == "application/json"
    assert message.properties["content_encoding"] == "utf-8"
    assert message.properties["delivery_mode"] == 2
    assert message.properties["reply_to"] == "replies"


def test_protocol_1():
    """A task message of protocol 1 has everything in its body."""
    message = encode(encoder(task_protocol=1), "tasks.add", 1, 2).messages[0]
    body = body_of(message)
    assert (body["task"], body["id"], body["args"]) == ("tasks.add", "id-1", [1, 2])
    assert message.task_id == "id-1"
    assert message.headers == {}


def test_a_task_message_must_find_a_queue():
    """A task that reaches no queue is an error, and its queue is declared first."""
    message = encode(encoder()).messages[0]
    assert message.mandatory
    assert [entity.name for entity in message.declare] == ["celery"]


@pytest.mark.parametrize(
    ("options", "resend"), [({}, False), ({"retry": True}, True), ({"retry": False}, False)]
)
def test_only_retry_true_allows_sending_twice(options, resend):
    """Celery's ``task_publish_retry`` is on by default; only the caller's own word counts here."""
    assert encode(encoder(task_publish_retry=True), **options).messages[0].resend is resend


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({}, None), ({"timeout": 3}, 3), ({"confirm_timeout": 4}, 4), ({"timeout": 3, "confirm_timeout": 4}, 4)],
)
def test_time_limits_of_kombu_limit_publishing(options, seconds):
    """Kombu's ``timeout`` and ``confirm_timeout`` become the message's limit."""
    assert encode(encoder(), **options).messages[0].confirm_timeout == seconds


def test_no_reply_queue_of_our_own_is_celerys():
    """Without one the message names the reply queue that the application's own backend reads."""
    app = bare_app()
    message = Encoder(app).task("tasks.add", (), {}, "id-1", {}).messages[0]
    assert message.properties["reply_to"] == app.thread_oid


def test_routes_and_queues_are_the_applications():
    """``task_routes`` and ``task_queues`` are obeyed."""
    queue = Queue("special", Exchange("special", "topic"), "special.#")
    encoded = encode(
        encoder(
            task_queues=[queue], task_routes={"tasks.*": {"queue": "special", "routing_key": "special.add"}}
        )
    )
    assert (encoded.messages[0].exchange, encoded.messages[0].routing_key) == ("special", "special.add")
    assert [entity.name for entity in encoded.messages[0].declare] == ["special"]


def test_execution_options_of_a_registered_task():
    """What the task's class sets is in the message."""
    app = bare_app()
    app.task(nothing, name="tasks.limited", time_limit=7, serializer="yaml")
    app.finalize()
    message = encode(Encoder(app), "tasks.limited").messages[0]
    assert message.headers["timelimit"] == [7, None]
    assert message.properties["content_type"] == "application/x-yaml"


def test_looking_up_a_task_does_not_finalize_the_application():
    """A client that only knows names may send before, or without, the tasks being loaded."""
    app = bare_app()
    encode(Encoder(app), "tasks.unknown")
    assert not app.finalized


def test_the_event_is_no_part_of_the_call():
    """With ``task_send_sent_event`` there is an event as well, which need not find a queue."""
    encoded = encode(encoder(task_send_sent_event=True))
    assert len(encoded.messages) == 2
    assert encoded.messages[1].exchange == "celeryev"
    assert body_of(encoded.messages[1])["type"] == "task-sent"
    assert not encoded.messages[1].mandatory
    assert encoded.messages[1].task_id is None
    assert len(encode(encoder()).messages) == 1


# ignore_result


@pytest.mark.parametrize(
    ("options", "ignored"), [({}, False), ({"ignore_result": True}, True), ({"ignore_result": False}, False)]
)
def test_ignore_result_as_an_option(options, ignored):
    """The caller's word says whether the result is kept."""
    assert encode(encoder(), **options).ignored == ({"id-1"} if ignored else set())


def test_ignore_result_of_a_registered_task():
    """A task that ignores its results sends none, unless the caller asks for it."""
    app = bare_app()
    app.task(nothing, name="tasks.quiet", ignore_result=True)
    app.finalize()
    assert encode(Encoder(app), "tasks.quiet").ignored
    assert not encode(Encoder(app), "tasks.quiet", ignore_result=False).ignored


# The application


def test_the_application_is_left_alone():
    """Encoding makes no result backend, and changes nothing that other threads see."""
    app = bare_app()
    backend, control, mailbox = app.backend, app.control, app.control.mailbox
    pool = mailbox.producer_pool
    own = Encoder(app, "replies")
    encode(own)
    own.revoke(["a"], terminate=False, signal="SIGTERM")
    assert app.backend is backend
    assert app.control is control
    assert app.control.mailbox is mailbox
    assert mailbox.producer_pool is pool
    assert type(app).__name__ == "Celery"
    assert app.thread_oid != "replies"


def test_revoking_does_no_io_for_an_application_that_has_used_its_control():
    """An application that has sent control commands in Celery's own way keeps its pool to itself."""
    app = bare_app()
    assert app.control.mailbox.producer_pool is not None
    assert Encoder(app).revoke(["a"], terminate=False, signal="SIGTERM").exchange == "celery.pidbox"


def test_another_thread_has_celerys_own_backend():
    """A thread that sends in Celery's own way meets Celery's own backend."""
    app = bare_app()
    encode(Encoder(app, "replies"))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append((type(app.backend).__name__, app.thread_oid)))
    thread.start()
    thread.join()
    assert found[0][0] == "RPCBackend"
    assert found[0][1] != "replies"


def test_a_subclass_of_celery_is_obeyed():
    """An application class of the user's has its say."""
    app = bare_app()

    class Stamping(type(app)):
        def send_task(self, name: str, *args: Any, **options: Any) -> Any:
            return super().send_task(f"prefix.{name}", *args, **options)

    app.__class__ = Stamping
    assert encode(Encoder(app)).messages[0].headers["task"] == "prefix.tasks.add"


def test_a_subclass_of_celery_that_sends_nothing():
    """An application that publishes no message has refused the call."""
    app = bare_app()

    class Silent(type(app)):
        def send_task(self, *_args: Any, **_options: Any) -> Any:
            return None

    app.__class__ = Silent
    with pytest.raises(InvalidCall):
        encode(Encoder(app))


# Signals


def test_handlers_of_before_task_publish_change_the_message(receiver):
    """Tracing libraries add headers in ``before_task_publish``."""
    receiver(signals.before_task_publish, lambda headers, **_: headers.update(trace="t"))
    assert encode(encoder()).messages[0].headers["trace"] == "t"


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish])
def test_a_handler_may_send_another_task(receiver, signal):
    """A task sent by a signal's handler is another message, before or after this one."""
    own = encoder()
    nested: list[Encoded] = []

    def send_another(sender: str, **_: Any) -> None:
        if sender == "tasks.add":
            nested.append(own.task("tasks.audit", (), None, "id-2", {}))

    receiver(signal, send_another)
    encoded = encode(own)
    assert encoded.messages[0].headers["task"] == "tasks.add"
    assert len(encoded.messages) == 1
    assert nested[0].messages[0].headers["task"] == "tasks.audit"


# Bad input


@pytest.mark.parametrize("bad", [object(), {1, object()}, lambda: None])
def test_arguments_that_cannot_be_serialised(bad):
    """They are refused with the task's name, from the serialiser's own error."""
    own = encoder()
    with pytest.raises(EncodeError, match=r"tasks\.add") as caught:
        encode(own, "tasks.add", bad)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": "soon"},
        {"expires": object()},
        {"serializer": "nosuch"},
        {"compression": "nosuch"},
        {"stamped_headers": ["missing"]},
    ],
)
def test_options_that_celery_refuses(options):
    """What Celery or kombu raise for an option is an `InvalidCall`, or an `EncodeError`."""
    with pytest.raises((InvalidCall, EncodeError)):
        encode(encoder(), **options)


@pytest.mark.parametrize("arguments", ["text", 5])
def test_arguments_that_are_no_sequence(arguments):
    """Celery takes a list or a tuple."""
    with pytest.raises(InvalidCall, match="list or tuple"):
        encoder().task("tasks.add", arguments, None, "id-1", {})


def test_a_failure_leaves_nothing_for_the_next_call(monkeypatch):
    """A call that fails after its message was made does not hand that message to the next call."""
    app = bare_app(task_send_sent_event=True)
    own = Encoder(app)
    with monkeypatch.context() as broken:
        broken.setattr(app.amqp._event_dispatcher, "publish", lambda *_args, **_options: 1 / 0)
        with pytest.raises(InvalidCall):
            own.task("tasks.first", (), None, "id-1", {})
    encoded = own.task("tasks.second", (), None, "id-2", {})
    assert encoded.messages[0].headers["task"] == "tasks.second"
    assert len(encoded.messages) == 2
    assert body_of(encoded.messages[1])["uuid"] == "id-2"


# Naming options


def test_positions_are_named_in_celerys_order():
    """``countdown, eta, task_id`` follow the arguments, as in the installed Celery."""
    eta = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    assert encoder().options((None, eta, "id-9"), {"queue": "q"}) == {
        "countdown": None,
        "eta": eta,
        "task_id": "id-9",
        "queue": "q",
    }


def test_an_option_given_twice():
    """By position and by name is once too often."""
    with pytest.raises(InvalidCall, match="countdown"):
        encoder().options((1,), {"countdown": 2})


def test_more_positions_than_celery_has():
    """The error says how many there may be."""
    with pytest.raises(InvalidCall, match="at most"):
        encoder().options((None,) * 50, {})


@pytest.mark.parametrize("name", ["connection", "producer", "publisher"])
def test_other_ways_to_the_broker_are_refused(name):
    """Options that would take the message past this client are refused, unless they are ``None``."""
    with pytest.raises(InvalidCall, match=name):
        encoder().options((), {name: object()})
    assert encoder().options((), {name: None}) == {}


def test_result_cls_is_dropped():
    """The result is the Deferred itself."""
    assert encoder().options((), {"result_cls": object}) == {}


def test_the_callers_options_are_not_changed():
    """What the caller passed is theirs."""
    given = {"result_cls": object, "queue": "q"}
    encoder().options((), given)
    assert given == {"result_cls": object, "queue": "q"}


# Revoking


def test_revoke_is_celerys_broadcast():
    """One command for all ids, to every worker, which may go out twice and need not find one."""
    message = encoder().revoke(["a", "b"], terminate=True, signal="SIGKILL")
    assert message.exchange == "celery.pidbox"
    command = body_of(message)
    assert command["method"] == "revoke"
    assert command["arguments"]["task_id"] == ["a", "b"]
    assert command["arguments"]["terminate"] is True
    assert command["arguments"]["signal"] == "SIGKILL"
    assert command["destination"] is None
    assert message.task_id is None
    assert (message.mandatory, message.resend) == (False, True)
    assert [entity.name for entity in message.declare] == ["celery.pidbox"]
