"""Canvases without I/O: what is published, when a call ends, and how. The broker is the test."""

from __future__ import annotations

import gc
import json
import socket
import threading
import uuid
import weakref
from typing import Any

import celery.exceptions
import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from twisted.internet.defer import CancelledError, Deferred

from tests.real.canvas.cases import KEPT, PLAIN
from tests.support.canvasapp import create_app
from tests.support.outcomes import error_of, outcomes_of
from tests.support.transport import FakeTransport, pacer_of
from twistedcelery import GroupDeferred, TwistedCelery
from twistedcelery.errors import (
    BrokerUnavailable,
    CallCancelled,
    Disconnected,
    EncodeError,
    InvalidCall,
    NoResultBackend,
    PublishRejected,
    ResultBackendUnavailable,
    UnsupportedByBackend,
)


class Store:
    """A result store that is asked to prepare chords; its answers are the test's."""

    def __init__(self) -> None:
        self.prepared: list[Any] = []
        self.answers: list[Deferred[None]] = []

    def prepare(self, preparations: Any) -> Deferred[None]:
        self.prepared.extend(preparations)
        self.answers.append(Deferred())
        return self.answers[-1]

    def close(self) -> None:
        pass


class Site:
    """A client on a transport that is the test."""

    def __init__(self, backend: str = "rpc://", **config: Any) -> None:
        self.transport = FakeTransport()
        self.store = Store() if backend != "rpc://" else None
        self.transport.kept = self.store
        self.app = create_app("amqp://127.0.0.1:1//", backend, **config)
        self.tx_app: TwistedCelery = self.transport.client(self.app)

    def task(self, name: str) -> Any:
        return self.app.tasks[f"c.{name}"]

    def add(self, *args: Any) -> Signature:
        return self.task("add").s(*args)

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Name and id of each task message."""
        messages = [publication.message for publication in self.transport.written.tasks()]
        return [(message.headers["task"], message.headers["id"]) for message in messages]

    def revoked(self) -> list[str]:
        """The ids in the revoke commands that were published."""
        self.transport.turn()
        return [
            task_id
            for publication in self.transport.written.publications
            if publication.message.exchange.endswith("pidbox")
            for task_id in json.loads(publication.message.body)["arguments"]["task_id"]
        ]

    def confirm(self) -> None:
        for publication in self.transport.written.publications:
            if publication.open:
                publication.confirm()

    def reply(self, task_id: str, value: Any) -> None:
        failed = isinstance(value, BaseException)
        self.transport.replies.reply(task_id, "FAILURE" if failed else "SUCCESS", value)


@pytest.fixture
def site(monkeypatch):
    return Site()


# Encoding


@pytest.mark.parametrize("case", PLAIN + KEPT, ids=repr)
def test_sending_does_no_io_and_leaves_the_application_alone(case, monkeypatch):
    """No canvas opens a socket, starts a thread or changes the application, its tasks, or itself."""

    def connect(*_: Any) -> None:
        raise AssertionError("something connects")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("threading.Thread.start", connect)
    site = Site("redis://127.0.0.1:1", task_allow_error_cb_on_chord_header=True)
    canvas = case.make(site.app)
    before = json.dumps(canvas, default=dict) if case.name != "chord of a generator" else None
    call = site.tx_app.apply_async(canvas, case.args, **case.options)
    if site.store is not None and site.store.answers:
        site.store.answers[0].callback(None)
    assert bool(site.sent) != call.called == (case.name == "empty group")
    remembering = ("amqp", "control", "events")
    assert all(getattr(site.app, name).app is site.app for name in remembering)
    assert all(task.app is site.app for task in site.app.tasks.values())
    assert site.app.AsyncResult.app is site.app.GroupResult.app is site.app
    if before is not None:
        assert json.dumps(canvas, default=dict) == before
    call.addErrback(lambda failure: failure.trap(Disconnected))
    site.tx_app.disconnect()


#: Canvases given in forms in which Celery itself sends a part at once.
UNUSUAL_FORMS = {
    "body of an empty chord as a keyword": lambda tx, add, total: tx.apply_async(
        chord([]), kwargs={"body": add(1)}
    ),
    "empty chord": lambda tx, add, total: tx.apply_async(chord([], add(1))),
    "empty chord of a generator": lambda tx, add, total: tx.apply_async(chord((n for n in ()), add(1))),
    "body of a chord as a keyword": lambda tx, add, total: tx.apply_async(
        chord([add(1, 1)]), kwargs={"body": total}
    ),
    "links of a chain": lambda tx, add, total: tx.apply_async(
        chain(add(1, 1), add(1)), link=add(2), link_error=[add(3, 3)]
    ),
    "links of a signature": lambda tx, add, total: tx.apply_async(add(1, 1), link=[add(2)]),
    "chord as an option": lambda tx, add, total: tx.apply_async(add(1, 1), chord=total),
}


@pytest.mark.parametrize("form", UNUSUAL_FORMS)
def test_nothing_leaves_by_celerys_own_client(form, monkeypatch):
    """Celery's connections, producers and result backend are never used, whatever the form."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("Celery's blocking client was used")

    site = Site("redis://127.0.0.1:1")
    monkeypatch.setattr("kombu.connection.Connection.ensure_connection", forbidden)
    monkeypatch.setattr("kombu.connection.Connection.connect", forbidden)
    monkeypatch.setattr("kombu.connection.Connection.default_channel", property(forbidden))
    monkeypatch.setattr("celery.backends.redis.RedisBackend.client", property(forbidden))
    call = UNUSUAL_FORMS[form](site.tx_app, site.add, site.task("total").s())
    for answer in site.store.answers:
        answer.callback(None)
    assert site.sent, outcomes_of(call)
    call.addErrback(lambda failure: failure.trap(Disconnected))
    site.tx_app.disconnect()


