"""Canvases, each made anew for each client that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord, group
from celery.canvas import StampingVisitor

from tests.support.canvasapp import ERRORS, VALUES

__all__ = ["FROZEN", "KEPT", "PLAIN", "PROCESSES", "REFUSED", "REPLACED", "Case"]


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


def frozen(signature: Any, task_id: str | None = None) -> Any:
    signature.freeze(task_id)
    return signature


def immutable(signature: Any) -> Any:
    signature.set_immutable(True)
    return signature


def linked(signature: Any, callback: Any) -> Any:
    signature.link(callback)
    return signature


def with_errback(signature: Any, callback: Any) -> Any:
    signature.link_error(callback)
    return signature


def through_json(signature: Any) -> Any:
    return json.loads(json.dumps(signature))


def skewed(members: Any) -> Any:
    return members.skew(start=0, stop=0.3, step=0.1)


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
    Case("chain as an argument", lambda t: t.identity.s(t.add.s(1, 2) | t.add.s(3))),
    *(
        Case(f"raising {kind}", lambda t, kind=kind: t.raising.s(kind))
        for kind in ERRORS
        if "ignored" not in kind
    ),
    *(Case(f"returning {kind}", lambda t, kind=kind: t.returning.s(kind)) for kind in VALUES),
    Case("retries used up", lambda t: t.give_up.s()),
    Case("retries used up with an error", lambda t: t.give_up.s(True)),
    Case("automatic retries used up", lambda t: t.divide.s(1, 0)),
    Case("failure of an ignoring task", lambda t: t.quiet_failure.s("boo")),
    Case("ignoring task whose result is wanted", lambda t: t.quiet.s(1), ignore_result=False),
    Case("expired", lambda t: t.add.s(1, 1), expires=-5),
    Case("expired group", lambda t: group(t.add.s(1, 1)), expires=-5),
    Case("task with a way of its own", lambda t: t.tagged.s()),
    Case("chain of such tasks", lambda t: t.tagged.si() | t.tagged.si()),
    Case("group of such tasks", lambda t: group(t.tagged.s(), t.tagged.s())),
    Case("chain through JSON", lambda t: through_json(t.add.s(1, 1) | t.add.s(2))),
    Case("group through JSON", lambda t: through_json(group(t.add.s(1, 1), t.add.s(2, 2)))),
    Case("set to immutable", lambda t: immutable(t.add.s(1, 1)), args=(5,)),
    Case("clone", lambda t: t.add.s(1).clone(args=(2,))),
    Case("replaced arguments", lambda t: t.add.s(1, 1).replace(args=(4, 4))),
    Case("unchained", lambda t: (t.add.s(1, 1) | t.add.s(5, 5)).unchain_tasks()[-1]),
    Case("chain of a generator", lambda t: chain(t.add.s(*[1] * (1 + (n == 0))) for n in range(3))),
    Case("chain of a group", lambda t: chain(group(t.add.s(1, 1)))),
    Case("group of a group of one", lambda t: group(group(t.add.s(1, 1)))),
    Case("group of a chain of one", lambda t: group(chain(t.add.s(1, 1)))),
    Case("group with a countdown", lambda t: group(t.add.s(1, 1), t.add.s(2, 2)), countdown=0.1),
    Case("skewed group", lambda t: skewed(t.add.chunks([(n, n) for n in range(3)], 1).group())),
    Case("map in a chain", lambda t: t.identity.map([1, 2]) | t.total.s()),
    Case("starmap of a generator", lambda t: t.add.starmap((n, n) for n in range(3))),
    Case("empty map", lambda t: t.identity.map([])),
    Case("chunks of a generator", lambda t: t.add.chunks(((n, n) for n in range(5)), 2)),
    Case("linked", lambda t: linked(t.request.s(), t.identity.s())),
    Case("linked chain", lambda t: linked(t.add.s(1, 1) | t.request.s(), t.identity.s())),
    Case("error callback", lambda t: with_errback(t.fail.s("boo"), t.identity.s())),
    Case("error callback of a chain", lambda t: with_errback(t.fail.s("x") | t.add.s(1), t.identity.s())),
    Case("error callback of a group", lambda t: with_errback(group(t.fail.s("x")), t.identity.s())),
    Case(
        "every option",
        lambda t: t.request.s(1, k=2),
        argsrepr="A",
        kwargsrepr="K",
        shadow="another name",
        headers={"x": 1},
        priority=3,
        soft_time_limit=20,
        time_limit=30,
        compression="gzip",
        retries=1,
    ),
    Case("options that are set", lambda t: t.request.s().set(shadow="s", headers={"x": 1}, priority=4)),
    Case("options of a chain", lambda t: t.request.si() | t.request.si(), headers={"x": 1}, priority=2),
    Case("options of a group", lambda t: group(t.request.s(1), t.request.s(2)), headers={"x": 1}),
    Case("keywords of a group", lambda t: group(t.request.s(), t.request.s()), kwargs={"q": 1}),
    Case("root and parent", lambda t: t.request.s() | t.request.si(), root_id="root", parent_id="parent"),
    Case("stamps as options", lambda t: t.request.s(), stamped_headers=["a"], a=2),
    Case("two stamps", lambda t: stamped(stamped(t.request.s(), a=1), b=2)),
    Case("visited chain", lambda t: visited(t.request.si() | t.request.si())),
    Case("visited group", lambda t: visited(group(t.request.s(), t.request.s()))),
    Case("linked and visited", lambda t: visited(linked(t.request.s(), t.identity.s()))),
]

#: Signatures whose ids were asked for beforehand. Celery's own results, which that makes, may connect
#: to their backend when they are dropped.
FROZEN = [
    Case("frozen signature", lambda t: frozen(t.add.s(1, 1), "chosen-before-1")),
    Case("frozen chain", lambda t: frozen(t.add.s(1, 1) | t.add.s(2))),
    Case("frozen group", lambda t: frozen(group(t.add.s(1, 1), t.add.s(2, 2)))),
    Case("frozen dictionary", lambda t: through_json(frozen(t.add.s(1, 1), "chosen-before-2"))),
]

#: What a worker whose pool has processes does to tasks.
PROCESSES = [
    Case("soft time limit", lambda t: t.warned.s(5)),
    Case("hard time limit", lambda t: t.stopped.s(20)),
    Case("hard time limit in a chain", lambda t: t.stopped.s(20) | t.identity.s()),
    Case("exit", lambda t: t.leave.s()),
    Case("lost process", lambda t: t.die.s()),
]

#: What Celery's ``apply_async`` refuses.
REFUSED = [
    Case("too few arguments", lambda t: t.add.s(1)),
    Case("too many arguments", lambda t: t.add.s(1, 2, 3)),
    Case("unknown keyword", lambda t: t.add.s(1, 2, z=3)),
    Case("too few arguments in a group", lambda t: group(t.add.s(1), t.add.s(1, 1))),
    Case("too few arguments in a chord", lambda t: chord([t.add.s(1), t.add.s(1, 1)], t.total.s())),
    Case("not to be serialised", lambda t: t.identity.s(object())),
    Case("not to be serialised in a chain", lambda t: t.identity.s(1) | t.add.s(object())),
    Case("unknown serializer", lambda t: t.add.s(1, 1), serializer="none-such"),
    Case("unknown compression", lambda t: t.add.s(1, 1), compression="none-such"),
    Case("countdown that is no number", lambda t: t.add.s(1, 1), countdown="x"),
    Case("group with a callback", lambda t: group(t.add.s(1, 1)), link={}),
]

#: Tasks that replace themselves outside of a chain. Over rpc, their worker forgets the reply queue.
REPLACED = [
    Case("replaced by a task", lambda t: t.replaced_by_add.s(1, 2)),
    Case("replaced by a chain", lambda t: t.replaced_by_chain.s(1)),
    Case("replaced by a group", lambda t: t.replaced_by_group.s(1)),
    Case("replaced by a chord", lambda t: t.replaced_by_chord.s(4)),
    Case("replaced by a chord in a chain", lambda t: t.replaced_by_chord.s(4) | t.add.s(1)),
    Case("replaced in a group", lambda t: group(t.replaced_by_chord.s(4), t.add.s(1, 1))),
    Case("replaced in a chord", lambda t: chord([t.replaced_by_chord.s(4), t.add.s(1, 1)], t.total.s())),
]

#: Chords, which rpc refuses, but for those of one task.
KEPT = [
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
    Case("stamped chord", lambda t: stamped(chord([t.stamps.si()], t.identity.s()), customer="x")),
    Case("visited chord", lambda t: visited(chord([t.request.si()] * 2, t.identity.s()))),
    Case("chord through JSON", lambda t: through_json(chord([t.add.s(1, 1)] * 2, t.total.s()))),
    Case("chord with options", lambda t: chord([t.request.si()] * 2, t.identity.s()), headers={"x": 1}),
    Case("chord that polls", lambda t: chord([t.add.s(1, 1)] * 2, t.total.s(), interval=0.1, max_retries=90)),
    Case("chord with a task id", lambda t: chord([t.add.s(1, 1)] * 2, t.total.s()), task_id="of-the-body"),
    Case("chord with keywords", lambda t: chord([t.request.s()] * 2, t.identity.s()), kwargs={"q": 1}),
    Case("cloned chord", lambda t: chord([t.add.s(1, 1)] * 2, t.total.s()).clone()),
    Case(
        "chord with a linked body", lambda t: chord([t.add.s(1, 1)] * 2, linked(t.total.s(), t.identity.s()))
    ),
    Case("chord of groups", lambda t: chord([t.add.s(1, 1), group([t.add.s(2, 2)] * 2)], t.total.s())),
    Case("chord of chunks", lambda t: t.add.chunks([(1, 1), (2, 2)], 1).group() | t.identity.s()),
    Case("group to a group", lambda t: group([t.add.s(1, 1)] * 2) | group(t.total.s(), t.total.s())),
    Case("group of one in a chain", lambda t: group(t.add.s(1, 1)) | t.identity.s()),
    Case("widened chord", lambda t: chord([t.widen.s(1), t.add.s(1, 1)], t.total.s())),
    Case("chord as a body", lambda t: chord([t.add.s(1, 1)] * 2, chord([t.total.s()] * 2, t.total.s()))),
    Case(
        "chord with a body that fails amid", lambda t: chord([t.add.s(1, 1)] * 2, t.fail.si("x") | t.add.s(1))
    ),
    Case(
        "chord with an error callback",
        lambda t: with_errback(chord([t.add.s(1, 1), t.fail_after.s(0.5, "x")], t.total.s()), t.identity.s()),
    ),
    Case(
        "chord in a chord in a group",
        lambda t: group(chord([chord([t.add.s(1, 1)] * 2, t.total.s()), t.add.s(1, 1)], t.total.s())),
    ),
    Case(
        "group with a failing chord",
        lambda t: group(t.add.s(1, 1), chord([t.add.s(1, 1), t.fail_after.s(0.5, "x")], t.total.s())),
    ),
]
