"""Serves Celery's commands and queries to workers as ``celery_admin.*``, for operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError

from twistedcelery.wamp.operators.worker_arguments import ArgumentError, check_arguments
from twistedcelery.wamp.operators.worker_commands import worker_commands
from twistedcelery.wamp.uris import why_not_a_uri

if TYPE_CHECKING:
    from celery import Celery
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Handler, Invocation
    from twistedcelery.wamp.operators.worker_commands import WorkerCommand

__all__ = ["ANSWER_TIMEOUT", "MAX_WAITING", "OperatorApi"]

#: Commands that wait for replies at once.
MAX_WAITING = 100

#: Seconds that one command may take, however many workers are still replying.
ANSWER_TIMEOUT = 120.0

#: Celery's method that sends any command.
_BROADCAST = "broadcast"

#: Commands whose replies contain settings. Workers censor the secrets that they know, but not a URL under
#: a custom name, or in an older Celery's ``broker_read_url``.
_WITH_SETTINGS = frozenset({"conf", "report", "stats", _BROADCAST})

#: The password in a URL. It may contain any characters but those that separate several URLs.
_PASSWORD = re.compile(r"""(://[^\s:/@'",;]*:)[^\s'",;]*@""")


class OperatorApi:
    """The procedures for operators."""

    def __init__(self, app: Celery, client: TwistedCelery, context: Context) -> None:
        self._client = client
        self._clock = context.clock
        self._errors = context.errors
        self._uris = uris = context.uris
        self._commands = {
            name: command
            for name, command in worker_commands(app).items()
            if why_not_a_uri(uris.admin(name)) is None
        }
        self._waiting = 0

    def handlers(self) -> dict[str, Handler]:
        """The handlers of the procedures, by the last component of their URIs."""
        procedures = {name: self._handler(command) for name, command in self._commands.items()}
        return {**procedures, "commands": self._list}

    def _list(self, _: Invocation) -> list[dict[str, Any]]:
        """List the commands: ``name``, ``uri``, ``signature``, ``doc``."""
        return [
            {
                "name": command.name,
                "uri": self._uris.admin(command.name),
                "signature": str(command.signature),
                "doc": command.doc,
            }
            for command in self._commands.values()
        ]

    def _handler(self, command: WorkerCommand) -> Handler:
        return lambda invocation: self._run(command, invocation)

    def _run(self, command: WorkerCommand, invocation: Invocation) -> Deferred[Any]:
        args, kwargs = self._bind(command, invocation)
        if self._waiting >= MAX_WAITING:
            raise self._errors.make(
                "overloaded", f"{MAX_WAITING} commands wait for workers already; try again later"
            )
        self._waiting += 1

        def ended(outcome: Any) -> Any:
            self._waiting -= 1
            return outcome

        running = command.send(self._client.control, args, kwargs)
        running.addTimeout(ANSWER_TIMEOUT, self._clock, self._too_late)
        running.addBoth(ended).addErrback(self._failed)
        return running.addCallback(_without_passwords) if command.name in _WITH_SETTINGS else running

    def _bind(
        self, command: WorkerCommand, invocation: Invocation
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Bind a caller's arguments to the command's signature, and check them."""
        try:
            bound = command.signature.bind(*invocation.args, **invocation.kwargs)
            checked = check_arguments(bound.arguments)
        except (TypeError, ArgumentError) as error:
            raise self._errors.make("invalid_arguments", f"{command.name}: {error}") from error
        if command.name == _BROADCAST and checked["command"] in self._commands:
            # That one checks the arguments.
            own = self._uris.admin(checked["command"])
            raise self._errors.make("invalid_arguments", f"broadcast: call {own} for this command")
        bound.arguments.update(checked)
        return bound.args, bound.kwargs

    def _failed(self, failure: Failure) -> Failure:
        if failure.check(CancelledError, ApplicationError):
            # The caller has left, or it took too long.
            return failure
        raise self._errors.not_delivered(failure)

    def _too_late(self, _outcome: Any, _seconds: float) -> ApplicationError:
        raise self._errors.make("timeout", f"workers were still replying after {ANSWER_TIMEOUT:g} s")


def _without_passwords(value: Any) -> Any:
    """Mask the passwords of URLs."""
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1********@", value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_passwords(item) for item in value]
    return value
