"""`Backoff`: attempts are spaced."""

from __future__ import annotations

from twisted.internet.task import Clock

from twistedcelery.transports.threads.backoff import Backoff


def test_each_failure_in_a_row_doubles_the_pause_up_to_a_limit():
    """A success begins anew."""
    clock = Clock()
    backoff = Backoff(clock.seconds, longest=0.5)
    assert backoff.remaining == 0
    assert [backoff.failed() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.remaining == 0.5
    clock.advance(0.4)
    assert 0 < backoff.remaining < 0.2
    clock.advance(0.4)
    assert backoff.remaining == 0
    backoff.succeeded()
    assert backoff.failed() == 0.1
