"""Two rules for every test: no error goes unheard, and no Deferred is waited for without end.

``conftest.py`` imports this module's hooks and fixtures, which makes pytest use them.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

__all__ = ["LoggedErrors", "logged_errors", "pytest_collection_finish", "pytest_pyfunc_call"]

# The share of a test's time limit after which what it waits for is cancelled; see `pytest_pyfunc_call`.
_SHARE = 0.8


class LoggedErrors:
    """The failures that were logged through Twisted during a test.

    Among them is that of every Deferred that was dropped with an error nobody handled.
    """

    def __init__(self) -> None:
        self._failures: list[tuple[str, Failure]] = []

    def observe(self, event: LogEvent) -> None:
        """Take a log event."""
        failure = event.get("log_failure")
        if failure is not None:
            self._failures.append((str(event.get("log_format") or event.get("why") or ""), failure))

    def flush(self, *types: type[BaseException]) -> list[Failure]:
        """Take away the failures that the test expects; what stays fails it.

        :param types: the exceptions to take; all without any
        """
        gc.collect()
        taken = [failure for _, failure in self._failures if not types or failure.check(*types)]
        self._failures = [(why, failure) for why, failure in self._failures if failure not in taken]
        return taken

    def report(self) -> str:
        """What stays, for a person; empty when nothing does."""
        gc.collect()
        return "\n\n".join(f"{why}\n{failure.getTraceback()}" for why, failure in self._failures)


@pytest.fixture(autouse=True)
def logged_errors() -> Iterator[LoggedErrors]:
    """Fail the test whose code logs a failure, or drops a Deferred with an unhandled one."""
    errors = LoggedErrors()
    globalLogPublisher.addObserver(errors.observe)
    try:
        # What the test before held until its end goes now. What is left outlives this test, and is taken out
        # of the garbage collector's sight: otherwise it would cost each test more than the last one.
        gc.collect()
        gc.freeze()
        yield errors
        report = errors.report()
    finally:
        globalLogPublisher.removeObserver(errors.observe)
    if report:
        pytest.fail(f"errors were logged:\n{report}", pytrace=False)


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight: every test collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Cancel what a test waits for when its time is up, so that it fails where it stands.

    pytest-timeout's signal, which ends a test that blocks, would here end in the reactor's main
    loop, which logs it and goes on.
    """
    marker = pyfuncitem.get_closest_marker("timeout")
    limit = marker.args[0] if marker else pyfuncitem.config.getini("timeout")
    seconds = float(limit) * _SHARE
    hypothesis = getattr(pyfuncitem.obj, "hypothesis", None)
    if hypothesis is None:
        pyfuncitem.obj = _with_timeout(pyfuncitem.obj, seconds)
    else:
        hypothesis.inner_test = _with_timeout(hypothesis.inner_test, seconds)


def _cancel_after(waited_for: Deferred[Any], seconds: float, clock: Any) -> None:
    """As ``Deferred.addTimeout``, with the place where the test stood in the error."""

    def settled(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        elif isinstance(result, Failure) and result.check(CancelledError):
            raise TimeoutError(f"the test still waited after {seconds} s") from result.value
        return result

    timer = clock.callLater(seconds, waited_for.cancel)
    waited_for.addBoth(settled)


def _with_timeout(test: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    is_coroutine = getattr(test, "_pytest_twisted_mark", None) == "async_test"

    def run(*args: Any, **kwargs: Any) -> Any:
        from twisted.internet import reactor

        waited_for = test(*args, **kwargs)
        if is_coroutine:
            waited_for = ensureDeferred(waited_for)
        if isinstance(waited_for, Deferred):
            _cancel_after(waited_for, seconds, reactor)
        return waited_for

    # Not wraps(): its mark would have pytest-twisted await what is a Deferred by now.
    functools.update_wrapper(run, test, updated=())
    return run