def test_a_dictionary_is_a_signature_and_stays_as_it_is(site):
    """The JSON form of a canvas, nested, is sent and not changed."""
    canvas = json.loads(json.dumps(chain(site.add(1, 1), group(site.add(1), site.add(2)))))
    before = json.dumps(canvas)
    call = site.tx_app.apply_async(canvas)
    assert isinstance(call, GroupDeferred)
    assert [name for name, _id in site.sent] == ["c.add"]
    assert json.dumps(canvas) == before


def test_arguments_are_passed_on_as_they_are(site):
    """An argument that cannot be copied, only serialised, is serialised at once."""

    class Awkward(str):
        __slots__ = ()

        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("never copied")

    pacer_of(site.tx_app)._budget = 0
    for _ in range(3):
        # What can be copied would wait for a later turn.
        site.tx_app.apply_async(site.add(Awkward("a"), "b"))
        site.tx_app.task(site.task("add")).delay(Awkward("a"), "b")
    bodies = [json.loads(each.message.body)[0] for each in site.transport.written.tasks()]
    assert bodies == [["a", "b"]] * 6


def test_a_burst_is_spread_and_its_arguments_are_those_of_the_call(site):
    """Calls of one task that wait for a later turn send what they were given, under their ids."""
    argument = [0]
    calls = []
    pacer_of(site.tx_app)._budget = 0
    for number in range(3):
        argument[0] = number
        calls.append(site.tx_app.task(site.task("add")).delay(argument, []))
        calls.append(site.tx_app.apply_async(site.add(argument, [])))
    assert len(site.sent) == 1
    assert site.tx_app.in_flight == 6
    pacer_of(site.tx_app)._budget = 60
    site.transport.turn()
    bodies = [json.loads(each.message.body)[0] for each in site.transport.written.tasks()]
    assert bodies == [[[number], []] for number in range(3) for _ in range(2)]
    assert [task_id for _name, task_id in site.sent] == [call.task_id for call in calls]


