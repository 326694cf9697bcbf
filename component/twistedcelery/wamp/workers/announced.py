"""What workers announce of their tasks, put together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ITEM", "AnnouncedTasks", "parse_registered"]

#: The one attribute of a task that workers are asked for besides its name. A task that keeps its result to
#: itself must be known as such: nobody would ever answer its caller.
ITEM = "ignore_result"

#: As Celery's workers write it. A name may hold anything, also brackets: the last ones are Celery's.
_WITH_ITEM = re.compile(rf"(.+) \[{ITEM}=(True|False)\]", re.DOTALL)


def parse_registered(reply: Any) -> dict[str, bool] | None:
    """A worker's reply to ``registered(ITEM)``: each task's name, and whether it ignores its result.

    :return: ``None`` for what is no such reply
    """
    if not isinstance(reply, list):
        return None
    tasks = {}
    for text in reply:
        if isinstance(text, str) and text:
            found = _WITH_ITEM.fullmatch(text)
            name, ignores = found.groups() if found else (text, "False")
            tasks[name] = ignores == "True"
    return tasks


class AnnouncedTasks:
    """The tasks of all workers that are there.

    :param changed: called with the name of each task that appears, vanishes, or begins to ignore its result
        or no longer does, and with how it is now: ``None``: no worker has it; else whether all who have it
        ignore its result
    """

    def __init__(self, changed: Callable[[str, bool | None], None]) -> None:
        self._changed = changed
        self._workers: dict[str, Mapping[str, bool]] = {}
        #: How many workers have a task, and how many of them ignore its result.
        self._having: Counter[str] = Counter()
        self._ignoring: Counter[str] = Counter()

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._having)

    def put(self, worker: str, tasks: Mapping[str, bool]) -> None:
        """A worker's tasks are these now."""
        before = self._workers.get(worker, {})
        self._workers[worker] = tasks
        # What stays the same costs little, so that workers may be asked often.
        self._change(_beyond(tasks, before), 1)
        self._change(_beyond(before, tasks), -1)

    def remove(self, worker: str) -> None:
        """A worker is gone. One that is not known is ignored."""
        self._change(self._workers.pop(worker, {}), -1)

    def _change(self, tasks: Mapping[str, bool], by: int) -> None:
        for name, ignores in tasks.items():
            before = self._state(name)
            _add(self._having, name, by)
            if ignores:
                _add(self._ignoring, name, by)
            after = self._state(name)
            if after is not before:
                self._changed(name, after)

    def _state(self, name: str) -> bool | None:
        having = self._having[name]
        return self._ignoring[name] == having if having else None


def _beyond(tasks: Mapping[str, bool], others: Mapping[str, bool]) -> dict[str, bool]:
    """What is not the same among the others."""
    return {name: ignores for name, ignores in tasks.items() if others.get(name) is not ignores}


def _add(counter: Counter[str], name: str, by: int) -> None:
    counter[name] += by
    if not counter[name]:
        del counter[name]
