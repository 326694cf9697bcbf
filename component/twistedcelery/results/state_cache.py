"""Keeps the last states of tasks, for result backends that do not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

__all__ = ["MAX_STATES", "Holder", "StateCache"]

#: How many tasks' states are kept that nobody else has.
MAX_STATES = 1000


class Holder(Protocol):
    """Somebody who has a task's final state, such as the call that waited for it."""

    meta: Mapping[str, Any] | None


class StateCache:
    """The last state of tasks: of those heard of last, and of those whose call somebody holds.

    A result over ``rpc://`` is a message: once it was delivered, nobody else has it. Results may
    be large, so those that were delivered to a call live as long as the call.

    :param limit: how many of the others are kept; the one heard of first is forgotten first
    """

    def __init__(self, limit: int = MAX_STATES) -> None:
        self._limit = limit
        self._states: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._holders: WeakValueDictionary[str, Holder] = WeakValueDictionary()

    def note(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Keep a state."""
        self._states[task_id] = meta
        self._states.move_to_end(task_id)
        while len(self._states) > self._limit:
            self._states.popitem(last=False)

    def delivered(self, task_id: str, holder: Holder) -> None:
        """Somebody has the final state."""
        self._states.pop(task_id, None)
        self._holders[task_id] = holder

    def get(self, task_id: str) -> Mapping[str, Any] | None:
        """The last state of a task, if it is known."""
        holder = self._holders.get(task_id)
        return self._states.get(task_id) if holder is None else holder.meta

    def forget(self, task_id: str) -> None:
        """Know it no longer."""
        self._states.pop(task_id, None)
        self._holders.pop(task_id, None)
