"""Results, and the results of what those tasks sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

from celery.exceptions import IncompleteStream
from twisted.internet.defer import Deferred, inlineCallbacks

__all__ = ["collect"]


@inlineCallbacks
def collect(root: Any, intermediate: bool) -> Generator[Deferred[Any], Any, list[tuple[Any, Any]]]:
    """As ``AsyncResult.collect``.

    :param root: a `twistedcelery.TaskResult`
    :param intermediate: go on where a task has not ended
    :return: pairs of a result and its value
    :raises IncompleteStream: a task has not ended
    """
    found: list[tuple[Any, Any]] = []
    waiting = deque([root])
    while waiting:
        node = waiting.popleft()
        value = yield node.get()
        found.append((node, value))
        if (yield node.ready()):
            children = node.members if node.members is not None else (yield node.children)
            waiting.extend(children or [])
        elif not intermediate:
            raise IncompleteStream
    return found
