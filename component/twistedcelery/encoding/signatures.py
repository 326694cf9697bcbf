"""Signatures, made anew on another application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.canvas import Signature

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["is_composed", "rebind"]

#: Where a signature's keyword arguments hold other signatures: those of Celery's own canvas.
_MEMBERS = {
    "celery.chain": ("tasks",),
    "celery.group": ("tasks",),
    "celery.chord": ("header", "body"),
    "celery.map": ("task",),
    "celery.starmap": ("task",),
    "celery.chunks": ("task",),
}

#: The signatures whose task id cannot be said beforehand.
_COMPOSED = frozenset({"celery.chain", "celery.group", "celery.chord", "celery.chunks"})

#: The options that hold other signatures.
_LINKS = ("link", "link_error", "chord")

#: What a signature remembers of its application.
_REMEMBERED = frozenset({"app", "type", "_type", "AsyncResult", "_apply_async"})


def is_composed(signature: Mapping[str, Any]) -> bool:
    """Whether a signature asks for several tasks, so that it has no task id of its own."""
    return signature.get("task") in _COMPOSED


def rebind(
    signature: Mapping[str, Any], app: Celery, copy: Callable[[Any], Any] = lambda arguments: arguments
) -> Signature:
    """Copy a signature, with all the signatures in it, onto another application.

    :param signature: a ``Signature``, or the dictionary that one is serialised to
    :param copy: is given the arguments of tasks and returns those for the copy
    :return: of the same class; nothing that is done to it changes the original
    """
    members = _MEMBERS.get(signature["task"], ())
    kwargs: dict[str, Any] = {
        name: _rebind_all(value, app, copy) if name in members else copy(value)
        for name, value in signature["kwargs"].items()
    }
    original = signature
    if not isinstance(original, Signature):
        original = Signature.from_dict({**signature, "kwargs": dict(kwargs)}, app=app)
    cls: Any = type(original)
    copied: Signature = cls.__new__(cls)
    dict.update(copied, original)
    vars(copied).update({name: value for name, value in vars(original).items() if name not in _REMEMBERED})
    vars(copied)["_app"] = app
    copied["args"] = tuple(copy(argument) for argument in original["args"])
    copied["kwargs"] = kwargs
    copied["options"] = {
        name: _rebind_all(value, app, copy) if name in _LINKS else value
        for name, value in original["options"].items()
    }
    if "task_id" in copied["options"] and _is_made_up(copied["options"].get("reply_to")):
        # From freeze(), which names the queue that only Celery's own result backend reads, and only in
        # the thread that called it.
        del copied["options"]["reply_to"]
    return copied


def _is_made_up(queue: Any) -> bool:
    """Whether kombu made the name of a reply queue; see ``kombu.common.generate_oid``."""
    try:
        return UUID(queue).version in (3, 5)
    except (AttributeError, TypeError, ValueError):
        return False


def _rebind_all(value: Any, app: Celery, copy: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return rebind(value, app, copy)
    if isinstance(value, Iterable):
        # A generator of a group's tasks is run here.
        return [rebind(one, app, copy) for one in value]
    return value
