"""Limits the tasks in flight, in total and for each caller.

A task in flight is in one of three groups, each with the same limits:

- *scheduled*: its ETA is not due. Such tasks take no place from those that run.
- *running*: it waits for a worker, or runs.
- *released*: it gave its place back before its end, because it was revoked, has expired without a sign of
  life, or is old. Nobody is refused on account of these. Where there are too many, the oldest is given up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.invocation import Caller

__all__ = ["EXPIRY_GRACE", "Slot", "SlotHolder", "Slots"]

#: Seconds after a task's expiry in which a sign of life may still come. RabbitMQ drops an expired message,
#: and nobody answers for it.
EXPIRY_GRACE = 10.0


class SlotHolder(Protocol):
    """A task in flight."""

    @property
    def caller(self) -> Caller:
        """Who sent it."""

    @property
    def shows_life(self) -> bool:
        """Whether a worker has reported a state of it."""

    def cancel(self) -> None:
        """Give it up. It ends at once."""


class Slots:
    """The places of one bridge's tasks."""

    def __init__(self, config: Configuration, clock: Clock) -> None:
        limits = config.max_in_flight, config.max_in_flight_per_caller
        self.clock = clock
        self.max_age = config.max_in_flight_age
        self.scheduled = _Group(*limits)
        self.running = _Group(*limits)
        self.released = _Group(*limits)

    def why_not(self, caller: Caller, is_scheduled: bool) -> str | None:
        """Why there is no place for another task; ``None``: there is one.

        A scheduled task will run, so it needs room in both groups.
        """
        return self.running.why_full(caller.identity, "in flight") or (
            self.scheduled.why_full(caller.identity, "scheduled") if is_scheduled else None
        )

    def take(self, holder: SlotHolder, due_in: float, expires_in: float | None) -> Slot:
        """Take a place for a task.

        :param due_in: seconds until it may run
        :param expires_in: seconds until it may not be started any more
        """
        return Slot(self, holder, due_in, math.inf if expires_in is None else expires_in)

    def add_released(self, slot: Slot) -> None:
        """Keep a slot that was given back, or give up the oldest of too many."""
        self.released.add(slot)
        crowded = self.released.crowded(slot)
        if crowded is not None:
            crowded.holder.cancel()


class Slot:
    """The place of one task."""

    __slots__ = ("_back_at", "_due_at", "_expired_at", "_group", "_slots", "_timer", "holder", "owner")

    def __init__(self, slots: Slots, holder: SlotHolder, due_in: float, expires_in: float) -> None:
        now = slots.clock.seconds()
        self.holder = holder
        self.owner = holder.caller.identity
        self._slots = slots
        self._due_at = now + max(0.0, due_in)
        self._expired_at = now + max(0.0, expires_in) + EXPIRY_GRACE
        self._back_at = math.inf if slots.max_age is None else self._due_at + slots.max_age
        self._timer: Timer | None = None
        self._group: _Group | None = None
        self._enter(slots.scheduled if due_in > 0 else slots.running)

    def release(self) -> None:
        """Give it back, though the task has not ended."""
        if self._group is not None and self._group is not self._slots.released:
            self._leave()
            self._group = self._slots.released
            self._slots.add_released(self)

    def end(self) -> None:
        """Give it back: the task has ended."""
        self._leave()

    def _enter(self, group: _Group) -> None:
        self._group = group
        group.add(self)
        self._wait()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._group is not None:
            self._group.remove(self)
            self._group = None

    def _wait(self) -> None:
        following = self._due_at if self._group is self._slots.scheduled else self._back_at
        moment = min(following, self._expired_at)
        if moment < math.inf:
            left = moment - self._slots.clock.seconds()
            self._timer = self._slots.clock.callLater(max(0.0, left), self._moment_came, moment)

    def _moment_came(self, moment: float) -> None:
        self._timer = None
        if moment == self._expired_at and self.holder.shows_life:
            # It was started in time.
            self._expired_at = math.inf
            self._wait()
        elif self._group is self._slots.scheduled and moment != self._expired_at:
            self._leave()
            self._enter(self._slots.running)
        else:
            self.release()


class _Group:
    """Slots, by caller, in the order in which they came.

    :param limit: for all
    :param own_limit: for each caller; ``None``: none
    """

    def __init__(self, limit: int, own_limit: int | None) -> None:
        self._limit = limit
        self._own_limit = own_limit
        self._by_owner: dict[Hashable, dict[Slot, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, slot: Slot) -> None:
        self._by_owner.setdefault(slot.owner, {})[slot] = None
        self._count += 1

    def remove(self, slot: Slot) -> None:
        own = self._by_owner[slot.owner]
        del own[slot]
        self._count -= 1
        if not own:
            del self._by_owner[slot.owner]

    def why_full(self, owner: Hashable, what: str) -> str | None:
        if self._count >= self._limit:
            return f"{self._limit} tasks are {what} already; try again later"
        if self._own_limit is not None and self._owned(owner) >= self._own_limit:
            return f"{self._own_limit} of your tasks are {what} already; try again later"
        return None

    def crowded(self, slot: Slot) -> Slot | None:
        """The oldest slot of the caller who has too many; ``None``: nobody has."""
        owner: Hashable = slot.owner
        if self._count > self._limit:
            owner = max(self._by_owner, key=lambda each: len(self._by_owner[each]))
        elif self._own_limit is None or self._owned(owner) <= self._own_limit:
            return None
        return next(iter(self._by_owner[owner]))

    def _owned(self, owner: Hashable) -> int:
        # Undisclosed callers cannot be told apart: a limit for one would be one for all.
        return 0 if owner is None else len(self._by_owner.get(owner, ()))
