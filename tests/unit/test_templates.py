"""Messages that are filled in are those that Celery would have made, byte for byte, or are not filled in."""

from __future__ import annotations

import datetime
import decimal
import itertools
import re
import uuid
from collections.abc import Callable
from typing import Any

import kombu.messaging
import pytest
from celery import Celery, signals
from celery._state import _task_stack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Queue

from tests.support.transport import bare_app
from twistedcelery.encoding.encoder import Encoder
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import EncodeError, InvalidCall
from twistedcelery.transports.amqp.wire import encode_properties

NAME = "tasks.add"


def nothing() -> None:
    """What a task does here."""


class Experienced:
    """An encoder that has learned a kind of call, and notices when Celery makes a message.

    :ivar made: messages that Celery has made
    """

    def __init__(self, app: Celery, args: Any = (1, 2), kwargs: Any = None, **options: Any) -> None:
        self.encoder = Encoder(app, "replies")
        self.made = 0
        publish = self.encoder.recorder.publish

        def counted(*positional: Any, **named: Any) -> None:
            self.made += 1
            publish(*positional, **named)

        self.encoder.recorder.publish = counted  # type: ignore[method-assign]  # to count
        self._ids = map("id-{}".format, itertools.count())
        for _ in range(2):
            self.encode(args, kwargs, **options)
        self.made = 0

    def encode(self, args: Any = (1, 2), kwargs: Any = None, **options: Any) -> OutgoingMessage:
        return self.encoder.task(NAME, args, kwargs, next(self._ids), options).messages[0]


def by_celery(
    app: Celery, task_id: str | None, args: Any = (1, 2), kwargs: Any = None, **options: Any
) -> OutgoingMessage:
    """What an encoder makes that has learned nothing."""
    assert task_id is not None
    return Encoder(app, "replies").task(NAME, args, kwargs, task_id, options).messages[0]


def assert_same(filled: OutgoingMessage, made: OutgoingMessage) -> None:
    assert filled == made
    assert list(filled.headers) == list(made.headers)
    assert list(filled.properties) == list(made.properties)
    assert encode_properties(filled, "guest") == encode_properties(made, "guest")


# The same messages

#: JSON, and what kombu writes as JSON.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=60)
    | st.datetimes(timezones=st.none() | st.just(datetime.UTC))
    | st.decimals(allow_nan=False).filter(decimal.Decimal.is_finite)
    | st.uuids()
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ARGS = st.none() | st.lists(VALUES, max_size=10) | st.lists(VALUES, max_size=10).map(tuple)
KWARGS = st.none() | st.dictionaries(st.text(max_size=8), VALUES, max_size=4)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "queue": st.sampled_from(["celery", "other"]),
    "routing_key": st.text("ab.", max_size=3),
    "exchange": st.sampled_from([None, "", "other"]),
    "priority": st.none() | st.integers(0, 9) | st.booleans(),
    "delivery_mode": st.sampled_from([None, 1, 2]),
    "ignore_result": st.none() | st.booleans(),
    "retry": st.none() | st.booleans(),
    "time_limit": st.none() | st.integers(0, 100) | st.floats(0, 100),
    "soft_time_limit": st.none() | st.integers(0, 100),
    "serializer": st.sampled_from([None, "json", "pickle"]),
    "reply_to": st.none() | st.text(max_size=10),
    "timeout": st.none() | st.floats(1, 10),
    "confirm_timeout": st.none() | st.integers(1, 10),
    "shadow": st.none() | st.text(max_size=10),
    "compression": st.sampled_from([None, "gzip"]),
    "headers": st.dictionaries(st.text(max_size=8), st.integers(-10, 10), max_size=2),
    "link": st.none(),
    "retries": st.integers(0, 3),
    "add_to_parent": st.booleans(),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=st.tuples(ARGS, KWARGS),
    second=st.tuples(ARGS, KWARGS),
    third=st.tuples(ARGS, KWARGS),
    options=st.fixed_dictionaries({}, optional=OPTIONS),
)
def test_whatever_the_arguments_and_options(first, second, third, options):
    """After two calls of a kind, whatever they were, a third one's message is Celery's."""
    app = bare_app(task_default_queue="celery", task_default_delivery_mode=1)
    app.conf.accept_content = ["json", "pickle"]
    encoder = Encoder(app, "replies")
    for task_id, (args, kwargs) in (("first", first), ("second", second)):
        encoder.task(NAME, args, kwargs, task_id, options)
    args, kwargs = third
    (message,) = encoder.task(NAME, args, kwargs, "third", options).messages
    assert_same(message, by_celery(app, "third", args, kwargs, **options))