@pytest.mark.parametrize("option", ["connection", "producer", "publisher"])
def test_other_ways_to_the_broker_are_refused(site, option):
    """As with ``send_task``; nothing is sent."""
    error_of(site.tx_app.apply_async(site.add(1, 1), **{option: object()}), InvalidCall)
    error_of(site.tx_app.task(site.task("add")).apply_async((1, 1), **{option: object()}), InvalidCall)
    assert not site.sent


def test_what_is_no_signature_is_refused(site):
    """Anything but a signature fails the call."""
    for nonsense in (None, "c.add", {}, {"task": "c.add"}, 5):
        error_of(site.tx_app.apply_async(nonsense), InvalidCall)
    error_of(site.tx_app.apply_async(chain()), InvalidCall)
    assert site.tx_app.in_flight == 0


def test_a_part_that_cannot_be_serialised_fails_the_whole_before_anything_is_sent(site):
    """One bad member of a group: the others are not sent, and the next call is not disturbed."""
    error_of(site.tx_app.apply_async(group(site.add(1, 1), site.add(object(), 1))), EncodeError)
    assert not site.sent
    site.tx_app.apply_async(site.add(1, 1))
    assert len(site.sent) == 1


def test_options_of_celerys_that_are_wrong_fail_the_call(site):
    """A group takes no ``link``."""
    error_of(site.tx_app.apply_async(group(site.add(1, 1)), link=site.add(1)), InvalidCall)


# Publishing


def test_published_waits_for_every_message(site):
    """A group counts as published once the broker has all of its messages."""
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(3)))
    published = outcomes_of(call.published)
    assert [publication.message.mandatory for publication in site.transport.written.tasks()] == [True] * 3
    for publication in site.transport.written.tasks():
        assert not published
        publication.confirm()
    assert published == [None]
    assert not call.called


def test_one_message_that_is_refused_fails_the_call_and_is_named(site):
    """The error says which task it was; messages that have not left are taken back."""
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(3)))
    first, second, third = site.transport.written.tasks()
    third.sent = False
    first.confirm()
    second.fail(PublishRejected("not today"))
    error = error_of(call, PublishRejected)
    assert str(error) == f"c.add [{second.message.task_id}]: not today"
    assert not third.open
    assert site.tx_app.in_flight == 0
    assert not site.transport.replies.watched


def test_nothing_is_published_before_results_are_watched(site):
    """All the tasks of a chain are watched first; when that fails, nothing is sent."""
    site.transport.replies.ready = False
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2))
    waiting = list(site.transport.replies.waiting.values())
    assert len(waiting) == 2
    waiting[0].callback(None)
    assert not site.sent
    waiting[1].errback(BrokerUnavailable("gone"))
    error_of(call, BrokerUnavailable)
    assert not site.sent
    assert site.tx_app.in_flight == 0


def test_task_sent_events_are_published_along(monkeypatch):
    """Each event follows its task; one that is lost does not fail the call."""
    site = Site(task_send_sent_event=True)
    call = site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))
    ids = [publication.message.task_id for publication in site.transport.written.publications]
    assert [task_id is None for task_id in ids] == [False, True, False, True]
    site.transport.written.publications[1].fail(PublishRejected("no events"))
    published = outcomes_of(call.published)
    site.confirm()
    assert published == [None]


def test_retry_allows_every_message_to_be_sent_again(site):
    """``retry=True`` is that of ``send_task``."""
    site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)), retry=True)
    assert all(publication.message.resend for publication in site.transport.written.tasks())


# Chords


def test_chords_over_rpc_are_refused_with_celerys_words(site):
    """At once, and nothing is sent, however deep the chord is."""
    for canvas in (
        chord([site.add(1, 1)], site.add(1)),
        site.add(1, 1) | group(site.add(1), site.add(2)) | site.task("total").s(),
    ):
        error = error_of(site.tx_app.apply_async(canvas), UnsupportedByBackend)
        assert 'The "rpc" result backend does not support chords!' in str(error)
        assert isinstance(error, NotImplementedError)
    assert not site.sent


