"""Results, and the results of what those tasks sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

from celery.exceptions import IncompleteStream
from celery.utils.graph import DependencyGraph, GraphFormatter
from twisted.internet.defer import Deferred, inlineCallbacks

__all__ = ["Descendants", "collect", "dependencies"]


@inlineCallbacks
def dependencies(root: Any, intermediate: bool) -> Generator[Deferred[Any], Any, list[tuple[Any, Any]]]:
    """As ``AsyncResult.iterdeps``, without waiting for anything.

    :param root: a `twistedcelery.TaskResult`
    :param intermediate: go on where a task has not ended
    :return: pairs of a result's parent, ``None`` for the root's, and the result
    :raises IncompleteStream: a task has not ended
    """
    found: list[tuple[Any, Any]] = []
    stack = deque([(None, root)])
    while stack:
        parent, node = stack.popleft()
        found.append((parent, node))
        if (yield node.ready()):
            children = node.members if node.members is not None else (yield node.children)
            stack.extend((node, child) for child in children or [])
        elif not intermediate:
            raise IncompleteStream
    return found


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


class Descendants:
    """What a task has sent, and that in turn, as far as it is known: of a `twistedcelery.TaskResult`."""

    id: str

    def iterdeps(self, intermediate: bool = False) -> Deferred[list[tuple[Any, Any]]]:
        """Pairs of a result and what it has sent, the parent first; the first one's parent is ``None``.

        :param intermediate: go on where a task has not ended, instead of failing with
            `celery.exceptions.IncompleteStream`
        """
        return dependencies(self, intermediate)

    def get_leaf(self) -> Deferred[Any]:
        """Wait as `collect`, and fire with the value of the last one."""
        return collect(self, False).addCallback(lambda found: found[-1][1])

    def build_graph(self, intermediate: bool = False, formatter: Any = None) -> Deferred[Any]:
        """What `iterdeps` gives, as a ``celery.utils.graph.DependencyGraph``.

        :param formatter: draws it; ``None``: Celery's own
        """

        def build(found: list[tuple[Any, Any]]) -> Any:
            graph = DependencyGraph(formatter=formatter or GraphFormatter(root=self.id, shape="oval"))
            for parent, node in found:
                graph.add_arc(node)
                if parent is not None:
                    graph.add_edge(parent, node)
            return graph

        return self.iterdeps(intermediate).addCallback(build)
