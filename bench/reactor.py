"""Running a client that needs Twisted's reactor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.task import react

__all__ = ["run_in_reactor"]

T = TypeVar("T")


def run_in_reactor(main: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run the reactor until a coroutine is done; once in a process.

    :param main: is given the reactor
    :return: what it returns
    :raises SystemExit: when it fails; the failure is logged
    """
    outcome: list[T] = []

    async def keep_outcome(reactor: Any) -> None:
        outcome.append(await main(reactor))

    try:
        react(keep_outcome)
    except SystemExit as ended:
        # How `react` always ends.
        if ended.code:
            raise
    return outcome[0]
