"""`LostCalls`: which calls are lost, which only wait, and at what cost. The test is broker and workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from kombu import Exchange, Queue
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent

from tests.support.transport import FakeResults, bare_app
from twistedcelery.calls import lost
from twistedcelery.calls.lost import CONFIRM_AFTER, EVERY, PATIENCE, LostCalls
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import BrokerUnavailable, ResultError, ResultLost
from twistedcelery.results.pending import PendingResults
from twistedcelery.transports.interface import QueueState

#: Seconds since the epoch when a test's clock is at 0.
START = 1_700_000_000.0

LOST_AFTER = 20.0


class Call:
    """What waits for a task."""

    task_name = "tasks.add"
    meta = None

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.ends: list[Any] = []
        self.updates: list[tuple[str, Any]] = []

    @property
    def holder(self) -> Call:
        return self

    def update(self, state: str, meta: Any) -> None:
        self.updates.append((state, meta))

    def finish(self, meta: Any) -> None:
        self.ends.append(meta["result"])

    def fail(self, error: Exception) -> None:
        self.ends.append(error)


class Worker:
    """A worker.

    :ivar queues: what it consumes
    :ivar tasks: the ids of the tasks that it has, by query
    """

    def __init__(self, *queues: str) -> None:
        self.queues = queues
        self.tasks: dict[str, list[str]] = {"active": [], "reserved": [], "scheduled": []}
        self.silent_to: set[str] = set()

    def answer(self, query: str, *arguments: Any) -> Any:
        if query == "active_queues":
            return [{"name": name} for name in self.queues]
        if query == "query_task":
            had = [task_id for query in ("active", "reserved") for task_id in self.tasks[query]]
            return {task_id: ["active", {}] for task_id in had if task_id in arguments[0]}
        if query == "scheduled":
            return [{"eta": None, "request": {"id": task_id}} for task_id in self.tasks[query]]
        return [{"id": task_id} for task_id in self.tasks[query]]


class Store:
    """A result backend that keeps results."""

    def __init__(self, state: str) -> None:
        self.state = state

    def task_meta(self, task_id: str) -> Deferred[Any]:
        return succeed({"status": self.state, "result": "kept", "task_id": task_id})


class Site:
    """A client's lookout, with the broker and the workers that it asks.

    It is the binding, the bound transport, the subscriber and the control at once.

    :ivar queues: what the broker has; a queue that is not there is empty
    :ivar workers: by name
    :ivar questions: what the broker and the workers were asked
    """

    def __init__(self, lost_after: float | None = LOST_AFTER, **settings: Any) -> None:
        self.clock = Clock()
        self.pending = PendingResults()
        self.pending.source = self.results = FakeResults()
        self.app = bare_app(**settings)
        self.subscriber = self
        self.connected = True
        self.store: Any = None
        self.queues: dict[str, QueueState | None] = {"celery": QueueState(0, 1)}
        self.workers = {"one": Worker("celery")}
        self.questions: list[str] = []
        self.refusal: Exception | None = None
        parts: Any = self
        self.lost = LostCalls(
            self.app, self.clock, parts, self.pending, parts, lost_after, lambda: START + self.clock.seconds()
        )

    # What is asked

    def use(self) -> Site:
        return self

    def look(self, queue: str) -> Deferred[QueueState | None]:
        self.questions.append(f"look {queue}")
        if self.refusal is not None:
            return fail(self.refusal)
        return succeed(self.queues.get(queue, QueueState(0, 0)))

    def inspect(self, timeout: float, limit: int | None) -> Site:
        return self

    def __getattr__(self, query: str) -> Callable[..., Deferred[Any]]:
        if query not in ("active_queues", "query_task", "active", "reserved", "scheduled"):
            raise AttributeError(query)

        def ask(*arguments: Any) -> Deferred[Any]:
            self.questions.append(query)
            replies = {
                name: worker.answer(query, *arguments)
                for name, worker in self.workers.items()
                if query not in worker.silent_to
            }
            return succeed(replies or None)

        return ask

    # What the test does

    def call(self, task_id: str = "id", **changes: Any) -> Call:
        """A call whose task the broker has."""
        call = Call(task_id)
        self.pending.add(call)
        self.lost.sent(message(task_id, **changes))
        return call

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([1.0] * int(seconds))


def message(task_id: str, headers: Any = None, **changes: Any) -> OutgoingMessage:
    """A task's message to the queue ``celery``."""
    return OutgoingMessage(
        **{
            "body": b"",
            "properties": {"correlation_id": task_id},
            "headers": {"task": "tasks.add", "eta": None, "expires": None, **(headers or {})},
            "exchange": "",
            "routing_key": "celery",
            "declare": (Queue("celery", Exchange("celery"), "celery"),),
            **changes,
        }
    )


