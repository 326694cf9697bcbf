"""Polling result backends: files that are half written, odd metas, and how often."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from twisted.internet.task import Clock

from twistedcelery.errors import ReplyNotAccepted, ReplyUndecodable, TaskFailure
from twistedcelery.transports.threads.backend import OwnBackend
from twistedcelery.transports.threads.failures import Redactor
from twistedcelery.transports.threads.polled import PolledReader


class Sink:
    def __init__(self):
        self.states, self.failures, self.answers = [], [], 0

    def changed(self, task_id, meta):
        self.states.append((task_id, meta["status"], meta["result"]))

    def unreadable(self, task_id, error):
        self.failures.append((task_id, type(error)))

    def answered(self):
        self.answers += 1


class Setup:
    """A reader on Celery's file backend, with a clock that stands still unless moved."""

    def __init__(self, directory, **config):
        self.directory, self.clock, self.sink = directory, Clock(), Sink()
        app = Celery(set_as_current=False, backend=f"file://{directory}")
        app.conf.update(config)
        self.backend = OwnBackend(app, "unused").make()
        self.reader = PolledReader(self.backend, self.sink, Redactor(app), self.clock.seconds, interval=0.025)

    def write(self, task_id, content):
        text = content if isinstance(content, str) else json.dumps(content)
        self.backend.set(self.backend.get_key_for_task(task_id), text)

    def poll(self, after=0.03):
        self.clock.advance(after)
        return self.reader.read(in_a_hurry=False)


@pytest.fixture
def setup(tmp_path):
    return lambda **config: Setup(tmp_path, **config)


def meta(result=1, status="SUCCESS"):
    return {"status": status, "result": result, "traceback": None, "children": []}


def test_each_new_state_is_told_once(setup):
    """A state is told when it differs from the one before."""
    one = setup()
    one.reader.watch("a")
    one.poll()
    one.write("a", meta(1, "PROGRESS"))
    one.poll()
    one.poll()
    one.write("a", meta(2, "PROGRESS"))
    one.poll()
    assert one.sink.states == [("a", "PROGRESS", 1), ("a", "PROGRESS", 2)]


def test_a_finished_task_is_not_asked_for_again(setup):
    """After a final state nothing follows."""
    one = setup()
    one.reader.watch("a")
    one.write("a", meta(1))
    one.poll()
    one.write("a", meta(2))
    one.poll()
    assert one.sink.states == [("a", "SUCCESS", 1)]


@pytest.mark.parametrize("torn", ["", '{"status": "SUCC', '{"status": "SUCCESS"}', "[1]"])
def test_a_half_written_file_is_read_again(setup, torn):
    """An empty file or a piece of one is no error while the worker may still be writing."""
    one = setup()
    one.reader.watch("a")
    one.write("a", torn)
    for _ in range(30):
        one.poll()
    assert one.sink.failures == []
    one.write("a", meta(7))
    one.poll()
    assert one.sink.states == [("a", "SUCCESS", 7)]
    assert one.sink.failures == []


@pytest.mark.parametrize("broken", ['{"status": "SUCC', '{"result": 5}', "[1]", '{"status": 5, "result": 1}'])
def test_a_broken_file_is_reported_once_it_stays_broken(setup, broken):
    """What cannot be decoded for two seconds is an error, told once, and others are not disturbed."""
    one = setup()
    one.reader.watch("broken")
    one.reader.watch("fine")
    one.write("broken", broken)
    one.poll()
    one.poll(after=1.9)
    assert one.sink.failures == []
    one.poll(after=0.2)
    one.poll(after=5)
    assert one.sink.failures == [("broken", ReplyUndecodable)]
    one.write("fine", meta())
    one.poll()
    assert one.sink.states == [("fine", "SUCCESS", 1)]


def test_a_file_that_is_broken_anew_gets_its_time_again(setup):
    """Each write may be torn; only what stays the same counts."""
    one = setup()
    one.reader.watch("a")
    for length in range(5, 12):
        one.write("a", json.dumps(meta())[:length])
        one.poll(after=1.5)
    assert one.sink.failures == []


def test_a_serializer_that_is_not_accepted_is_reported_at_once(setup):
    """``result_accept_content`` is not a matter of waiting."""
    one = setup(result_serializer="pickle", result_accept_content=["json"])
    one.reader.watch("a")
    one.write("a", "anything")
    one.poll()
    assert one.sink.failures == [("a", ReplyNotAccepted)]


def test_a_class_that_is_no_exception_is_not_called(setup):
    """A failure that names a function instead of an exception class is a failure, not a call."""
    one = setup()
    one.reader.watch("a")
    evil = {"exc_module": "os", "exc_type": "getcwd", "exc_message": []}
    one.write("a", meta(evil, "FAILURE"))
    one.poll()
    ((task_id, state, error),) = one.sink.states
    assert (task_id, state, type(error)) == ("a", "FAILURE", TaskFailure)
    assert error.stored == evil
    assert one.sink.failures == []


def test_a_forgotten_task_leaves_nothing(setup):
    """Neither the reader nor Celery's cache keeps anything of a task that was forgotten."""
    one = setup()
    for number in range(50):
        one.reader.watch(str(number))
        one.write(str(number), meta(status="PROGRESS"))
    one.poll()
    for number in range(50):
        one.reader.forget(str(number))
    one.reader.forget("never watched")
    one.poll()
    assert len(one.sink.states) == 50
    assert not one.reader._seen
    assert not one.reader._torn
    assert len(one.backend._cache) == 0


def test_polls_are_an_interval_apart(setup):
    """Reading before the time is up reads nothing, and says how long to wait."""
    one = setup()
    one.reader.watch("a")
    assert one.poll() == pytest.approx(0.025)
    one.write("a", meta())
    assert one.poll(after=0.01) == pytest.approx(0.015)
    assert one.sink.states == []
    one.poll(after=0.016)
    assert one.sink.states == [("a", "SUCCESS", 1)]


def test_slow_polls_leave_half_of_the_time(setup):
    """A round that takes long is done in parts, each followed by a pause as long as itself."""
    one = setup()
    for number in range(100):
        one.reader.watch(str(number))
    get, polled = one.backend.mget, []

    def slow_mget(keys):
        polled.extend(keys)
        one.clock.advance(0.03)
        return get(keys)

    one.backend.mget = slow_mget
    assert one.poll() == pytest.approx(0.06)
    assert len(polled) == 50
    assert one.poll(after=0.061) == pytest.approx(0.06)
    assert len(set(polled)) == 100