@settings(max_examples=100, deadline=None)
@given(args=ARGS, kwargs=KWARGS)
def test_plain_calls_are_filled_in(args, kwargs):
    """Arguments are no reason to go the whole way."""
    app = bare_app()
    experienced = Experienced(app)
    message = experienced.encode(args, kwargs)
    assert not experienced.made
    assert_same(message, by_celery(app, message.task_id, args, kwargs))


def test_long_arguments_are_described_as_celery_shortens_them():
    """The descriptions have Celery's lengths and depth."""
    app = bare_app()
    app.amqp.argsrepr_maxsize = 50
    experienced = Experienced(app)
    for args in (["x" * 100], [[[[[1]]]]], list(range(100)), ["it's", "back\\slash", "new\nline"], [2**200]):
        message = experienced.encode(args, {"long": args})
        assert_same(message, by_celery(app, message.task_id, args, {"long": args}))
    assert not experienced.made


def test_execution_options_of_a_registered_task():
    """A task's own options are part of what is learned."""
    app = bare_app()
    app.task(nothing, name=NAME, time_limit=7, ignore_result=True, shared=False)
    app.finalize()
    experienced = Experienced(app)
    encoded = experienced.encoder.task(NAME, (3,), None, "id", {})
    assert not experienced.made
    assert encoded.ignored == {"id"}
    assert_same(encoded.messages[0], by_celery(app, "id", (3,)))


def test_each_kind_is_learned_by_itself():
    """One kind of options says nothing about another, not even where 1 equals True."""
    app = bare_app()
    experienced = Experienced(app, ignore_result=True)
    message = experienced.encode(ignore_result=1)
    assert experienced.made
    assert_same(message, by_celery(app, message.task_id, ignore_result=1))


# The same refusals


@pytest.mark.parametrize("args", [[object()], "text", 5])
def test_refused_as_ever(args):
    """What cannot be sent is refused in the same words."""
    app = bare_app()
    errors = []
    for encode in (Experienced(app).encode, lambda args: by_celery(app, "id", args)):
        with pytest.raises((EncodeError, InvalidCall)) as refused:
            encode(args)
        errors.append((type(refused.value), re.sub("0x[0-9a-f]+", "", str(refused.value))))
    assert errors[0] == errors[1]


# What goes the whole way


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": 10},
        {"eta": datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)},
        {"expires": 100},
        {"headers": {"a": 1}},
        {"compression": "gzip"},
        {"serializer": "pickle"},
        {"link": Celery().signature("tasks.other")},
        {"root_id": "root"},
        {"shadow": "shadow"},
        {"queue": Queue("own")},
        {"stamped_headers": ["a"], "a": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_change_more(options):
    """Options that are not plain are Celery's business at each call."""
    experienced = Experienced(bare_app(), **options)
    experienced.encode(**options)
    assert experienced.made == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"task_protocol": 1},
        {"task_send_sent_event": True},
        {"task_compression": "gzip"},
        {"task_serializer": "pickle"},
        {"task_routes": [lambda name, args, kwargs, options, task=None, **_: {"queue": args[0]}]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_with_which_nothing_is_learned(settings):
    """Settings with which a message depends on more go the whole way."""
    experienced = Experienced(bare_app(**settings), args=("a",))
    experienced.encode(("b",))
    assert experienced.made


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish])
def test_handlers_of_the_publish_signals(signal):
    """A handler sees each call, and may change its message."""
    experienced = Experienced(bare_app())
    seen: list[Any] = []

    def handler(sender: Any, **_arguments: Any) -> None:
        seen.append(sender)

    signal.connect(handler)
    try:
        experienced.encode()
    finally:
        signal.disconnect(handler)
    assert seen == [NAME]