def at(seconds: float) -> str:
    """A moment as messages have it."""
    return datetime.fromtimestamp(START + seconds, UTC).isoformat()


def test_a_lost_task():
    """A task that nobody has is lost once it was found missing twice, and not before ``lost_after``."""
    site = Site()
    call = site.call()
    site.pass_time(LOST_AFTER)
    assert call.ends == []
    site.pass_time(EVERY + CONFIRM_AFTER)
    (error,) = call.ends
    assert isinstance(error, ResultLost)
    assert isinstance(error, ResultError)
    assert "tasks.add [id]" in str(error)
    assert "'celery'" in str(error)
    assert call.updates == []
    assert site.clock.getDelayedCalls() == []


def test_the_second_finding_is_some_seconds_later():
    """One finding is not enough: the reply may be on its way."""
    site = Site()
    call = site.call()
    site.pass_time(LOST_AFTER)
    assert "active" in site.questions
    assert call.ends == []
    site.pending.state_changed("id", {"status": "SUCCESS", "result": 5})
    site.pass_time(60)
    assert call.ends == [5]


def test_what_was_missing_once_and_is_seen_again():
    """A task that is found again begins anew."""
    site = Site()
    call = site.call()
    site.pass_time(LOST_AFTER)
    site.workers["one"].tasks["active"] = ["id"]
    site.pass_time(CONFIRM_AFTER + 1)
    site.workers["one"].tasks["active"] = []
    site.pass_time(EVERY)
    assert call.ends == []
    site.pass_time(CONFIRM_AFTER + 1)
    assert len(call.ends) == 1


def has(query: str, task_id: str = "id") -> Callable[[Site], object]:
    return lambda site: site.workers["one"].tasks[query].append(task_id)


def silent(*queries: str) -> Callable[[Site], object]:
    return lambda site: site.workers["one"].silent_to.update(queries)


def queue(name: str, state: QueueState | None) -> Callable[[Site], object]:
    return lambda site: site.queues.update({name: state})


def attribute(name: str, value: Any) -> Callable[[Site], object]:
    return lambda site: setattr(site, name, value)


def silent_other(site: Site) -> None:
    site.queues["celery"] = QueueState(0, 2)


