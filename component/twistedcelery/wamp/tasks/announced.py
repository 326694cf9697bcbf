"""Combines what workers announce of their tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ITEM", "AnnouncedTasks", "parse_registered"]

#: The one attribute of a task that workers are asked for besides its name. The bridge must know a task with
#: an ignored result: its caller would wait for ever.
ITEM = "ignore_result"

#: The form that Celery's workers use. A name may contain brackets; the last ones are Celery's.
_WITH_ITEM = re.compile(rf"(.+) \[{ITEM}=(True|False)\]", re.DOTALL)


def parse_registered(reply: Any) -> dict[str, bool] | None:
    """Parse a worker's reply to ``registered(ITEM)``.

    :return: for each task's name, whether the task ignores its result; ``None`` if it is no such reply
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
    """The tasks of all online workers.

    :param changed: called with the name of each task that changes, and its new state: ``None`` if no worker
        has it, else whether all workers that have it ignore its result
    """

    def __init__(self, changed: Callable[[str, bool | None], None]) -> None:
        self._changed = changed
        self._workers: dict[str, Mapping[str, bool]] = {}
        #: By task: how many workers have it, and how many of them ignore its result.
        self._having: Counter[str] = Counter()
        self._ignoring: Counter[str] = Counter()

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._having)

    def put(self, worker: str, tasks: Mapping[str, bool]) -> tuple[list[str], list[str]]:
        """Replace a worker's tasks.

        :return: the tasks that no worker had, and those that no worker has any more
        """
        before = self._workers.get(worker, {})
        self._workers[worker] = tasks
        # Unchanged tasks cost little, so that workers may be asked often.
        appeared = self._change(_difference(tasks, before), 1)
        return appeared, self._change(_difference(before, tasks), -1)

    def remove(self, worker: str) -> list[str]:
        """Remove a worker's tasks. An unknown worker is ignored.

        :return: the tasks that no worker has any more
        """
        return self._change(self._workers.pop(worker, {}), -1)

    def _change(self, tasks: Mapping[str, bool], by: int) -> list[str]:
        """Return the tasks that appeared or disappeared."""
        crossed = []
        for name, ignores in tasks.items():
            before = self._state(name)
            _add(self._having, name, by)
            if ignores:
                _add(self._ignoring, name, by)
            after = self._state(name)
            if after is not before:
                self._changed(name, after)
            if (before is None) is not (after is None):
                crossed.append(name)
        return crossed

    def _state(self, name: str) -> bool | None:
        having = self._having[name]
        return self._ignoring[name] == having if having else None


def _difference(tasks: Mapping[str, bool], others: Mapping[str, bool]) -> dict[str, bool]:
    """The tasks that the others lack, or have in another state."""
    return {name: ignores for name, ignores in tasks.items() if others.get(name) is not ignores}


def _add(counter: Counter[str], name: str, by: int) -> None:
    counter[name] += by
    if not counter[name]:
        del counter[name]