def test_a_task_that_the_caller_runs_in():
    """Inside a task, a call has a parent."""
    app = bare_app()
    experienced = Experienced(app)
    app.task(nothing, name="tasks.parent", shared=False)
    parent = app.tasks["tasks.parent"]
    parent.push_request(id="parent", root_id="root", called_directly=False)
    _task_stack.push(parent)
    try:
        message = experienced.encode()
    finally:
        _task_stack.pop()
        parent.pop_request()
    assert (message.headers["root_id"], message.headers["parent_id"]) == ("root", "parent")


def change_setting(app: Celery, _monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.task_send_sent_event = True


def change_settings(app: Celery, _monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.update({"task_repr_maxlevels": 1})


def add_defaults(app: Celery, _monkeypatch: pytest.MonkeyPatch) -> None:
    app.add_defaults({"some_setting": 1})


def around(function: Callable[..., Any]) -> Callable[..., Any]:
    """As an instrumentation of somebody else's does it."""

    def wrapper(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapper


def patch_send_task(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Celery, "send_task", around(Celery.send_task))


def patch_publish(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kombu.messaging.Producer, "publish", around(kombu.messaging.Producer.publish))


def set_a_router(app: Celery, _monkeypatch: pytest.MonkeyPatch) -> None:
    app.amqp.router = app.amqp.Router(app.amqp.queues)


@pytest.mark.parametrize(
    "change",
    [
        change_setting,
        change_settings,
        add_defaults,
        patch_send_task,
        patch_publish,
        set_a_router,
    ],
)
def test_what_was_learned_is_forgotten(change: Callable[..., None], monkeypatch):
    """Once anything is changed that messages follow from, Celery makes them again."""
    app = bare_app()
    experienced = Experienced(app)
    change(app, monkeypatch)
    experienced.encode()
    assert experienced.made


def test_a_wrapper_of_send_task_is_never_passed_by(monkeypatch):
    """Not even where it was there before: it may add something now and then."""
    patch_send_task(Celery(), monkeypatch)
    experienced = Experienced(bare_app())
    experienced.encode()
    assert experienced.made == 1


def test_a_subclass_is_never_passed_by():
    """An application's own ``send_task`` is called each time."""

    class Own(Celery):
        def send_task(self, *args: Any, **options: Any) -> Any:
            return super().send_task(*args, priority=4, **options)

    experienced = Experienced(Own("own", broker="amqp://"))
    assert experienced.encode().properties["priority"] == 4
    assert experienced.made == 1


def test_any_number_of_kinds():
    """Kinds that are used once do not pile up."""
    encoder = Encoder(bare_app(), "replies")
    for number in range(1500):
        encoder.task(f"tasks.{number}", (), None, uuid.uuid4().hex, {})
    assert len(encoder._templates._examples) <= 1000


def test_large_arguments_are_not_kept():
    """What is learned does not hold the arguments it was learned from."""
    encoder = Encoder(bare_app(), "replies")
    for task_id in ("first", "second", "third"):
        encoder.task(NAME, ["x" * 100_000], None, task_id, {})
    kind = encoder._templates.kind(NAME, (), {}, {})
    learned = encoder._templates.find(kind)
    assert learned is not None
    assert sum(map(len, (learned.message.body, *learned.message.headers["argsrepr"]))) < 2_000
