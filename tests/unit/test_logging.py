"""Warnings that may come many times."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent

from twistedcelery._logging import LOG_INTERVAL, MAX_LINES, CountedWarnings, RepeatedWarnings


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.lines: list[str | None] = []
        log = Logger(observer=self.observe)
        self.warnings = RepeatedWarnings(log, self.clock.seconds)
        self.counted = CountedWarnings(log, self.clock.seconds)

    def observe(self, event: Any) -> None:
        self.lines.append(formatEvent(event))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_each_text_once_a_minute(scene):
    """Another text is news. So is the same one after the trouble was over."""
    for _ in range(3):
        scene.warnings.warn("{no} format")
        scene.warnings.warn("other")
    assert scene.lines == ["{no} format", "other"]
    scene.clock.advance(LOG_INTERVAL)
    scene.warnings.warn("other")
    assert scene.lines[2:] == ["other"]
    scene.warnings.reset()
    scene.warnings.warn("other")
    assert scene.lines[2:] == ["other"] * 2


def test_texts_that_always_differ(scene):
    """They are bounded too."""
    for number in range(1000):
        scene.warnings.warn(f"error {number}")
    assert len(scene.lines) == MAX_LINES
    scene.clock.advance(LOG_INTERVAL)
    scene.warnings.warn("error")
    assert scene.lines[-1] == "error"


def test_one_line_of_each_kind_a_minute(scene):
    """What differs within a kind does not matter. The next line has the number of those between."""
    for number in range(1000):
        scene.counted.warn("a reply is dropped", f"{{error}} {number}")
    scene.counted.warn("an event is dropped")
    assert scene.lines == ["a reply is dropped: {error} 0", "an event is dropped"]
    scene.clock.advance(LOG_INTERVAL)
    for _ in range(2):
        scene.counted.warn("a reply is dropped", "again")
        scene.counted.warn("an event is dropped")
    assert scene.lines[2:] == [
        "a reply is dropped: again (and 999 more since the last such line)",
        "an event is dropped",
    ]
