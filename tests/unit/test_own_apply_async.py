"""Tasks whose class has an ``apply_async`` of its own: locks, headers, ids, results of earlier calls."""

from __future__ import annotations

import pytest
from celery import Task
from celery.result import EagerResult

from tests.support.outcomes import error_of, outcomes_of
from tests.support.transport import bare_app, pacer_of
from twistedcelery.errors import CallRefused, InvalidCall, UnsupportedByBackend


class Locked(Exception):
    """The task's class refuses the call."""


class Tagging(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, headers={"tenant": "x"}, **options)


class Refusing(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        raise Locked("held by another")


class Single(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        key = repr(args)
        if key not in self.sent:
            self.sent[key] = options["task_id"]
            return super().apply_async(args, kwargs, **options)
        return self.AsyncResult(self.sent[key])


class Graceful(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return EagerResult(None, None, "REJECTED")


class Silent(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        super().apply_async(args, kwargs, **options)


class Nothing(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return "nothing"


class Named(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, **{**options, "task_id": "mine"})


def value_of(x):
    return x


def make_app():
    app = bare_app()
    for base in (Tagging, Refusing, Single, Graceful, Silent, Nothing, Named):
        task = app.task(value_of, name=f"own.{base.__name__.lower()}", base=base, shared=False)
        task.sent = {}
    return app


ROADS = {
    "delay": lambda client, name: client.task(client.app.tasks[name]).delay(1),
    "signature": lambda client, name: client.apply_async(client.app.tasks[name].s(1)),
}


@pytest.fixture(params=ROADS)
def call(request, transport):
    client = transport.client(make_app())
    calling = lambda name: ROADS[request.param](client, f"own.{name}")  # noqa: E731  # with the client
    calling.client = client
    return calling


def test_its_headers_are_on_the_message(call, transport):
    """What it adds is sent, also late in a turn."""
    pacer_of(call.client)._budget = 0
    for _ in range(3):
        call("tagging")
    assert [each.message.headers["tenant"] for each in transport.written.publications] == ["x"] * 3


def test_headers_of_the_client_go_beside_its_own(transport):
    """The bridge's headers need not be taken by an ``apply_async`` that gives headers itself."""
    client = transport.client(make_app())
    client.task(client.app.tasks["own.tagging"], {"wamp_authid": "joe"}).delay(1)
    headers = transport.written.last.message.headers
    assert (headers["tenant"], headers["wamp_authid"]) == ("x", "joe")


def test_its_refusal_is_an_error_of_its_own(call, transport):
    """The error has its words, and what it raised as the cause."""
    error = error_of(call("refusing"), CallRefused)
    assert "Locked: held by another" in str(error)
    assert isinstance(error.__cause__, Locked)
    assert transport.written.publications == []


def test_the_result_of_an_earlier_call_is_followed(call, transport):
    """One task is sent; both calls get its value, and cancelling the second revokes nothing."""
    first, second, third = (call("single") for _ in range(3))
    assert first.task_id == second.task_id == third.task_id
    assert (first.sent_before, second.sent_before) == (False, True)
    assert len(transport.written.publications) == 1
    third.addErrback(lambda _: None)
    third.cancel()
    transport.turn()
    assert len(transport.written.publications) == 1
    transport.written.last.confirm()
    transport.replies.reply(first.task_id, "SUCCESS", 1)
    assert outcomes_of(first) == outcomes_of(second) == [1]
    assert outcomes_of(call("single")) == [1]


def test_a_result_that_goes_to_another_client(call, transport):
    """Over ``rpc://`` it cannot be had, and says so."""
    call.client.app.tasks["own.single"].sent["(1,)"] = call.client.app.tasks["own.single"].sent["[1]"] = (
        "other"
    )
    one = call("single")
    assert one.task_id == "other"
    error_of(one, UnsupportedByBackend)


def test_what_is_no_result(call, transport):
    """What was sent is followed; where nothing was sent, the error says so."""
    one = call("silent")
    assert transport.written.last.message.task_id == one.task_id
    transport.replies.reply(one.task_id, "SUCCESS", 2)
    assert outcomes_of(one) == [2]
    assert "returned no result: 'nothing'" in str(error_of(call("nothing"), InvalidCall))
    assert outcomes_of(call("graceful")) == [None]


def test_an_id_of_its_own_choice(call, transport):
    """The call has the id that was sent."""
    one = call("named")
    assert one.task_id == "mine"
    transport.replies.reply("mine", "SUCCESS", 3)
    assert outcomes_of(one) == [3]
