"""Questions about results, answered by Celery's own Redis backend, run without blocking.

The backend's client asks over a connection of ours, and the backend's code is run again once the
reply is there: `twistedcelery.encoding.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from celery import states
from celery.result import result_from_tuple
from kombu.exceptions import ContentDisallowed
from redis.commands import CoreCommands
from twisted.internet.defer import Deferred

from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.message import Preparation
from twistedcelery.encoding.replay import Replay
from twistedcelery.errors import (
    BrokerUnavailable,
    PublishRejected,
    ReplyNotAccepted,
    ReplyUndecodable,
    ResultBackendUnavailable,
    TwistedCeleryError,
)
from twistedcelery.transports.redis.link import Command
from twistedcelery.transports.redis.requests import Requests
from twistedcelery.transports.redis.stored import StoredStates, make_backend

__all__ = ["RedisStore"]


class RedisStore:
    """A `twistedcelery.transports.interface.ResultStore` on Celery's Redis result backend.

    :param app: the Celery application
    :param states: knows keys and payloads
    """

    def __init__(self, app: Any, states: StoredStates) -> None:
        # Its results do no I/O of their own: what is read here becomes results of the client's.
        self._view = view_of(app)
        self._states = states
        self._replay = Replay(self._ask)
        self._made: Any = None
        self._requests: Requests

    def use(self, requests: Requests) -> RedisStore:
        """Ask over a connection."""
        self._requests = requests
        return self

    def task_meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """As `twistedcelery.transports.interface.ResultStore.task_meta`."""

        def read(backend: Any) -> Mapping[str, Any]:
            payload = backend.get(self._states.key(task_id))
            if not payload:
                return {"status": states.PENDING, "result": None}
            return self._states.decode(payload)

        return self._run(read)

    def exists(self, task_id: str) -> Deferred[bool]:
        """As `twistedcelery.transports.interface.ResultStore.exists`."""
        return self._run(lambda backend: bool(backend.get(self._states.key(task_id))))

    def forget(self, task_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.forget`."""
        return self._run(lambda backend: backend.forget(task_id))

    def save_group(self, group_id: str, group: tuple[Any, ...]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.save_group`."""

        def save(backend: Any) -> None:
            backend.save_group(group_id, result_from_tuple(group, self._view))

        return self._run(save)

    def restore_group(self, group_id: str) -> Deferred[tuple[Any, ...] | None]:
        """As `twistedcelery.transports.interface.ResultStore.restore_group`."""

        def restore(backend: Any) -> tuple[Any, ...] | None:
            try:
                group = backend.restore_group(group_id, cache=False)
                return None if group is None else group.as_tuple()
            except ContentDisallowed as error:
                raise ReplyNotAccepted(f"the group's content type is not accepted: {error}") from error
            except TwistedCeleryError:
                raise
            except Exception as error:
                # Anything may stand there.
                raise ReplyUndecodable(f"not a group as Celery stores it: {error!r}") from error

        return self._run(restore)

    def delete_group(self, group_id: str) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.delete_group`."""
        return self._run(lambda backend: backend.delete_group(group_id))

    def prepare(self, preparations: Sequence[Preparation]) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.prepare`."""

        def prepare(backend: Any) -> None:
            for preparation in preparations:
                getattr(backend, preparation.method)(*preparation.args, **preparation.kwargs)

        return self._run(prepare)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultStore.close`."""
        return self._requests.close()

    def _run(self, work: Callable[[Any], Any]) -> Deferred[Any]:
        return self._replay.run(lambda: work(self._backend()))

    def _backend(self) -> Any:
        if self._made is None:
            made = make_backend(self._view)
            made.client = _Client(self._replay.step)
            self._made = made
        return self._made

    def _ask(self, commands: Sequence[Command]) -> Deferred[Any]:
        """:return: fires with the reply to the last command"""
        return Deferred.fromCoroutine(self._asked(commands))

    async def _asked(self, commands: Sequence[Command]) -> Any:
        try:
            return (await self._requests.ask(commands))[-1]
        except BrokerUnavailable as error:
            raise ResultBackendUnavailable(f"no connection to the result backend: {error}") from error
        except PublishRejected as error:
            raise ResultBackendUnavailable(f"the result backend refuses: {error}") from error


class _Client(CoreCommands):
    """As much of redis-py's client as Celery's backend uses for this.

    :param step: has commands carried out
    """

    def __init__(self, step: Callable[[Sequence[Command]], Any]) -> None:
        self._step = step

    def execute_command(self, *command: Any, **_options: Any) -> Any:
        return self._step([command])

    def pipeline(self) -> _Pipeline:
        return _Pipeline(self._step)


class _Pipeline(_Client):
    """A transaction."""

    def __init__(self, step: Callable[[Sequence[Command]], Any]) -> None:
        super().__init__(step)
        self._commands: list[Command] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Nothing is held."""

    def execute_command(self, *command: Any, **_options: Any) -> _Pipeline:
        self._commands.append(command)
        return self

    def execute(self) -> Any:
        return self._step([("MULTI",), *self._commands, ("EXEC",)])