NOT_LOST: dict[str, Callable[[Site], object]] = {
    "it runs": has("active"),
    "it is reserved": has("reserved"),
    "it waits for its ETA in a worker": has("scheduled"),
    "it is in its queue": queue("celery", QueueState(1, 1)),
    "its queue cannot be looked at": queue("celery", None),
    "the broker refuses a look": attribute("refusal", BrokerUnavailable("no")),
    "a worker answers nothing": silent("active_queues", "query_task"),
    "a worker does not answer for the task": silent("query_task"),
    "a worker does not say what is scheduled": silent("scheduled"),
    "a worker does not say what it has": silent("reserved", "active"),
    "one of two workers is silent": silent_other,
    "no worker consumes the queue": lambda site: site.workers["one"].__init__("other"),
    "the last worker has gone": lambda site: (
        queue("celery", QueueState(0, 0))(site),
        site.workers["one"].__init__("other"),
    ),
    "a worker that is known by name is silent": queue(
        "celery", QueueState(0, workers=frozenset({"one", "gone"}))
    ),
    "there is no connection": attribute("connected", False),
    "a reply waits": queue("replies", QueueState(1, 1)),
    "a worker runs what it may have been replaced with": has("active", "unknown"),
    "a worker has reserved what it may have been replaced with": has("reserved", "unknown"),
    "a worker has scheduled what it may have been replaced with": has("scheduled", "unknown"),
    "another queue holds what it may have been replaced with": queue("other", QueueState(1, 1)),
    "a silent worker consumes another queue": queue("other", QueueState(0, 2)),
    "a configured queue without workers holds something": queue("configured", QueueState(1, 0)),
    "the result is stored as a retry": attribute("store", Store("RETRY")),
    "it was retried": lambda site: site.pending.state_changed("id", {"status": "RETRY", "result": None}),
}


@pytest.mark.parametrize("rule", NOT_LOST)
def test_not_lost(rule):
    """Whatever may still answer the call keeps it waiting; without it, the task is lost."""
    for holds in (True, False):
        site = Site(task_queues=[Queue("celery"), Queue("configured")])
        site.workers["one"].queues = ("celery", "other")
        call = site.call()
        if holds:
            NOT_LOST[rule](site)
        site.pass_time(300)
        assert [type(end) for end in call.ends] == ([] if holds else [ResultLost])
        site.lost.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"eta": at(300)}},
        {"headers": {"expires": at(300)}},
        {"headers": {"eta": "soon"}},
        {"headers": {"eta": "2000-01-01T00:00:00"}},
        {"headers": {"x-delay": 100_000}},
        {"exchange": "x", "declare": ()},
        {"declare": (Queue("celery", Exchange("c", "topic"), "celery.#"),)},
        {"declare": (Queue("celery", queue_arguments={"x-queue-type": "quorum"}),)},
        {"declare": (Queue("celery", queue_arguments={"x-dead-letter-exchange": "dead"}),)},
        {"declare": (Queue("celery"), Queue("second"))},
    ],
    ids=str,
)
def test_messages_that_may_be_elsewhere(changes):
    """A task that is not due, or of which it is not certain where it is, is not lost."""
    site = Site()
    call = site.call(**changes)
    site.pass_time(300)
    assert call.ends == []
    site.lost.stop()


def test_task_protocol_1():
    """Its message has the ETA in the body, so nothing is known of it."""
    site = Site()
    call = Call("id")
    site.pending.add(call)
    site.lost.sent(
        OutgoingMessage(b"", {"correlation_id": "id"}, {}, exchange="", routing_key="celery", declare=())
    )
    site.pass_time(300)
    assert call.ends == []
    site.lost.stop()


def test_an_eta_that_has_passed():
    """The time counts from the ETA on."""
    site = Site()
    call = site.call(headers={"eta": at(100)})
    site.pass_time(100 + LOST_AFTER - 1)
    assert call.ends == []
    site.pass_time(EVERY + CONFIRM_AFTER + 2)
    assert len(call.ends) == 1


def test_lost_after_none():
    """Nothing is ever lost, and no worker is asked where the broker counts consumers."""
    site = Site(lost_after=None)
    call = site.call()
    site.pass_time(600)
    assert call.ends == []
    assert set(site.questions) == {"look celery"}
    site.lost.stop()


def test_different_brokers_for_reading_and_writing():
    """Queues are looked at where replies are read, so nothing is known of those elsewhere."""
    site = Site(broker_read_url="amqp://elsewhere//")
    call = site.call()
    site.pass_time(300)
    assert (call.ends, site.questions) == ([], [])
    site.lost.stop()


