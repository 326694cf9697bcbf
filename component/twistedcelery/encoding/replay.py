"""Runs code that was written to block, without blocking.

Celery's control client broadcasts a command, blocks, and works on the replies. Its result backends and
kombu's Redis transport do the same around their client. Here the blocking step raises out of such code
the first time. Once its outcome is known, the code runs again from its start, and the step returns that
outcome. The code must do the same each time it runs, and change nothing on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred

from twistedcelery.errors import InvalidCall, TwistedCeleryError

__all__ = ["Replay"]

T = TypeVar("T")


class _Wanted(BaseException):
    """A step was reached whose outcome is not known yet. Not an `Exception`, which the code might catch."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.step_args, self.step_kwargs = args, kwargs


class Replay:
    """Runs such code.

    :param step: does, without blocking, what the code's blocking step does
    """

    def __init__(self, step: Callable[..., Deferred[Any]]) -> None:
        self._step = step
        self._known: Iterator[Any] | None = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """The code calls this in place of its blocking step."""
        if self._known is None:
            raise RuntimeError("this is for code that a Replay runs")
        for outcome in self._known:
            if isinstance(outcome, _Raised):
                raise outcome.error
            return outcome
        raise _Wanted(args, kwargs)

    def start(self, function: Callable[..., T], *args: Any) -> T | Deferred[T]:
        """Run a function that calls `step` any number of times.

        :return: what the function returns; a Deferred, as of `run`, if it has reached a step
        :raises Exception: as the Deferred of `run` fails
        """
        try:
            return self._attempt(function, args, ())
        except _Wanted as wanted:
            return Deferred.fromCoroutine(self._go_on(function, args, wanted))

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a function that calls `step` any number of times.

        :return: fires with the function's value. It fails with the error of a step that the function
            does not handle, and with `InvalidCall` for any other foreign error that the function
            raises: it works on what the caller has given.
        """
        return maybeDeferred(self.start, function)  # type: ignore[call-overload, no-any-return]  # it takes either

    async def _go_on(self, function: Callable[..., T], args: tuple[Any, ...], wanted: _Wanted) -> T:
        outcomes: list[Any] = []
        while True:
            try:
                outcomes.append(await self._step(*wanted.step_args, **wanted.step_kwargs))
            except Exception as error:
                # The code may handle it.
                outcomes.append(_Raised(error))
            try:
                return self._attempt(function, args, outcomes)
            except _Wanted as further:
                wanted = further

    def _attempt(self, function: Callable[..., T], args: tuple[Any, ...], outcomes: Sequence[Any]) -> T:
        before, self._known = self._known, iter(outcomes)
        try:
            return function(*args)
        except TwistedCeleryError:
            raise
        except Exception as error:
            if any(isinstance(known, _Raised) and known.error is error for known in outcomes):
                raise
            raise InvalidCall(f"{type(error).__name__}: {error}") from error
        finally:
            self._known = before


class _Raised:
    """The outcome of a step that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error
