"""Which tasks count towards the limits, for how long, and who is refused on their account."""

from __future__ import annotations

import datetime as dt

import pytest

from tests.unit.wamp.conftest import error_of, result_of
from tests.unit.wamp.fakes import success
from twistedcelery.wamp.tasks.slots import EXPIRY_GRACE


def add(one, caller=1, authid=None, **options):
    """Call a task as one session, with ``celery_options``."""
    extra = {"celery_options": options} if options else {}
    return one.call("app.add", 1, 2, caller=caller, authid=authid, **extra)


def refused(one, caller=1, authid=None, **options):
    """Whether a call of that caller is refused as too many. Nothing is sent then."""
    before = len(one.client.sent)
    answer = add(one, caller, authid, **options)
    if not answer.called:
        return False
    assert error_of(answer).error == "celery.error.overloaded"
    assert len(one.client.sent) == before
    return True


def finish_all(one):
    for call in one.client.calls:
        if not call.called:
            call.finish(success(3))


def test_what_waits_for_its_eta_is_counted_apart(setup):
    """It leaves room for what runs, has a limit of its own, and counts as running once it is due."""
    one = setup(max_in_flight=2, max_in_flight_per_caller=None)
    for _ in range(2):
        assert not refused(one, countdown=60)
    assert refused(one, countdown=60)
    assert result_of(one.call("celery_api.status"))["scheduled"] == 2
    assert not refused(one)
    one.clock.advance(60)
    assert result_of(one.call("celery_api.status"))["scheduled"] == 0
    assert refused(one)
    # A task that will run soon is no way around the limit.
    assert refused(one, countdown=0.001)
    finish_all(one)
    assert not refused(one, countdown=60)
    finish_all(one)
    assert one.clock.getDelayedCalls() == []


def test_an_eta_counts_like_a_countdown(setup):
    """As text, with an offset or in the application's time zone, which is UTC."""
    one = setup(max_in_flight=2)
    soon = dt.datetime.fromtimestamp(1060.0, dt.UTC)
    for eta in (soon, soon.replace(tzinfo=None)):
        assert not refused(one, eta=eta.isoformat())
    assert result_of(one.call("celery_api.status"))["scheduled"] == 2
    one.clock.advance(60.1)
    assert result_of(one.call("celery_api.status"))["scheduled"] == 0


def test_the_limit_of_one_caller(setup):
    """It counts by session, or by authid and role where there is one; nobody else is refused."""
    one = setup(max_in_flight_per_caller=1)
    for caller, authid, again in ((7, None, 7), (8, None, 8), (9, "ann", 10), (11, "bob", 12)):
        assert not refused(one, caller, authid)
        assert refused(one, again, authid)
    finish_all(one)
    assert not refused(one, 7)


def test_undisclosed_callers_have_no_limit_of_their_own(setup):
    """They cannot be told apart, so that one of them would lock all others out: ``max_in_flight`` remains."""
    one = setup(max_in_flight_per_caller=1, max_in_flight=3)
    assert [refused(one, None) for _ in range(4)] == [False, False, False, True]


def test_the_default_limits(setup):
    """One caller has 100 tasks that run and 100 that are scheduled, and takes no place from others."""
    one = setup()
    assert [refused(one, countdown=900) for _ in range(101)] == [False] * 100 + [True]
    assert [refused(one) for _ in range(101)] == [False] * 100 + [True]
    assert not refused(one, 2)
    one.clock.advance(900)
    assert refused(one, countdown=900)
    assert not refused(one, 2, countdown=900)


def test_waiting_for_results_is_limited_for_each_caller(setup):
    """Who waits for too many results does not keep others from waiting."""
    one = setup(max_in_flight_per_caller=1)
    add(one)
    task_id = one.last.task_id
    result, mine = "celery_api.result", {"caller": 1, "authid": None}
    waiting = one.call(result, task_id, **mine)
    assert error_of(one.call(result, task_id, **mine)).error == "celery.error.overloaded"
    other = one.call(result, task_id, caller=2, authid=None)
    one.last.finish(success(3))
    assert result_of(waiting) == result_of(other) == 3
    assert result_of(one.call("celery_api.status"))["waiting"] == 0


def test_an_expired_task_gives_its_place_back(setup):
    """Nobody answers for a message that expired in its queue. A sign of life shows that it was started."""
    one = setup(max_in_flight=2)
    assert not refused(one, expires=1)
    assert not refused(one, expires=1)
    one.last.update("STARTED", None)
    one.clock.advance(1 + EXPIRY_GRACE - 0.1)
    assert refused(one, 2)
    one.clock.advance(0.2)
    assert not refused(one, 2)
    assert refused(one, 2)
    # It is followed still: its worker may be silent.
    finish_all(one)
    assert one.client.cancelled == []


def test_an_expired_scheduled_task_gives_its_place_back(setup):
    """One that expires before it is due never runs."""
    one = setup(max_in_flight=1)
    assert not refused(one, expires=1, countdown=900)
    assert refused(one, 2, countdown=900)
    one.clock.advance(1 + EXPIRY_GRACE)
    assert not refused(one, 2, countdown=900)


