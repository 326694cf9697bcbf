"""Canvases, each made anew for each client that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord, group
from celery.canvas import StampingVisitor

__all__ = ["KEPT", "PLAIN", "Case"]


class Tasks:
    """The tasks of an application, as attributes."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __getattr__(self, name: str) -> Any:
        return self._app.tasks[f"c.{name}"]


class Visitor(StampingVisitor):
    """Stamps every signature."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"colour": "blue"}


class Case:
    """A canvas with the options that it is sent with."""

    def __init__(self, name: str, make: Callable[[Tasks], Any], args: Any = None, **options: Any) -> None:
        self.name = name
        self._make = make
        self.args = args
        self.options = options

    def make(self, app: Celery) -> Any:
        return self._make(Tasks(app))

    def __repr__(self) -> str:
        return self.name


def stamped(signature: Any, **stamps: Any) -> Any:
    signature.stamp(**stamps)
    return signature


def visited(signature: Any) -> Any:
    signature.stamp(visitor=Visitor())
    return signature


#: What every result backend can do.
PLAIN = [
    Case("signature", lambda t: t.add.s(2, 3)),
    Case("immutable signature", lambda t: t.add.si(2, 3), args=(4,)),
    Case("partial signature", lambda t: t.add.s(3), args=(2,)),
    Case("keyword arguments", lambda t: t.keywords.s(a=1, b=[2])),
    Case("signature with options", lambda t: t.option.s("x").set(headers={"x": 5}, priority=3)),
    Case("signature by name", lambda t: t._app.signature("c.add", args=(2, 3))),
    Case("unregistered in the worker", lambda t: t._app.signature("c.nobody", args=(2, 3))),
    Case("dictionary", lambda t: dict(t.add.s(2, 3))),
    Case("failing signature", lambda t: t.fail.s("boo")),
    Case("countdown", lambda t: t.add.s(1, 1), countdown=0.2),
    Case("ignored by option", lambda t: t.add.s(1, 1), ignore_result=True),
    Case("ignoring task", lambda t: t.quiet.s(1)),
    Case("retries", lambda t: t.retry_then_add.s(1, 2)),
    Case("chain", lambda t: chain(t.add.s(2, 2), t.add.s(4), t.mul.s(8))),
    Case("chain of one", lambda t: chain(t.add.s(2, 2))),
    Case("chain by operator", lambda t: t.add.s(2, 2) | t.add.s(4)),
    Case("chain with arguments", lambda t: t.add.s(2) | t.mul.s(3), args=(5,)),
    Case("chain with an immutable", lambda t: t.add.s(2, 2) | t.constant.si() | t.identity.s()),
    Case("nested chains", lambda t: chain(t.add.s(1, 1), chain(t.add.s(2), chain(t.mul.s(3), t.add.s(4))))),
    Case("chain failing first", lambda t: t.fail.s("first") | t.identity.s() | t.identity.s()),
    Case("chain failing amid", lambda t: t.constant.s() | t.fail.s() | t.identity.s()),
    Case("chain failing last", lambda t: t.add.s(1, 1) | t.identity.s() | t.fail.s()),
    Case("chain with retries", lambda t: t.add.s(1, 1) | t.retry_then_add.s(2) | t.mul.s(2)),
    Case("chain with replacement", lambda t: t.add.s(1, 1) | t.replaced_by_chain.s() | t.mul.s(2)),
    Case("chain with a task id", lambda t: t.add.s(1, 1) | t.add.s(2), task_id="chosen-by-the-caller"),
    Case("group", lambda t: group(t.add.s(number, number) for number in range(5))),
    Case("group of one", lambda t: group(t.add.s(1, 1))),
    Case("empty group", lambda t: group([])),
    Case("group with arguments", lambda t: group(t.add.s(1), t.mul.s(3)), args=(5,)),
    Case("group of groups", lambda t: group(t.add.s(1, 1), group(t.add.s(2, 2), group(t.add.s(3, 3))))),
    Case("group of chains", lambda t: group(t.add.s(1, 1) | t.mul.s(2), t.add.s(2, 2) | t.mul.s(3))),
    Case("group with a failure", lambda t: group(t.add.s(1, 1), t.fail.s("second"), t.add.s(2, 2))),
    Case("group with two failures", lambda t: group(t.fail.s("first"), t.fail_after.s(0.7, "second"))),
    Case("group with a failing chain", lambda t: group(t.add.s(1, 1), t.fail.s("x") | t.identity.s())),
    Case("chain to a group", lambda t: t.add.s(1, 1) | group(t.add.s(1), t.mul.s(5))),
    Case("group holding a chain to a group", lambda t: group(t.add.s(1, 1) | group(t.add.s(1), t.mul.s(2)))),
    Case("map", lambda t: t.total.map([(1, 2), (3, 4)])),
    Case("starmap", lambda t: t.add.starmap([(1, 2), (3, 4)])),
    Case("failing map", lambda t: t.fail.map(["a", "b"])),
    Case("chunks", lambda t: t.add.chunks(zip(range(10), range(10), strict=True), 4)),
    Case("chunks as a group", lambda t: t.add.chunks([(n, n) for n in range(10)], 3).group()),
    Case("group of maps", lambda t: group(t.total.map([[1], [2]]), t.add.starmap([(1, 1)]))),
    Case("stamps", lambda t: stamped(t.stamps.s(), customer="x")),
    Case("stamped chain", lambda t: stamped(t.constant.s() | t.stamps.si(), customer="x")),
    Case("stamped group", lambda t: stamped(group(t.stamps.si(), t.stamps.si()), batch=7)),
    Case("visitor", lambda t: visited(t.stamps.si())),
    Case("signature as an argument", lambda t: t.identity.s(t.add.s(1, 2))),
]

#: What needs a result backend that keeps results: chords, and (since the worker forgets the reply
#: queue) a task that replaces itself outside of a chain.
KEPT = [
    Case("replaced by a task", lambda t: t.replaced_by_add.s(1, 2)),
    Case("replaced by a chain", lambda t: t.replaced_by_chain.s(1)),
    Case("chord", lambda t: chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s())),
    Case("chord by operator", lambda t: group(t.add.s(n, n) for n in range(4)) | t.total.s()),
    Case("chord of a generator", lambda t: chord((t.add.s(n, n) for n in range(3)), t.total.s())),
    Case("empty chord", lambda t: chord([], t.total.s())),
    # Later than Celery's client begins to wait: what it raises else depends on who is faster.
    Case(
        "chord with a failing header",
        lambda t: chord([t.add.s(1, 1), t.fail_after.s(0.5, "head")], t.total.s()),
    ),
    Case("chord with a failing body", lambda t: chord([t.add.s(1, 1)], t.fail.si("body"))),
    Case("chord with a chain as body", lambda t: chord([t.add.s(1, 1)], t.total.s() | t.add.s(5))),
    Case("chord with a group as body", lambda t: chord([t.add.s(1, 1)] * 2, group(t.total.s(), t.total.s()))),
    Case("chord of chains", lambda t: chord([t.add.s(1, 1) | t.mul.s(2), t.add.s(2, 2)], t.total.s())),
    Case(
        "chord in a chain", lambda t: t.add.s(1, 1) | group(t.add.s(1), t.mul.s(3)) | t.total.s() | t.add.s(7)
    ),
    Case("chord with arguments", lambda t: chord([t.add.s(1), t.mul.s(2)], t.total.s()), args=(3,)),
    Case("chord in a chord", lambda t: chord([chord([t.add.s(1, 1)] * 2, t.total.s())] * 2, t.total.s())),
    Case("group of chords", lambda t: group(chord([t.add.s(n, n)] * 2, t.total.s()) for n in range(2))),
    Case(
        "two chords in a chain",
        lambda t: (
            group(t.add.s(1, 1), t.add.s(2, 2)) | t.total.s() | group(t.add.s(1), t.add.s(2)) | t.total.s()
        ),
    ),
    Case("immutable body", lambda t: chord([t.add.s(1, 1)], t.constant.si())),
    Case("chord with a countdown", lambda t: chord([t.add.s(1, 1)], t.total.s()), countdown=0.2),
    Case("chord of a map", lambda t: chord([t.add.starmap([(1, 1), (2, 2)])], t.identity.s())),
    Case("replaced by a group", lambda t: t.replaced_by_group.s(1)),
    Case("stamped chord", lambda t: stamped(chord([t.stamps.si()], t.identity.s()), customer="x")),
]
