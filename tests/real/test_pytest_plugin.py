"""A user's tests: Celery's own pytest fixtures, together with pytest-twisted and this client.

The broker and the result backend are in memory, and the worker is a thread of the tests' process.
"""

from __future__ import annotations

import pytest
import pytest_twisted
from celery import chord, group
from celery.contrib.pytest import (
    celery_app,
    celery_class_tasks,
    celery_enable_logging,
    celery_includes,
    celery_parameters,
    celery_worker,
    celery_worker_pool,
    use_celery_app_trap,
)

from twistedcelery import TwistedCelery

# As `pytest_plugins = ["celery.contrib.pytest"]` in a user's conftest.py.
__all__ = [
    "celery_app",
    "celery_class_tasks",
    "celery_enable_logging",
    "celery_includes",
    "celery_parameters",
    "celery_worker",
    "celery_worker_pool",
    "use_celery_app_trap",
]


@pytest.fixture(params=[1, 2])
def celery_config(request):
    """Celery's fixture: the application's settings."""
    return {
        "broker_url": "memory://",
        "broker_transport_options": {"polling_interval": 0.02},
        "result_backend": "cache+memory://",
        "task_protocol": request.param,
    }


@pytest.fixture
def celery_worker_parameters():
    """Celery's fixture: the worker is started without a look whether it answers."""
    return {"perform_ping_check": False}


@pytest.fixture
def tasks(celery_app):
    """Tasks of the application, known before its worker starts."""

    @celery_app.task(name="divide")
    def divide(x, y):
        return x / y

    @celery_app.task(name="total")
    def total(numbers):
        return sum(numbers)

    return {"divide": divide, "total": total}


@pytest.fixture
def tx_app(tasks, celery_app, celery_worker):
    """The client, disconnected while the worker still runs."""
    client = TwistedCelery(celery_app)
    yield client
    pytest_twisted.blockon(client.disconnect())


@pytest_twisted.ensureDeferred
async def test_a_value_comes_back(tx_app, tasks):
    """By name, through the task, and as a canvas."""
    assert await tx_app.send_task("divide", (6, 3)) == 2
    assert await tx_app.task(tasks["divide"]).delay(6, 3) == 2
    divide = tasks["divide"]
    assert await tx_app.apply_async(divide.s(12, 3) | divide.s(2)) == 2
    assert await tx_app.apply_async(group(divide.s(4, 2), divide.s(9, 3))) == [2, 3]
    assert await tx_app.apply_async(chord([divide.s(4, 2), divide.s(9, 3)], tasks["total"].s())) == 5


@pytest_twisted.inlineCallbacks
def test_an_exception_is_raised(tx_app, tasks):
    """The task's exception, in each of these ways."""
    with pytest.raises(ZeroDivisionError):
        yield tx_app.send_task("divide", (1, 0))
    with pytest.raises(ZeroDivisionError):
        yield tx_app.task(tasks["divide"]).apply_async((1, 0))
    with pytest.raises(ZeroDivisionError):
        yield tx_app.apply_async(group(tasks["divide"].s(1, 1), tasks["divide"].s(1, 0)))
