"""`twistedcelery.testing`: what a user's own tests rely on, with no server at all."""

from __future__ import annotations

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import Ignore
from kombu.exceptions import EncodeError
from twisted.internet.task import Clock

from tests.support.outcomes import outcomes_of
from twistedcelery import TwistedCelery
from twistedcelery.errors import (
    BrokerUnavailable,
    CallCancelled,
    Disconnected,
    PublishUnconfirmed,
    ResultLost,
    Unroutable,
)
from twistedcelery.testing import MemoryTransport

pytest_plugins = ["twistedcelery.testing.plugin"]


def create_app(**settings):
    """An application as a user has it; no server is there."""
    app = Celery("shop", broker="amqp://127.0.0.1:1//", backend="redis://127.0.0.1:1", set_as_current=False)
    app.conf.update(settings)

    @app.task(name="shop.add", shared=False)
    def add(x, y):
        return x + y

    @app.task(name="shop.fail", shared=False)
    def fail(message):
        raise ValueError(message)

    @app.task(name="shop.count", shared=False, bind=True)
    def count(self, n):
        for current in range(n):
            self.update_state(state="PROGRESS", meta={"current": current})
        return n

    @app.task(name="shop.flaky", shared=False, bind=True, max_retries=3, default_retry_delay=0)
    def flaky(self):
        if self.request.retries < 2:
            raise self.retry(exc=RuntimeError("not yet"))
        return self.request.retries

    @app.task(name="shop.parent", shared=False)
    def parent():
        return add.delay(1, 1).id

    @app.task(name="shop.total", shared=False)
    def total(numbers):
        return sum(numbers)

    @app.task(name="shop.own", shared=False, bind=True)
    def own(self):
        self.update_state(state="FAILURE", meta={"exc_type": "ValueError", "exc_message": ["own"]})
        raise Ignore

    return app


class Shop:
    """A user's client, on memory."""

    def __init__(self, transport, **settings):
        self.app = create_app(**settings)
        self.clock = Clock()
        self.transport = transport
        self.client = TwistedCelery(self.app, self.clock, transport=transport)

    def call(self, name, *args, **options):
        return self.client.send_task(f"shop.{name}", args, **options)

    def task(self, name):
        return self.app.tasks[f"shop.{name}"]


@pytest.fixture
def shop(memory_transport):
    made = Shop(memory_transport)
    yield made
    assert outcomes_of(made.client.disconnect()) == [None]


@pytest.fixture(params=[1, 2])
def protocol(request):
    return request.param


def test_a_task_waits_to_be_looked_at(shop):
    """The broker has the task, and what was sent can be read as a worker would."""
    call = shop.client.send_task("shop.add", (2,), {"y": 3}, headers={"tenant": "x"}, queue="slow")
    (task,) = shop.transport.sent
    assert (task.name, task.id, task.args, task.kwargs) == ("shop.add", call.task_id, (2,), {"y": 3})
    assert task.headers["tenant"] == "x"
    assert task.queue == "slow"
    assert outcomes_of(call.published) == [None]
    assert not call.called
    call.addErrback(lambda failure: failure.trap(Disconnected))


def test_a_value(memory_transport, protocol):
    """A task that is run by Celery's own tracer gives its value."""
    shop = Shop(memory_transport, task_protocol=protocol)
    outcomes = outcomes_of(shop.call("add", 2, 3))
    shop.transport.run_all()
    assert outcomes == [5]
    shop.client.disconnect()


def test_a_failure(shop):
    """A task that raises fails its call with the exception."""
    call = shop.call("fail", "no")
    (outcome,) = run(shop, call)
    assert type(outcome) is ValueError
    assert str(outcome) == "no"
    assert "ValueError" in call.traceback


def test_progress(shop):
    """Each state of a task is an update, in order."""
    updates = []
    call = shop.call("count", 3)
    call.on_update(lambda *update: updates.append(update))
    assert run(shop, call) == [3]
    assert updates == [("PROGRESS", {"current": current}) for current in range(3)]


def test_answers_by_hand(shop):
    """The test may play the worker."""
    first, second, third = (shop.call("add", 1, 1) for _ in range(3))
    updates = []
    first.on_update(lambda *update: updates.append(update))
    tasks = shop.transport.sent
    tasks[0].update("PROGRESS", {"current": 1})
    tasks[0].succeed("a value")
    tasks[1].fail(KeyError("k"))
    tasks[2].lose()
    assert updates == [("PROGRESS", {"current": 1})]
    assert outcomes_of(first) == ["a value"]
    assert [type(outcome) for outcome in outcomes_of(second)] == [KeyError]
    assert [type(outcome) for outcome in outcomes_of(third)] == [ResultLost]
    assert shop.transport.waiting == []


def test_what_no_worker_could_return_is_refused(shop):
    """An answer goes through the application's serialiser."""
    call = shop.call("add")
    with pytest.raises(EncodeError):
        shop.transport.sent[0].succeed(object())
    shop.transport.sent[0].succeed((1, 2))
    assert outcomes_of(call) == [[1, 2]], "JSON knows no tuples"


def test_a_cancel(shop):
    """A cancelled call revokes its task, which then does not run."""
    call = shop.call("add", 1, 1)
    call.cancel()
    assert [type(outcome) for outcome in outcomes_of(call)] == [CallCancelled]
    shop.clock.advance(0)
    (task,) = shop.transport.sent
    assert shop.transport.revoked == {call.task_id}
    assert task.is_revoked
    shop.transport.run_all()
    assert outcomes_of(shop.client.result(call.task_id).state) == ["REVOKED"]


