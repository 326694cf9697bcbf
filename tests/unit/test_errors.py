"""The error tree, and the package's public names."""

from __future__ import annotations

import re

import celery.exceptions
import kombu.exceptions
import pytest
from twisted.internet import defer

import twistedcelery
from twistedcelery import errors


def drawn_tree() -> dict[str, str | None]:
    """The tree in the docstring: each error's name with its parent's."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ((?:│   |    )*)(├── |└── )?([A-Z]\w+)(?:  |$)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4 + bool(found[2])
        del above[depth:]
        parents[found[3]] = above[-1] if above else None
        above.append(found[3])
    return parents


def test_the_tree_that_is_drawn_is_the_tree():
    """Every class stands in the docstring's tree, under the class that it derives from."""
    drawn = drawn_tree()
    assert drawn.pop("TwistedCeleryError") is None
    assert len(drawn) > 10
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__ and name != "TwistedCeleryError"
    }
    assert drawn == real


def test_all_errors_are_public():
    """``errors.__all__`` is the tree, and the package has every one of them."""
    assert set(errors.__all__) == set(drawn_tree())
    assert set(errors.__all__) <= set(twistedcelery.__all__)
    for name in errors.__all__:
        assert getattr(twistedcelery, name) is getattr(errors, name)


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_say_what_they_mean(name):
    """Each error derives from the root, has a docstring of its own, and keeps its message."""
    error = getattr(errors, name)
    assert issubclass(error, errors.TwistedCeleryError)
    assert error.__doc__
    assert error.__doc__ != error.__bases__[0].__doc__
    assert str(error("what happened")) == "what happened"


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        (errors.ConfigurationError, celery.exceptions.ImproperlyConfigured),
        (errors.NoResultBackend, NotImplementedError),
        (errors.UnsupportedByBackend, NotImplementedError),
        (errors.InvalidCall, TypeError),
        (errors.InvalidCall, ValueError),
        (errors.CallRefused, errors.InvalidCall),
        (errors.QueueNotFound, celery.exceptions.QueueNotFound),
        (errors.EncodeError, kombu.exceptions.EncodeError),
        (errors.BrokerUnavailable, kombu.exceptions.OperationalError),
        (errors.ReplyNotAccepted, kombu.exceptions.ContentDisallowed),
        (errors.CallCancelled, defer.CancelledError),
    ],
)
def test_errors_are_also_what_others_raise(ours, others):
    """Code that catches Celery's, kombu's or Twisted's error for the same thing catches ours."""
    assert issubclass(ours, others)


def test_the_public_names_are_pinned():
    """A public name is added or taken away on purpose only."""
    assert twistedcelery.__all__ == sorted(
        {
            "BrokerAccessRefused",
            "BrokerUnavailable",
            "CallCancelled",
            "CallRefused",
            "ConfigurationError",
            "Control",
            "Disconnected",
            "EncodeError",
            "EventStream",
            "Inspect",
            "GroupDeferred",
            "GroupResult",
            "InvalidCall",
            "NoResultBackend",
            "Overloaded",
            "PublishError",
            "PublishRejected",
            "PublishUnconfirmed",
            "QueueNotFound",
            "RepliesLost",
            "ReplyNotAccepted",
            "ReplyTooLarge",
            "ReplyUndecodable",
            "ResultBackendUnavailable",
            "ResultError",
            "ResultLost",
            "TaskDeferred",
            "TaskFailure",
            "TaskResult",
            "TwistedCelery",
            "TwistedCeleryError",
            "TwistedTask",
            "Unroutable",
            "UnsupportedByBackend",
        }
    )
    for name in twistedcelery.__all__:
        assert hasattr(twistedcelery, name)
