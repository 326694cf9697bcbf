"""Finds the commands to workers: those of the installed Celery, and the application's own.

They are the public methods of Celery's ``Inspect`` and ``Control``, and the commands that the application
has registered on the workers' control panel, if the bridge imports them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery
    from twisted.internet.defer import Deferred

__all__ = ["OPTIONS", "REPLY", "WorkerCommand", "worker_commands"]

#: Which workers are asked, and how long replies are waited for, under Celery's own names.
OPTIONS: Mapping[str, Any] = {
    "destination": None,
    "pattern": None,
    "matcher": None,
    "timeout": 1.0,
    "limit": None,
}

#: Whether to wait for replies, where that is a choice. Like ``celery control`` on the command line, wait by
#: default: a worker may refuse.
REPLY = {"reply": True}

#: Parameters of Celery's methods that are for callers in the same process.
_NOT_FOR_CALLERS = frozenset({"self", "connection", "channel", "callback"})

#: Elections are for the workers: the winner runs the task that the message contains.
_NOT_COMMANDS = frozenset({"election"})


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """One command, or query, to workers.

    :ivar signature: the method's own parameters, and the `OPTIONS` by keyword. Parameters after one that is
        not for callers, or after an option, are keyword-only, so that each position means what it means
        to Celery
    :ivar doc: the first line of Celery's docstring
    """

    name: str
    signature: Signature
    doc: str | None
    _send: Callable[[Any, tuple[Any, ...], dict[str, Any], dict[str, Any]], Deferred[Any]]

    def send(self, control: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Deferred[Any]:
        """Send the command.

        :param control: as `twistedcelery.TwistedCelery.control`
        :param args: and ``kwargs``: bound to `signature`
        :return: fires with what Celery's method returns, replies as a dictionary by worker; fails as the
            methods of ``control`` do
        """
        own = {key: value for key, value in kwargs.items() if key not in OPTIONS}
        options = {key: value for key, value in kwargs.items() if key in OPTIONS and value is not None}
        return self._send(control, args, own, options)


def worker_commands(app: Celery) -> dict[str, WorkerCommand]:
    """Every command by its name. A name of both a query and a command, such as ``ping``, is the query."""
    control = app.control
    found: dict[str, WorkerCommand] = {}
    for name, handler, kind in _panel():
        found[name] = _panel_command(name, handler, kind)
    for name, method in _methods(type(control)):
        found[name] = _control_command(name, method)
    for name, method in _methods(control.inspect):
        found[name] = _query(name, method)
    return {name: found[name] for name in sorted(found) if name not in _NOT_COMMANDS}


def _methods(of: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, method in inspect.getmembers(of, inspect.isfunction):
        if not name.startswith("_"):
            yield name, method


def _panel() -> Iterator[tuple[str, Callable[..., Any], str]]:
    # It has Celery's own commands too. Without this import, nothing was registered.
    module = sys.modules.get("celery.worker.control")
    if module is not None:
        for name, info in module.Panel.meta.items():
            yield name, module.Panel.data[name], info.type


def _query(name: str, method: Callable[..., Any]) -> WorkerCommand:
    def send(control: Any, args: Any, own: dict[str, Any], options: dict[str, Any]) -> Deferred[Any]:
        asked: Deferred[Any] = getattr(control.inspect(**options), name)(*args, **own)
        return asked

    return WorkerCommand(name, _signature(method, OPTIONS), _doc(method), send)


def _control_command(name: str, method: Callable[..., Any]) -> WorkerCommand:
    def send(control: Any, args: Any, own: dict[str, Any], options: dict[str, Any]) -> Deferred[Any]:
        reply = {**REPLY, **own} if broadcasts else own
        sent: Deferred[Any] = getattr(control, name)(*args, **reply, **options)
        return sent.addCallback(_by_worker)

    # Such a method passes its keywords to `broadcast`.
    broadcasts = any(
        parameter.kind is Parameter.VAR_KEYWORD for parameter in inspect.signature(method).parameters.values()
    )
    signature = _signature(method, {**REPLY, **OPTIONS} if broadcasts else {})
    return WorkerCommand(name, signature, _doc(method), send)


def _panel_command(name: str, handler: Callable[..., Any], kind: str) -> WorkerCommand:
    """A command of the application. Its handler's first parameter is the worker's state."""
    asks = kind == "inspect"
    _, *parameters = inspect.signature(handler).parameters.values()
    signature = _with_options(parameters, OPTIONS if asks else {**REPLY, **OPTIONS})

    def send(control: Any, args: Any, own: dict[str, Any], options: dict[str, Any]) -> Deferred[Any]:
        reply = True if asks else own.pop("reply", True)
        arguments = signature.bind(*args, **own).arguments
        sent: Deferred[Any] = control.broadcast(name, arguments, reply=reply, **options)
        return sent.addCallback(_by_worker)

    return WorkerCommand(name, signature, _doc(handler), send)


def _signature(method: Callable[..., Any], options: Mapping[str, Any]) -> Signature:
    return _with_options(inspect.signature(method).parameters.values(), options)


def _with_options(parameters: Any, options: Mapping[str, Any]) -> Signature:
    own, by_keyword = [], False
    for parameter in parameters:
        if parameter.name == "self" or parameter.kind is Parameter.VAR_KEYWORD:
            continue
        if parameter.name in _NOT_FOR_CALLERS or parameter.name in options:
            by_keyword = True
            continue
        positional = parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
        kind = Parameter.KEYWORD_ONLY if by_keyword and positional else parameter.kind
        own.append(parameter.replace(kind=kind, annotation=Parameter.empty))
    own += [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in options.items()]
    return Signature(own)


def _by_worker(replies: Any) -> Any:
    """Turn Celery's list of replies into the dictionary that queries return. Other values stay."""
    if not isinstance(replies, list):
        return replies
    return {worker: answer for reply in replies for worker, answer in reply.items()} or None


def _doc(method: Callable[..., Any]) -> str | None:
    doc = inspect.getdoc(method)
    return doc.partition("\n")[0] if doc else None
