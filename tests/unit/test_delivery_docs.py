"""What ``docs/delivery.md`` names exists."""

from __future__ import annotations

import re
from pathlib import Path

import billiard.exceptions
import pytest
from celery.app.defaults import NAMESPACES, flatten

import twistedcelery

PAGE = (Path(__file__).parents[2] / "docs" / "delivery.md").read_text()
ERRORS = set(re.findall(r"`([A-Z][A-Za-z]+[a-z])`", PAGE)) - {"Ignore", "WAITING"}
SETTINGS = set(re.findall(r"`((?:task|result|broker)_\w+)", PAGE))


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors(name):
    """Each error is one of this package's, or the pool's."""
    error = getattr(twistedcelery, name, None) or getattr(billiard.exceptions, name)
    assert issubclass(error, Exception)


def test_every_error_of_a_message_that_was_sent_is_there():
    """A call that ends after its message may have left has its row."""
    assert {
        "PublishUnconfirmed",
        "PublishRejected",
        "Unroutable",
        "BrokerUnavailable",
        "ResultLost",
    } <= ERRORS


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings(name):
    """Each setting is one of Celery's."""
    assert name in {setting for setting, _ in flatten(NAMESPACES)}