def test_a_chord_is_published_once_the_backend_is_prepared(monkeypatch):
    """Redis is told the chord's size before its header goes out."""
    site = Site("redis://127.0.0.1:1")
    call = site.tx_app.apply_async(chord([site.add(1, 1), site.add(2, 2)], site.task("total").s()))
    assert [preparation.method for preparation in site.store.prepared] == ["apply_chord", "set_chord_size"]
    assert site.store.prepared[1].args == (call.parent.id, 2)
    assert not site.sent
    site.store.answers[0].callback(None)
    assert [name for name, _id in site.sent] == ["c.add", "c.add"]
    assert [task_id for _name, task_id in site.sent] == [member.id for member in call.parent]


def test_a_chord_whose_backend_fails_is_not_published(monkeypatch):
    """The call fails as the backend did."""
    site = Site("redis://127.0.0.1:1")
    call = site.tx_app.apply_async(chord([site.add(1, 1)], site.task("total").s()))
    site.store.answers[0].errback(ResultBackendUnavailable("gone"))
    error_of(call, ResultBackendUnavailable)
    assert not site.sent
    assert site.tx_app.in_flight == 0


def test_backends_without_chords_get_celerys_unlocking_task(monkeypatch):
    """It is published ahead of the header, and needs no preparation."""
    site = Site("db+sqlite://")
    site.tx_app.apply_async(chord([site.add(1, 1), site.add(2, 2)], site.task("total").s()))
    assert [name for name, _id in site.sent] == ["celery.chord_unlock", "c.add", "c.add"]
    assert not site.store.prepared


# How a call ends


def test_a_chain_fires_with_its_last_value(site):
    """Parents keep what they returned."""
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2))
    ((_name, first),) = site.sent
    assert call.parent.id == first != call.task_id
    site.confirm()
    site.reply(first, 2)
    assert not call.called
    site.reply(call.task_id, 4)
    assert outcomes_of(call) == [4]
    assert outcomes_of(call.parent.get()) == [2]
    assert call.meta["result"] == 4
    assert site.tx_app.in_flight == 0
    assert not site.transport.replies.watched


def test_a_chain_fails_with_its_first_failure(site):
    """Also where the last task's own result never comes."""
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2) | site.add(3))
    site.reply(call.parent.parent.id, ValueError("first"))
    assert str(error_of(call, ValueError)) == "first"
    assert site.tx_app.in_flight == 0


def test_a_group_fires_with_its_values_in_order(site):
    """Whatever the order in which they come; a doubled reply does no harm."""
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(3)))
    ids = [member.id for member in call.results]
    for index in (2, 0, 0, 1):
        site.reply(ids[index], index)
    assert outcomes_of(call) == [[0, 1, 2]]


def test_a_group_fails_with_the_failure_that_comes_first(site):
    """As with Celery's native join."""
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(3)))
    ids = [member.id for member in call.results]
    site.reply(ids[2], KeyError("third"))
    error_of(call, KeyError)
    site.reply(ids[0], ValueError("late"))
    site.reply(ids[1], 5)


def test_a_chord_in_a_group_fails_with_what_its_body_is_given(monkeypatch):
    """As with Celery's native join, which looks at the members; a chord alone fails as its header does."""
    site = Site("redis://127.0.0.1:1")
    one = chord([site.add(1, 1), site.add(2, 2)], site.task("total").s())
    call, alone = (site.tx_app.apply_async(canvas) for canvas in (group(one, site.add(3, 3)), one))
    for answer in site.store.answers:
        answer.callback(None)
    (body, _add) = call.results
    site.reply(body.parent.results[0].id, KeyError("header"))
    assert not call.called
    site.reply(body.id, celery.exceptions.ChordError("told"))
    error_of(call, celery.exceptions.ChordError)
    site.reply(alone.parent.results[0].id, KeyError("header"))
    error_of(alone, KeyError)


