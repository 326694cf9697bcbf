"""Many time limits, one timer."""

from __future__ import annotations

import gc
import weakref

import pytest
from twisted.internet.task import Clock

from twistedcelery.transports.deadlines import MIN_SWEEP, Deadlines


class Item:
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.settled = False


class Limits:
    """Deadlines, and what expired."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.expired: list[str] = []
        self.deadlines: Deadlines[Item] = Deadlines(self.clock, self.expire)

    def expire(self, item: Item) -> None:
        item.settled = True
        self.expired.append(item.name)

    def add(self, seconds: float, name: str = "") -> Item:
        item = Item(name)
        self.deadlines.add(seconds, item)
        return item


@pytest.fixture
def limits() -> Limits:
    return Limits()


def test_items_expire_in_the_order_of_their_deadlines(limits):
    """Each item expires at its time, whatever the order in which they were added."""
    limits.add(3, "c")
    limits.add(1, "a")
    limits.add(2, "b")
    limits.clock.advance(0.99)
    assert limits.expired == []
    for count in (1, 2, 3):
        limits.clock.advance(1)
        assert limits.expired == ["a", "b", "c"][:count]


def test_many_that_expire_at_once_take_several_turns(limits):
    """They do not hold up the reactor."""
    now = 0.0
    expired: list[str] = []

    def expire(item: Item) -> None:
        nonlocal now
        now += 0.001
        item.settled = True
        expired.append(item.name)

    deadlines: Deadlines[Item] = Deadlines(limits.clock, expire, clock=lambda: now)
    for name in "abcdefghij":
        deadlines.add(1, Item(name))
    in_between: list[list[str]] = []
    limits.clock.callLater(1, lambda: in_between.append(list(expired)))
    limits.clock.advance(1)
    assert in_between == [list("abcd")]
    assert expired == list("abcdefghij")
    assert limits.clock.getDelayedCalls() == []


def test_equal_deadlines_keep_their_order(limits):
    """Of two items with one deadline the first added expires first."""
    limits.add(1, "a")
    limits.add(1, "b")
    limits.clock.advance(1)
    assert limits.expired == ["a", "b"]


def test_settled_items_do_not_expire(limits):
    """What is over in time is left alone, and the rest still expires."""
    limits.add(1, "a").settled = True
    limits.add(2, "b")
    limits.clock.advance(2)
    assert limits.expired == ["b"]


def test_no_time_at_all_expires_in_the_next_turn(limits):
    """An item without time expires, but not while it is being added."""
    limits.add(0, "a")
    assert limits.expired == []
    limits.clock.advance(0)
    assert limits.expired == ["a"]


def test_there_is_one_timer(limits):
    """However many items there are, the reactor has one timer, for the earliest of them."""
    for seconds in (5, 3, 7, 4):
        limits.add(seconds)
    assert [call.getTime() for call in limits.clock.getDelayedCalls()] == [3]


def test_an_idle_object_has_no_timer(limits):
    """When all have expired, nothing is left with the reactor."""
    limits.add(1)
    limits.clock.advance(1)
    assert limits.clock.getDelayedCalls() == []
    limits.add(1, "later")
    limits.clock.advance(1)
    assert limits.expired == ["", "later"]


def test_an_expired_item_may_add_another(limits):
    """What is added while an item expires has its own time."""
    limits.deadlines._expired = lambda item: (limits.expire(item), item.name == "a" and limits.add(1, "b"))
    limits.add(1, "a")
    limits.clock.advance(1)
    assert limits.expired == ["a"]
    limits.clock.advance(1)
    assert limits.expired == ["a", "b"]


def test_an_expired_item_may_stop_everything(limits):
    """After `stop` inside an expiry nothing expires, and no timer is left."""
    limits.deadlines._expired = lambda item: (limits.expire(item), limits.deadlines.stop())
    limits.add(1, "a")
    limits.add(1, "b")
    limits.add(2, "c")
    limits.clock.advance(5)
    assert limits.expired == ["a"]
    assert limits.clock.getDelayedCalls() == []


def test_stop_forgets_all(limits):
    """Nothing expires after `stop`, which may be called twice."""
    limits.add(1)
    limits.deadlines.stop()
    limits.deadlines.stop()
    limits.clock.advance(2)
    assert limits.expired == []
    assert limits.clock.getDelayedCalls() == []


def test_settled_items_are_not_kept_until_their_time_is_up(limits):
    """Messages that were confirmed are let go, although their limit was an hour."""
    freed = []
    for _ in range(3 * MIN_SWEEP):
        item = limits.add(3600)
        item.settled = True
        freed.append(weakref.ref(item))
        del item
    gc.collect()
    assert sum(reference() is not None for reference in freed) <= MIN_SWEEP


def test_sweeping_keeps_what_is_not_settled(limits):
    """Items among many that were settled still expire, each at its time."""
    names = []
    for number in range(5 * MIN_SWEEP):
        item = limits.add(number + 1, str(number))
        if number % 3:
            item.settled = True
        else:
            names.append(str(number))
    limits.clock.pump([1] * (5 * MIN_SWEEP))
    assert limits.expired == names
