"""Fixtures of the transports' tests."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from tests.real.transports.parts import IMPLEMENTATIONS, make_parts
from tests.support.waiting import until


def pytest_generate_tests(metafunc):
    """A test of ``parts`` is made for each implementation that has what its ``needs`` marks name."""
    if "parts" in metafunc.fixturenames:
        needed = [name for mark in metafunc.definition.iter_markers("needs") for name in mark.args]
        having = [
            name for name, kind in IMPLEMENTATIONS.items() if all(getattr(kind, trait) for trait in needed)
        ]
        metafunc.parametrize("parts", having, indirect=True)


@pytest.fixture
def parts(request, tmp_path):
    """A broker with a result backend, one after another."""
    made = make_parts(request.param, request, tmp_path)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


@pytest.fixture
def eventually():
    """``await eventually(condition)`` waits until it holds."""
    return until