def test_a_group_is_joined_in_order_where_celery_does_so(monkeypatch):
    """Without a native join, the first member's failure counts, whenever it comes."""
    site = Site("db+sqlite://")
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(2)))
    first, second = (member.id for member in call.results)
    site.reply(second, KeyError("second"))
    assert not call.called
    site.reply(first, ValueError("first"))
    error_of(call, ValueError)


def test_updates_of_the_tasks_that_make_up_the_result_are_passed_on(site):
    """Those of a group's members, and of a chain's last task."""
    seen = []
    call = site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))
    call.on_update(lambda state, meta: seen.append((state, meta)))
    for member in call.results:
        site.transport.replies.reply(member.id, "PROGRESS", member.id)
    assert seen == [("PROGRESS", member.id) for member in call.results]


def test_members_that_keep_their_result_to_themselves_count_as_none(site):
    """A group of such tasks alone ends once it is published."""
    quiet = site.task("quiet")
    call = site.tx_app.apply_async(group(quiet.s(1), site.add(1, 1), site.add(1, 1).set(ignore_result=True)))
    site.confirm()
    assert not call.called
    site.reply(call.results[1].id, 2)
    assert outcomes_of(call) == [[None, 2, None]]
    call = site.tx_app.apply_async(group(quiet.s(1), quiet.s(2)))
    assert not call.called
    site.confirm()
    assert outcomes_of(call) == [[None, None]]


def test_without_a_result_backend(site):
    """The call fails once everything was sent."""
    site.transport.replies.available = False
    call = site.tx_app.apply_async(group(site.add(1, 1), site.add(1, 1)))
    assert not call.called
    site.confirm()
    error_of(call, NoResultBackend)
    error_of(site.tx_app.result("id").get(), NoResultBackend)
    error_of(site.tx_app.result("id").state, NoResultBackend)


def test_a_signature_may_be_frozen_in_another_thread(site):
    """The reply queue that ``freeze()`` names is that thread's; a queue that somebody names stays."""
    signature = site.add(1, 1)
    thread = threading.Thread(target=signature.freeze)
    thread.start()
    thread.join()
    assert signature.options["reply_to"] != site.app.thread_oid
    site.tx_app.apply_async(signature)
    site.tx_app.apply_async(site.add(1, 1).set(task_id="1", reply_to="a-queue"))
    site.tx_app.apply_async(site.add(1, 1).set(task_id="2", reply_to=str(uuid.uuid4())))
    frozen, *named = (one.message.properties["reply_to"] for one in site.transport.written.tasks())
    assert frozen == site.transport.replies.reply_to
    assert named[0] == "a-queue"
    assert uuid.UUID(named[1]).version == 4


def test_an_eager_application_answers_at_once(monkeypatch):
    """With ``task_always_eager`` tasks run where they are called, as with Celery's own client."""
    site = Site(task_always_eager=True)
    assert outcomes_of(site.tx_app.apply_async(site.add(1, 1) | site.add(2))) == [4]
    assert outcomes_of(site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))) == [[2, 4]]
    assert outcomes_of(site.tx_app.task(site.task("add")).delay(1, 1)) == [2]
    error_of(site.tx_app.apply_async(site.task("fail").s("boo")), ValueError)
    error_of(site.tx_app.apply_async(site.add(1)), InvalidCall)
    assert not site.sent


def test_what_eager_tasks_raise_is_passed_on_as_it_is(monkeypatch):
    """With ``task_eager_propagates`` Celery raises it from ``apply_async``; here the call fails with it."""
    site = Site(task_always_eager=True, task_eager_propagates=True)
    fail = site.task("fail")
    for call in (
        site.tx_app.apply_async(fail.s("boo")),
        site.tx_app.task(fail).delay("boo"),
        site.tx_app.apply_async(site.add(1, 1) | fail.s()),
        site.tx_app.apply_async(group(site.add(1, 1), fail.s("boo"))),
    ):
        assert type(error_of(call, ValueError)) is ValueError
    assert site.tx_app.in_flight == 0


