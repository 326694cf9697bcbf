"""Provides a redis-py client that records commands instead of sending them.

kombu's and Celery's own code runs on it. Where a reply decides what such code does next, the recorded
commands are sent first: see `twistedcelery.encoding.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Self

from redis.commands import CoreCommands

from twistedcelery.transports.redis.link import Command

__all__ = ["RecordedClient", "RecordedPipeline", "Tape"]


class Tape:
    """Records commands.

    :ivar ask: sends commands and returns the reply to the last one, as
        `twistedcelery.encoding.replay.Replay.step`; ``None``: nothing is asked
    :ivar questions: the names of the commands whose reply is needed; ``None``: all commands
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Command]], Any] | None = None,
        questions: Container[str] | None = (),
    ) -> None:
        self.ask = ask
        self.questions = questions
        self.commands: list[Command] = []

    def execute(self, *commands: Command) -> Any:
        """Record commands.

        :return: the reply to the last one, if it is a question; what was recorded goes out before it
        """
        self.commands += commands
        if self.ask is not None and (self.questions is None or commands[-1][0] in self.questions):
            return self.ask(self.take())
        return None

    def take(self) -> list[Command]:
        """The commands that were recorded since the last time."""
        taken, self.commands = self.commands, []
        return taken


class RecordedClient(CoreCommands):
    """As much of redis-py's client as kombu and Celery's backend use."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def execute_command(self, *command: Any, **_options: Any) -> Any:
        return self._tape.execute(command)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> RecordedPipeline:
        return RecordedPipeline(self._tape)


class RecordedPipeline(RecordedClient):
    """A transaction, which is recorded once it is executed."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(Tape())
        self._target = tape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Nothing is held."""

    def execute_command(self, *command: Any, **options: Any) -> Self:
        super().execute_command(*command, **options)
        return self

    def execute(self) -> Any:
        """:return: the replies, where they are needed; else none"""
        return self._target.execute(("MULTI",), *self._tape.take(), ("EXEC",)) or ()