def test_a_silent_worker_that_the_broker_forgets():
    """A worker that was silent may run the task when its connection is gone, too, until it answers."""
    site = Site()
    site.queues["celery"] = QueueState(0, 2)
    call = site.call()
    site.pass_time(PATIENCE + EVERY)
    site.queues["celery"] = QueueState(0, 1)
    site.pass_time(300)
    assert call.ends == []
    site.queues["celery"] = QueueState(0, 2)
    site.workers["two"] = Worker("celery")
    site.pass_time(EVERY + CONFIRM_AFTER + 1)
    assert len(call.ends) == 1


def test_a_silent_worker_whose_name_is_forgotten():
    """As with a count of consumers."""
    site = Site()
    site.queues["celery"] = QueueState(0, workers=frozenset({"one", "two"}))
    call = site.call()
    site.pass_time(PATIENCE + EVERY)
    site.queues["celery"] = QueueState(0, workers=frozenset({"one"}))
    site.pass_time(300)
    assert call.ends == []
    site.workers["two"] = Worker("celery")
    site.pass_time(EVERY + CONFIRM_AFTER + 1)
    assert len(call.ends) == 1


@pytest.mark.parametrize("seen", ["while the task waited", "shortly before"])
def test_a_worker_that_finishes_its_tasks_in_silence(seen):
    """A worker that was told to stop neither consumes nor answers while it finishes its tasks."""
    site = Site()
    site.queues["celery"] = QueueState(0, 2)
    site.workers["two"] = Worker("celery")
    call = site.call("id" if seen == "while the task waited" else "earlier")
    site.pass_time(PATIENCE)
    if seen == "shortly before":
        site.pass_time(3)
        call = site.call()
    stopping = site.workers.pop("two")
    site.queues["celery"] = QueueState(0, 1)
    site.pass_time(300)
    assert call.ends == []
    site.queues["celery"] = QueueState(0, 2)
    site.workers["two"] = stopping
    site.pass_time(EVERY + CONFIRM_AFTER + 1)
    assert len(call.ends) == 1
    site.lost.stop()


def test_workers_that_take_no_commands():
    """Where remote control is off no worker answers, and those that do are not all."""
    site = Site(worker_enable_remote_control=False)
    call = site.call()
    site.pass_time(300)
    assert call.ends == []
    site.lost.stop()


def test_other_calls_of_the_client_do_not_matter():
    """A worker that runs other calls of this client runs no replacement."""
    site = Site()
    call, other = site.call(), site.call("other")
    site.workers["one"].tasks["active"] = ["other"]
    site.pass_time(LOST_AFTER + EVERY + CONFIRM_AFTER + 1)
    assert (len(call.ends), other.ends) == (1, [])
    site.lost.stop()


def test_a_stored_result_that_was_missed():
    """It ends the call."""
    site = Site()
    site.store = Store("SUCCESS")
    call = site.call()
    site.pass_time(LOST_AFTER + EVERY)
    assert call.ends == ["kept"]


def test_many_are_asked_for_at_once():
    """A thousand calls cost as many questions as one."""
    one, many = Site(), Site()
    one.call()
    calls = [many.call(str(number)) for number in range(1000)]
    for site in (one, many):
        site.pass_time(LOST_AFTER + EVERY + CONFIRM_AFTER + 1)
    assert {type(call.ends[0]) for call in calls} == {ResultLost}
    assert many.questions == one.questions


def test_calls_that_end_soon_cost_nothing():
    """Nothing is asked for them, and no timer is left."""
    site = Site()
    for number in range(3):
        task_id = str(number)
        site.call(task_id)
        site.pass_time(PATIENCE - 2)
        site.pending.state_changed(task_id, {"status": "SUCCESS", "result": 1})
        site.lost.discard(task_id)
        assert site.clock.getDelayedCalls() == []
    site.pass_time(60)
    assert site.questions == []


def test_parts_of_canvases_that_have_ended():
    """They are forgotten at the next look."""
    site = Site()
    site.call()
    site.pending.state_changed("id", {"status": "SUCCESS", "result": 1})
    site.pass_time(60)
    assert (site.questions, site.clock.getDelayedCalls()) == ([], [])