def test_a_lost_broker(shop):
    """A call made while the broker is away fails in time, or goes out when it is back."""
    shop.transport.go_away()
    assert not shop.client.connected
    late, patient = shop.call("add", 1, 1, confirm_timeout=3), shop.call("add", 2, 2)
    shop.clock.pump([1] * 4)
    assert [type(outcome) for outcome in outcomes_of(late)] == [BrokerUnavailable]
    assert shop.transport.sent == []
    shop.transport.come_back()
    shop.clock.pump([1, 0])
    assert [task.args for task in shop.transport.sent] == [(2, 2)]
    assert shop.client.connected
    assert run(shop, patient) == [4]


def test_a_broker_lost_before_the_confirmation(shop):
    """A message that was sent and not confirmed is `PublishUnconfirmed`; one may confirm by hand."""
    shop.transport.hold_confirmations()
    confirmed, lost = shop.call("add", 1, 1), shop.call("add", 2, 2)
    assert outcomes_of(confirmed.published) == []
    shop.transport.sent[0].confirm()
    shop.transport.go_away()
    shop.clock.advance(10)
    assert [type(outcome) for outcome in outcomes_of(lost)] == [PublishUnconfirmed]
    shop.transport.come_back()
    shop.transport.sent[0].run()
    assert outcomes_of(confirmed) == [2]


def test_results_while_the_broker_is_away_come_later(shop):
    """What a worker stores meanwhile is delivered afterwards."""
    call = shop.call("add", 1, 1)
    shop.transport.go_away()
    shop.transport.run_all()
    assert outcomes_of(call.published) == [None]
    assert not call.called
    shop.transport.come_back()
    assert outcomes_of(call) == [2]


def test_retries(shop):
    """A retry waits as a task of its own, under the same id."""
    call = shop.call("flaky")
    states = []
    call.on_update(lambda state, _: states.append(state))
    assert run(shop, call) == [2]
    assert states == ["RETRY", "RETRY"]
    assert len({task.id for task in shop.transport.sent}) == 1


def test_tasks_that_send_tasks(shop):
    """What a task sends goes to memory too, and its result can be asked for by id."""
    (child_id,) = run(shop, shop.call("parent"))
    assert outcomes_of(shop.client.result(child_id).get()) == [2]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda add, total: chain(add.s(1, 1), add.s(2)), 4),
        (lambda add, total: group(add.s(1, n) for n in range(3)), [1, 2, 3]),
        (lambda add, total: chord([add.s(1, n) for n in range(3)], total.s()), 6),
        (lambda add, total: chord([chain(add.s(1, 1), add.s(1)), add.s(1, 1)], total.s()) | add.s(10), 15),
    ],
    ids=["chain", "group", "chord", "nested"],
)
def test_canvases(shop, make, value):
    """Celery's own canvas code runs on memory, chords included."""
    canvas = make(shop.task("add"), shop.task("total"))
    assert run(shop, shop.client.apply_async(canvas)) == [value]


def test_control_commands(shop):
    """The test may answer for workers."""
    silent = outcomes_of(shop.client.control.inspect(timeout=1).ping())
    shop.clock.advance(1)
    assert silent == [None]
    shop.transport.answer_command = lambda command: {"one": {"ok": command["method"]}}
    asked = outcomes_of(shop.client.control.inspect(timeout=1).ping())
    shop.clock.pump([0, 1])
    assert asked == [{"one": {"ok": "ping"}}]


def test_events(shop):
    """The test may send the events of workers."""
    events = []
    stream = shop.client.events({"task-received": events.append})
    shop.transport.send_event("task-received", uuid="id-1")
    assert [event["uuid"] for event in events] == ["id-1"]
    stream.close()


def test_an_unroutable_task(shop):
    """A task for an exchange that nothing is bound to is refused, as by RabbitMQ."""
    call = shop.call("add", 1, 1, exchange="nowhere", routing_key="nothing")
    assert [type(outcome) for outcome in outcomes_of(call)] == [Unroutable]


def test_tasks_without_end(shop):
    """``run_all`` stops at its limit."""

    @shop.app.task(name="shop.again", shared=False)
    def again():
        again.delay()

    shop.call("again").addErrback(lambda failure: failure.trap(Disconnected))
    with pytest.raises(RuntimeError, match="5 tasks were run, and 1 more wait"):
        shop.transport.run_all(limit=5)


def test_the_application_stays_as_it_was(shop):
    """Outside of a task's run the application has its own producers and backend."""
    before = dict(vars(shop.app))
    run(shop, shop.call("parent"))
    assert "producer_or_acquire" not in vars(shop.app)
    assert vars(shop.app)["_backend_cache"] is before["_backend_cache"]


def test_a_client_that_is_left_open_is_seen():
    """The fixture's check: a client counts until it is disconnected."""
    transport = MemoryTransport()
    client = TwistedCelery(create_app(), Clock(), transport=transport)
    assert transport.is_open
    client.disconnect()
    assert not transport.is_open


def run(shop, call):
    """The outcomes of a call, once every task was run."""
    outcomes = outcomes_of(call)
    shop.transport.run_all()
    return outcomes
