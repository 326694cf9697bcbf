"""Results by id: their names are Celery's, and what they do without a result backend."""

from __future__ import annotations

from typing import Any

import celery.exceptions
import celery.result
import pytest
from celery import group

from tests.support.outcomes import error_of, outcomes_of
from tests.unit.test_canvas import Site
from twistedcelery import GroupResult, TaskResult

#: What Celery's results have and these do not, with the reason.
LEFT_OUT = {
    "app": "the client's, and no business of a result's",
    "backend": "its methods block",
    "supports_native_join": "how Celery waits, which is not how this waits",
    "iter_native": "blocks; `get(callback=...)` tells of each value as it comes",
    "throw": "is for the promise behind `then`, which is a Deferred here",
    "graph": "a property that blocks: `build_graph`",
    "TimeoutError": "celery.exceptions.TimeoutError",
}


@pytest.fixture
def site(monkeypatch):
    return Site()


@pytest.mark.parametrize(
    ("celerys", "ours"),
    [(celery.result.AsyncResult, TaskResult), (celery.result.GroupResult, GroupResult)],
)
def test_every_name_of_celerys_results_is_there(celerys, ours):
    """Or has a reason not to be."""
    result = ours(None, "an id")
    missing = {name for name in dir(celerys) if name[0] != "_" and not hasattr(type(result), name)}
    assert {name for name in missing if name not in vars(result)} - LEFT_OUT.keys() == set()


def site_with(backend: str) -> Site:
    """A site whose backend has nothing to say but what the test replies."""
    site = Site(backend)
    site.tx_app._binding.bound.store = None
    return site


def started(site: Site) -> tuple[Any, list[str]]:
    """A group of three, and its members' ids."""
    call = site.tx_app.apply_async(group(site.add(number, 1) for number in range(3)))
    call.addErrback(lambda _: None)
    site.confirm()
    return call.async_result, [member.id for member in call.results]


def test_values_are_told_in_order_as_they_come(monkeypatch):
    """Without a native join Celery looks at one member after another; the list is not given once more."""
    site = site_with("db+sqlite://")
    result, ids = started(site)
    told: list[Any] = []
    outcomes = outcomes_of(result.get(callback=lambda *each: told.append(each)))
    site.reply(ids[1], 2)
    assert told == []
    site.reply(ids[0], 1)
    assert told == [(ids[0], 1), (ids[1], 2)]
    assert outcomes == []
    site.reply(ids[2], 3)
    assert told[2:] == [(ids[2], 3)]
    assert outcomes == [[]]


@pytest.mark.parametrize("backend", ["rpc://", "redis://127.0.0.1:1"])
def test_values_are_told_as_they_come_from_a_backend_that_joins(backend, monkeypatch):
    """With a native join whichever member ends first is told first."""
    site = site_with(backend)
    result, ids = started(site)
    told: list[Any] = []
    result.get(callback=lambda *each: told.append(each))
    for number in (2, 0, 1):
        site.reply(ids[number], number)
    assert told == [(ids[2], 2), (ids[0], 0), (ids[1], 1)]


def test_values_are_told_before_the_time_is_up(site):
    """Those that have come when the waiting ends without the others have been told."""
    result, ids = started(site)
    told: list[Any] = []
    waiting = result.get(timeout=1, callback=lambda *each: told.append(each))
    site.reply(ids[0], 1)
    site.transport.clock.advance(1)
    error_of(waiting, celery.exceptions.TimeoutError)
    site.reply(ids[1], 2)
    assert told == [(ids[0], 1)]


def test_values_are_told_until_one_has_failed(site):
    """The failure is the outcome."""
    result, ids = started(site)
    told: list[Any] = []
    waiting = result.get(callback=lambda *each: told.append(each))
    site.reply(ids[0], 1)
    site.reply(ids[1], ValueError("boo"))
    error_of(waiting, ValueError)
    assert told == [(ids[0], 1)]


def test_what_a_callback_raises_ends_the_waiting(site):
    """It reaches whoever waits."""
    result, ids = started(site)

    def broken(_task_id: str, _value: Any) -> None:
        raise LookupError("no")

    waiting = result.get(callback=broken)
    site.reply(ids[0], 1)
    error_of(waiting, LookupError)
    site.reply(ids[1], 2)


def test_then(site):
    """It is called with the result once that has ended, also where the task has failed."""
    for reply in (3, ValueError("boo")):
        call = site.tx_app.apply_async(site.add(1, 2))
        call.addErrback(lambda failure: failure.trap(ValueError))
        site.confirm()
        outcomes = outcomes_of(call.async_result.then(lambda result: result))
        site.reply(call.task_id, reply)
        assert outcomes == [call.async_result]


def test_then_of_what_will_not_be_known(site):
    """The other function is called with the error, or the Deferred fails."""
    call = site.tx_app.apply_async(site.add(1, 2))
    site.confirm()
    handled = outcomes_of(call.async_result.then(lambda _: "ended", lambda error: type(error).__name__))
    unhandled = outcomes_of(call.async_result.then(lambda _: "ended"))
    call.addErrback(lambda _: None)
    site.tx_app.disconnect()
    assert handled == ["Disconnected"]
    assert [type(error).__name__ for error in unhandled] == ["Disconnected"]


def test_a_chain_as_a_list_and_as_a_graph(site):
    """The ids from the last task to the first; and what is known of what tasks have sent."""
    call = site.tx_app.apply_async(site.add(1, 1) | site.add(2))
    last = call.async_result
    assert last.as_list() == [call.task_id, call.parent.id]
    error_of(last.build_graph(), celery.exceptions.IncompleteStream)
    (found,) = outcomes_of(last.iterdeps(intermediate=True))
    assert found == [(None, last)]
    (graph,) = outcomes_of(last.build_graph(intermediate=True))
    assert list(graph) == [last]


def test_members_come_and_go(site):
    """A group's members can be changed, by themselves or by their ids."""
    one, other = site.tx_app.result("one"), site.tx_app.result("other")
    result = site.tx_app.group_result("group", [one])
    result.add(one)
    result.update([one, other])
    assert list(result) == [one, other]
    result.discard("nobody")
    with pytest.raises(KeyError, match="nobody"):
        result.remove("nobody")
    result.remove("one")
    assert result.results == [other]
    result.clear()
    assert len(result) == 0