@pytest.mark.parametrize("propagates", [False, True])
def test_an_eager_task_that_exits_ends_its_call_alone(monkeypatch, propagates):
    """Not the reactor, also where the task waits for its turn."""
    site = Site(task_always_eager=True, task_eager_propagates=propagates)
    error_of(site.tx_app.apply_async(site.task("leave").s()), SystemExit)
    error_of(site.tx_app.apply_async(site.task("leave").si() | site.add(1, 1)), SystemExit)
    monkeypatch.setattr("twistedcelery.calls.dispatcher.Pacer.has_room", lambda _: False)
    call = site.tx_app.apply_async(site.task("leave").s())
    assert not call.called
    site.transport.turn()
    error_of(call, SystemExit)


@pytest.mark.parametrize("error", ["a wish to be ignored", "a rejection"])
def test_eager_tasks_without_an_outcome_give_none(monkeypatch, error):
    """As ``get()`` of Celery's eager results."""
    site = Site(task_always_eager=True)
    assert outcomes_of(site.tx_app.apply_async(site.task("raising").s(error))) == [None]


# Cancelling and disconnecting


def test_cancelling_revokes_every_task_of_a_canvas(site):
    """Those that have ended excepted."""
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2) | site.add(3))
    site.confirm()
    site.reply(call.parent.parent.id, 2)
    call.cancel()
    error = error_of(call, CallCancelled)
    assert isinstance(error, CancelledError)
    assert set(site.revoked()) == {call.task_id, call.parent.id}
    assert site.tx_app.in_flight == 0
    site.reply(call.task_id, 5)


def test_cancelling_before_anything_has_left_sends_nothing(site):
    """Messages are taken back, and there is nothing to revoke."""
    call = site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))
    for publication in site.transport.written.tasks():
        publication.sent = False
    call.cancel()
    error_of(call, CallCancelled)
    assert not any(publication.open for publication in site.transport.written.tasks())
    assert not site.revoked()


def test_cancelling_while_results_are_not_watched_yet(site):
    """Nothing is published later."""
    site.transport.replies.ready = False
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2))
    call.cancel()
    error_of(call, CallCancelled)
    for waiter in site.transport.replies.waiting.values():
        waiter.callback(None)
    assert not site.sent


def test_revoking_a_canvas_goes_on_waiting(site):
    """``revoke()`` of a group revokes its members."""
    call = site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))
    call.revoke()
    assert set(site.revoked()) == {member.id for member in call.results}
    assert not call.called


def test_disconnecting_ends_canvases(site):
    """Those on their way, and those that wait for their turn."""
    calls = [site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))]
    pacer_of(site.tx_app)._budget = 0
    calls += [site.tx_app.task(site.task("add")).delay(1, 1) for _ in range(3)]
    site.tx_app.disconnect()
    for call in calls:
        error_of(call, Disconnected)
    assert site.tx_app.in_flight == 0
    error_of(site.tx_app.apply_async(site.add(1, 1)), Disconnected)
    error_of(site.tx_app.task(site.task("add")).delay(1, 1), Disconnected)
    error_of(site.tx_app.result("id").get(), Disconnected)


def test_a_call_that_nobody_holds_is_freed_when_it_has_ended(site, logged_errors):
    """Without a garbage collection; its error is heard of at once."""
    gc.disable()
    try:
        call = site.tx_app.apply_async(group(site.add(1, 1), site.add(2, 2)))
        ids = [member.id for member in call.results]
        site.confirm()
        freed = weakref.ref(call)
        del call
        site.transport.written.publications.clear()
        site.reply(ids[0], ValueError("unheard"))
        assert freed() is None
    finally:
        gc.enable()
    assert len(logged_errors.flush(ValueError)) == 1


# Tasks


def test_a_tasks_signature_is_checked(site):
    """Arguments that the task does not take fail the call, as ``Task.apply_async`` raises."""
    error_of(site.tx_app.task(site.task("add")).delay(1), InvalidCall)
    error_of(site.tx_app.apply_async(site.add(1)), InvalidCall)
    assert not site.sent


