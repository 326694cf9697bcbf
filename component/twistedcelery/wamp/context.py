"""What the parts of one bridge share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.errors import CallErrors
from twistedcelery.wamp.task_ids import TaskIds
from twistedcelery.wamp.uris import Uris

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """One bridge's settings, clocks and names.

    :ivar clock: for timeouts and durations: a reactor, or `twisted.internet.task.Clock`
    :ivar wall_clock: seconds since the epoch, for events
    :ivar timezone: the application's, of times without an offset
    :ivar uris: the URIs below the bridge's prefix
    :ivar errors: makes the errors that callers see
    :ivar ids: makes the ids of the bridge's tasks
    """

    config: Configuration
    clock: Any
    wall_clock: Callable[[], float]
    timezone: tzinfo
    uris: Uris
    errors: CallErrors
    ids: TaskIds