def test_stop_in_the_middle():
    """No timer is left, and an answer that comes later changes nothing."""
    site = Site()
    call = site.call()
    answer: Deferred[Any] = Deferred()
    site.look = lambda _: answer  # type: ignore[method-assign]  # a broker that does not answer
    site.pass_time(PATIENCE)
    site.lost.stop()
    assert site.clock.getDelayedCalls() == []
    assert answer.called
    site.call("later")
    site.pass_time(60)
    assert (call.ends, site.clock.getDelayedCalls()) == ([], [])


# No worker


def test_no_worker_consumes_the_queue(monkeypatch):
    """The caller is told once, after a few seconds; the log has one line for the queue."""
    warnings: list[dict[str, Any]] = []
    monkeypatch.setattr(lost, "_log", Logger(observer=warnings.append))
    site = Site()
    site.queues["celery"] = QueueState(2, 0)
    site.workers.clear()
    calls = [site.call("1"), site.call("2")]
    site.pass_time(PATIENCE)
    site.pass_time(100)
    late = site.call("3")
    site.pass_time(100)
    update = ("WAITING", {"reason": "no worker consumes queue 'celery'"})
    assert [call.updates for call in [*calls, late]] == [[update]] * 3
    assert [call.ends for call in [*calls, late]] == [[], [], []]
    assert [formatEvent(event) for event in warnings] == ["calls wait: no worker consumes queue 'celery'"]
    site.queues["celery"] = QueueState(2, 1)
    site.pass_time(EVERY)
    site.queues["celery"] = QueueState(2, 0)
    site.pass_time(EVERY)
    assert [call.updates for call in [*calls, late]] == [[update]] * 3
    # It had workers meanwhile.
    assert len(warnings) == 2
    site.lost.stop()


@pytest.mark.parametrize(
    ("state", "workers", "is_told"),
    [
        (QueueState(1, 0), {}, True),
        (QueueState(0, 0), {}, False),
        (QueueState(1, 1), {}, False),
        (None, {}, False),
        (QueueState(1, workers=frozenset()), {}, True),
        (QueueState(1, workers=frozenset({"w"})), {}, False),
        (QueueState(1, workers=frozenset({"w"})), {"w": Worker("other")}, True),
        (QueueState(1, workers=frozenset({"w"})), {"w": Worker("celery")}, False),
    ],
)
def test_whether_a_queue_has_workers(state, workers, is_told):
    """The broker's count of consumers decides; where it has none, all workers must have answered."""
    site = Site()
    site.queues["celery"], site.workers = state, workers
    call = site.call()
    site.pass_time(PATIENCE + 1)
    assert bool(call.updates) == is_told
    site.lost.stop()


@pytest.mark.parametrize("is_running", [False, True])
def test_a_broker_that_has_lost_its_queues(is_running):
    """Calls of before are checked soon; those that nobody has are lost, and a running task is not."""
    site = Site()
    before = site.call("before")
    site.pass_time(1)
    site.pending.resumed(True)
    after = site.call("after")
    if is_running:
        site.workers["one"].tasks["active"] = ["before"]
    site.pass_time(PATIENCE + CONFIRM_AFTER + 2)
    if is_running:
        assert before.ends == []
    else:
        assert isinstance(before.ends[0], ResultLost)
        assert "come back without its queues" in str(before.ends[0])
    assert after.ends == []


def test_an_interruption():
    """It is asked soon what became of calls that were under way, and nothing is lost sooner for that."""
    site = Site()
    call = site.call()
    site.pass_time(PATIENCE + 1)
    asked = len(site.questions)
    site.pending.resumed(False)
    site.pass_time(PATIENCE + 1)
    assert len(site.questions) > asked
    assert call.ends == []
    site.lost.stop()
    site.pending.resumed(True)
    assert site.clock.getDelayedCalls() == []