def test_a_task_has_its_execution_options(site):
    """Those of the task, those of the call, and a task id of the caller's."""
    task = site.tx_app.task(site.task("quiet"))
    call = task.apply_async((1,), task_id="mine", priority=3)
    (publication,) = site.transport.written.tasks()
    assert publication.message.headers["ignore_result"] is True
    assert publication.message.properties["priority"] == 3
    assert publication.message.task_id == call.task_id == call.id == "mine"
    site.confirm()
    assert outcomes_of(call) == [None]


def test_a_tasks_signatures_are_celerys(site):
    """``s``, ``si`` and their like compose as they do in Celery."""
    task = site.tx_app.task(site.task("add"))
    original = site.task("add")
    assert task.s(1, y=2) == original.s(1, y=2)
    assert task.si(1, 2) == original.si(1, 2)
    assert task.signature((1, 2), countdown=3) == original.signature((1, 2), countdown=3)
    assert (task.map([1]), task.starmap([(1, 2)])) == (original.map([1]), original.starmap([(1, 2)]))
    assert task.chunks([(1, 2)], 1) == original.chunks([(1, 2)], 1)
    assert task.name == "c.add"
    assert isinstance(task.s(1), Signature)


def test_a_task_of_another_application_is_sent_by_this_one(site):
    """With its own execution options, to this client's broker."""
    other = create_app("memory://", "cache+memory://")

    @other.task(name="other.task", ignore_result=True)
    def task():
        """Nothing."""

    call = site.tx_app.task(task).delay()
    assert site.sent == [("other.task", call.task_id)]


def test_a_task_class_may_have_its_own_apply_async(site):
    """It is called, and what it sends goes over this client."""

    class Loud(site.app.Task):
        def apply_async(self, args=None, kwargs=None, **options):
            return super().apply_async([*args, 5], kwargs, **options)

    @site.app.task(base=Loud, name="loud")
    def loud(x, y):
        """Nothing."""

    site.tx_app.task(loud).delay(1)
    (publication,) = site.transport.written.tasks()
    assert json.loads(publication.message.body)[0] == [1, 5]


# Results by id, where the backend keeps none


def test_waiting_by_id_and_giving_up(site):
    """A result by id fires with its task; a wait that is cancelled or out of time leaves nothing."""
    waiting = [site.tx_app.result("some-id").get() for _ in range(2)]
    late = site.tx_app.result("some-id").get(timeout=5)
    assert site.transport.replies.watched
    site.transport.clock.advance(6)
    error_of(late, celery.exceptions.TimeoutError)
    waiting[0].cancel()
    error_of(waiting[0], CancelledError)
    site.reply("some-id", 7)
    assert outcomes_of(waiting[1]) == [7]
    assert not site.tx_app._pending._waiting
    assert site.tx_app.in_flight == 0


def test_the_last_states_are_known_for_a_while(site):
    """States that no call took are kept, a bounded number; final ones are those of the calls held."""
    site.tx_app.apply_async(site.add(1, 1))
    for number in range(1500):
        site.reply(str(number), number)
    assert outcomes_of(site.tx_app.result("1499").get()) == [1499]
    assert outcomes_of(site.tx_app.result("0").state) == ["PENDING"]
    call = site.tx_app.apply_async(site.add(1, 1))
    site.transport.replies.reply(call.task_id, "PROGRESS", {"current": 1})
    assert outcomes_of(site.tx_app.result(call.task_id).state) == ["PROGRESS"]
    assert outcomes_of(site.tx_app.result(call.task_id).info) == [{"current": 1}]
    site.reply(call.task_id, 2)
    assert outcomes_of(site.tx_app.result(call.task_id).result) == [2]
    task_id = call.task_id
    del call
    site.transport.written.publications.clear()
    gc.collect()
    assert outcomes_of(site.tx_app.result(task_id).state) == ["PENDING"]
