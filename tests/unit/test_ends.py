"""Ends that are neither a value nor an exception: as the caller sees them, and by id."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery, group
from celery.exceptions import Ignore, Reject, Retry
from twisted.internet.task import Clock

from tests.support.outcomes import outcomes_of
from tests.unit.test_canvas import Site
from twistedcelery import TaskFailure, TwistedCelery
from twistedcelery.testing import MemoryTransport


class Shop:
    """An application whose tasks end in unusual ways, and a client on memory."""

    def __init__(self) -> None:
        self.app = Celery("ends", backend="redis://127.0.0.1:1", set_as_current=False)
        self.transport = MemoryTransport()
        self.client = TwistedCelery(self.app, Clock(), transport=self.transport)

        @self.app.task(name="ends.set", shared=False, bind=True)
        def set_state(task, state, meta):
            task.update_state(state=state, meta=meta)
            raise Ignore

        @self.app.task(name="ends.set_and_return", shared=False, bind=True)
        def set_and_return(task, state, meta):
            task.update_state(state=state, meta=meta)
            return "a value"

        @self.app.task(name="ends.ignore", shared=False)
        def ignore():
            raise Ignore("not needed")

        @self.app.task(name="ends.reject", shared=False)
        def reject():
            raise Reject("not mine")

        @self.app.task(name="ends.retry", shared=False, bind=True)
        def retry_by_hand(task):
            raise Retry("later", exc=KeyError("k"))

        @self.app.task(name="ends.parse", shared=False)
        def parse(text):
            return json.loads(text)

    def call(self, name: str, *args: Any) -> Any:
        call = self.client.send_task(f"ends.{name}", args)
        call.states = []
        call.on_update(lambda state, meta: call.states.append((state, type(meta))))
        call.outcomes = outcomes_of(call)
        return call

    def by_id(self, call: Any) -> tuple[Any, Any, list[Any]]:
        """The state, the result and what waiting ends with, for a client that knows the id alone."""
        other = TwistedCelery(self.app, Clock(), transport=self.transport)
        result = other.result(call.task_id)
        (state,) = outcomes_of(result.state)
        (stored,) = outcomes_of(result.result)
        return state, stored, outcomes_of(result.get())


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.mark.parametrize(
    "meta", [{"custom": "why", "code": 7}, None, "no", ["no"], {"message": "no"}], ids=repr
)
@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_failure_with_details_of_its_own(shop, state, meta):
    """The call fails with the details, has its meta, and looks the same by id."""
    call = shop.call("set", state, meta)
    shop.transport.run_all()
    (error,) = call.outcomes
    assert type(error) is TaskFailure
    assert error.stored == meta
    assert call.meta["status"] == state
    assert call.meta["result"] is error
    found, stored, waited = shop.by_id(call)
    assert found == state
    assert [type(stored), *map(type, waited)] == [TaskFailure, TaskFailure]
    assert stored.stored == waited[0].stored == meta


def test_a_retry_with_details_of_its_own(shop):
    """The state RETRY always comes with an exception."""
    call = shop.call("set", "RETRY", {"custom": "why"})
    shop.transport.run_all()
    assert call.states == [("RETRY", TaskFailure)]
    assert call.outcomes == []
    assert shop.by_id(call)[0] == "RETRY"


def test_an_exception_that_cannot_be_made_again(shop):
    """The caller and whoever asks by id get the stored name and module."""
    call = shop.call("parse", "{")
    shop.transport.run_all()
    _, stored, waited = shop.by_id(call)
    for error in (*call.outcomes, stored, *waited):
        assert (type(error).__name__, type(error).__module__) == ("JSONDecodeError", "json.decoder")


@pytest.mark.parametrize(("state", "error"), [("IGNORED", Ignore), ("REJECTED", Reject)])
@pytest.mark.parametrize("name", ["set", "set_and_return"])
def test_a_stored_end_that_is_no_success(shop, name, state, error):
    """It fails the call, and is an end by id. The first final state counts for the caller."""
    call = shop.call(name, state, "why")
    shop.transport.run_all()
    assert list(map(type, call.outcomes)) == [error]
    if name == "set":
        found, stored, waited = shop.by_id(call)
        assert (found, stored) == (state, "why")
        assert list(map(type, waited)) == [error]
        result = shop.client.result(call.task_id)
        assert [outcomes_of(asked()) for asked in (result.ready, result.successful, result.failed)] == [
            [True],
            [False],
            [False],
        ]
        assert list(map(type, outcomes_of(result.maybe_throw()))) == [error]


@pytest.mark.parametrize("name", ["ignore", "reject"])
def test_a_task_that_says_nothing(shop, name):
    """Where nothing is stored, the call goes on waiting. A worker of Celery 5.7 stores a rejection itself."""
    call = shop.call(name)
    shop.transport.run_all()
    assert (call.outcomes, call.states) == ([], [])
    assert shop.by_id(call) == ("PENDING", None, [])


def test_a_retry_by_hand(shop):
    """A task that raises `Retry` itself is not sent again: its state stays RETRY."""
    call = shop.call("retry")
    shop.transport.run_all()
    assert call.outcomes == []
    assert call.states == [("RETRY", KeyError)]
    assert shop.by_id(call)[0] == "RETRY"


@pytest.mark.parametrize(("state", "afterwards"), [("SUCCESS", "early"), ("IGNORED", "a value")])
def test_a_final_state_in_the_middle(shop, state, afterwards):
    """The task has ended for its caller. Celery overwrites what is stored, unless it is SUCCESS."""
    call = shop.call("set_and_return", state, "early")
    shop.transport.run_all()
    assert list(map(type, call.outcomes)) == [Ignore if state == "IGNORED" else str]
    assert shop.by_id(call) == ("SUCCESS", afterwards, [afterwards])
    # The client that made the call is not told otherwise.
    assert outcomes_of(shop.client.result(call.task_id).get()) == [afterwards]


def test_an_ignored_member_of_a_group(shop):
    """The group fails; Celery's own waits for ever."""
    one = shop.app.tasks["ends.set"].s("IGNORED", "why")
    call = shop.client.apply_async(group(one, shop.app.tasks["ends.parse"].s("1")))
    outcomes = outcomes_of(call)
    shop.transport.run_all()
    assert list(map(type, outcomes)) == [Ignore]


def test_a_member_whose_parent_has_failed_has_failed():
    """What a group raises and what the states of its members say agree."""
    site = Site("redis://127.0.0.1:1")
    site.tx_app._binding.bound.store = None
    call = site.tx_app.apply_async(group(site.add(1, 1) | site.add(1), site.add(2, 2)))
    outcomes = outcomes_of(call)
    site.confirm()
    member = call.async_result.results[0]
    site.tx_app._pending.state_changed(
        member.parent.id, {"status": "FAILURE", "result": KeyError("no"), "task_id": member.parent.id}
    )
    assert list(map(type, outcomes)) == [KeyError]
    assert outcomes_of(member.state) == ["FAILURE"]
    assert outcomes_of(member.result) == outcomes
    assert list(map(type, outcomes_of(member.get()))) == [KeyError]