def test_a_revoked_task_gives_its_place_back(setup):
    """At once, and only once; its call ends when a worker says so."""
    one = setup(max_in_flight=1)
    answer = add(one)
    for _ in range(2):
        assert result_of(one.call("celery_api.revoke", one.last.task_id)) is None
    assert not answer.called
    assert not refused(one, 2)
    assert refused(one, 2)
    finish_all(one)
    assert result_of(answer) == 3


def test_an_old_task_gives_its_place_back(setup):
    """``max_in_flight_age`` seconds after it was due."""
    one = setup(max_in_flight=1, max_in_flight_age=100)
    answer = add(one, countdown=50)
    one.clock.advance(149.9)
    assert refused(one, 2)
    one.clock.advance(0.2)
    assert not refused(one, 2)
    one.client.calls[0].finish(success(3))
    assert result_of(answer) == 3


def test_too_many_without_a_place(setup):
    """Of a caller who leaves more of them behind than their limit, the oldest is revoked."""
    one = setup(max_in_flight_per_caller=2)
    answers = []
    for caller in (1, 2, 1, 1):
        answers.append(add(one, caller))
        one.call("celery_api.revoke", one.last.task_id)
    assert [answer.called for answer in answers] == [True, False, False, False]
    assert error_of(answers[0]).error == "celery.error.revoked"
    assert one.client.cancelled == [one.client.calls[0]]


def test_too_many_without_a_place_in_all(setup):
    """Past the limit for all, the caller with the most of them loses one."""
    one = setup(max_in_flight=3, max_in_flight_per_caller=None)
    answers = []
    for caller in (2, 1, 1, 3):
        answers.append(add(one, caller))
        one.call("celery_api.revoke", one.last.task_id)
    assert error_of(answers[1]).error == "celery.error.revoked"
    assert one.client.cancelled == [one.client.calls[1]]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"countdown": 900}, True),
        ({"countdown": 901}, False),
        ({"countdown": 3e8}, False),
        ({"eta": dt.datetime.fromtimestamp(1900, dt.UTC).isoformat()}, True),
        ({"eta": dt.datetime.fromtimestamp(1901, dt.UTC).isoformat()}, False),
        ({"eta": "9999-12-31T23:59:59"}, False),
        ({"eta": "0001-01-01T00:00:00"}, True),
        ({"expires": 86400}, True),
        ({"expires": 86401}, False),
        ({"expires": 86500, "countdown": 100}, True),
        ({"expires": "9999-12-31T23:59:59"}, False),
    ],
)
def test_times_are_bounded(options, allowed, setup):
    """A worker holds a task until its ETA, and RabbitMQ ends a worker that holds one too long."""
    one = setup()
    for answer in (add(one, **options), one.call("celery_api.submit", "app.add", [1, 2], {}, options)):
        if allowed:
            assert not answer.called
        else:
            assert error_of(answer).error == "celery.error.not_allowed"
    assert len(one.client.sent) == (2 if allowed else 0)


def test_times_without_bounds(setup):
    """Only where the configuration says so."""
    one = setup(max_countdown=None, max_expires=None)
    assert not add(one, countdown=3e8, expires=3e9).called


def test_expiry_by_configuration(setup):
    """The first pattern that matches decides, from when the task is due. Callers may only choose less."""
    one = setup(expires={"app.add": 60, "app.*": 5, "white*": None, "*": 7}, max_expires=10)
    add(one)
    add(one, countdown=30)
    add(one, expires=20)
    one.call("app.bound", 1)
    one.call("celery_api.submit", "white space")
    assert [options.get("expires") for _, _, _, options in one.client.sent] == [60, 90, 20, 5, None]
    assert error_of(add(one, expires=61)).error == "celery.error.not_allowed"
    assert (
        error_of(one.call("app.bound", 1, celery_options={"expires": 6})).error == "celery.error.not_allowed"
    )
    submitted = one.call("celery_api.submit", "white space", [], {}, {"expires": 11})
    assert error_of(submitted).error == "celery.error.not_allowed"


def test_expiry_for_all(setup):
    """A number is for every task."""
    one = setup(expires=60)
    add(one)
    assert one.client.sent[-1][3]["expires"] == 60


def test_tasks_that_no_worker_takes(setup):
    """``celery_api.status`` counts the tasks in flight whose queue no worker consumes, until one does."""
    one = setup()
    for number in range(3):
        add(one)
        if number:
            one.last.update("WAITING", {"reason": "no worker consumes queue 'celery'"})
    assert result_of(one.call("celery_api.status"))["waiting_for_worker"] == 2
    one.last.update("STARTED", None)
    assert result_of(one.call("celery_api.status"))["waiting_for_worker"] == 1
    finish_all(one)
    assert result_of(one.call("celery_api.status"))["waiting_for_worker"] == 0
