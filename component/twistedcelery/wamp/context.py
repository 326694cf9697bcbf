"""What the parts of one bridge share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.errors import CallErrors
    from twistedcelery.wamp.events.stories import Stories
    from twistedcelery.wamp.events.topics import EventPublisher
    from twistedcelery.wamp.tasks.task_ids import TaskIds

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to whoever calls, follows and publishes.

    :ivar clock: for timeouts and durations: a reactor, or `twisted.internet.task.Clock`
    :ivar wall_clock: seconds since the epoch, for events
    :ivar errors: makes what callers see
    :ivar events: publishes what happens
    :ivar stories: tells what happens to the bridge's tasks
    :ivar ids: makes the ids of the bridge's tasks
    """

    config: Configuration
    clock: Any
    wall_clock: Callable[[], float]
    errors: CallErrors
    events: EventPublisher
    stories: Stories
    ids: TaskIds
