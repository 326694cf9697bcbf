"""Code that was written to block, run without blocking.

Celery's control client is plain code around one blocking step: it broadcasts a command, and works
on what comes back; a result backend is such code around its client. Here that step raises out of
such code the first time. Once its outcome is known, the code is run again from its start, and the
step returns the outcome. That takes code that does the same each time it is run, and changes
nothing on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from twistedcelery.errors import InvalidCall, TwistedCeleryError

__all__ = ["Replay"]

T = TypeVar("T")


class _Wanted(BaseException):
    """A step was reached whose outcome is not known yet. Not an `Exception`, which the code might catch."""

    def __init__(self, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        super().__init__()
        self.arguments = arguments


class Replay:
    """Runs such code.

    :param step: does, without blocking, what the code's blocking step does
    """

    def __init__(self, step: Callable[..., Deferred[Any]]) -> None:
        self._step = step
        self._known: Iterator[Any] | None = None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """What the code calls in the place of the blocking step."""
        if self._known is None:
            raise RuntimeError("this is for code that Replay.run() runs")
        for outcome in self._known:
            if isinstance(outcome, _Raised):
                raise outcome.error
            return outcome
        raise _Wanted((args, kwargs))

    def run(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a function that calls `step` any number of times.

        :return: fires with what the function returns. It fails with what a step failed with, and
            with `InvalidCall` for any other error that the function raises: it works on what the
            caller has given.
        """
        return Deferred.fromCoroutine(self._run(function))

    async def _run(self, function: Callable[[], T]) -> T:
        outcomes: list[Any] = []
        while True:
            before, self._known = self._known, iter(outcomes)
            try:
                return function()
            except _Wanted as wanted:
                args, kwargs = wanted.arguments
            except TwistedCeleryError:
                raise
            except Exception as error:
                if any(isinstance(known, _Raised) and known.error is error for known in outcomes):
                    raise
                raise InvalidCall(f"{type(error).__name__}: {error}") from error
            finally:
                self._known = before
            try:
                outcomes.append(await self._step(*args, **kwargs))
            except Exception as error:
                # The code may handle it.
                outcomes.append(_Raised(error))


class _Raised:
    """The outcome of a step that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error
