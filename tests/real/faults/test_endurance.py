"""A bridge under half of the load that it can take, for half an hour."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, DeferredList, ensureDeferred
from twisted.internet.threads import deferToThread

from tests.real.faults.measuring import resident
from tests.real.faults.trial import Size, Trial
from tests.real.wamp.client import connect

#: The row's name.
ENDURANCE = "WAMP: nothing but half of the load that the bridge can take"

#: Calls that are under way at once while it is found out how many there can be in a second.
CALLERS = 20

#: Seconds for that, and seconds after which memory must not grow any more.
SATURATE, SETTLE = 15.0, 300.0


@pytest.fixture
def trial(request, tmp_path, record):
    """The row; how long it takes is an option."""
    seconds = request.config.getoption("endurance")
    new = Trial(ENDURANCE, Size(seconds=seconds), tmp_path / "executions")
    yield new
    record(new)


class MixedCalls:
    """Calls of many kinds: that return, fail, report progress, are retried, submitted, or cancelled.

    :param path: where executions are noted
    """

    def __init__(self, caller, path):
        self._caller = caller
        self._path = str(path)

    def __call__(self, number):
        kinds = (self.run, self.run, self.run, self.slow, self.progress, self.fail, self.retry)
        kinds += (self.submit, self.follow_by_id, self.cancel)
        return ensureDeferred(kinds[number % len(kinds)](number))

    async def run(self, number, seconds=0.0):
        return await self._caller.call("celery.faults.run", number, self._path, seconds)

    async def slow(self, number):
        return await self.run(number, 0.05)

    async def progress(self, number):
        options = CallOptions(on_progress=lambda state, meta: None)
        return [
            number
            if await self._caller.call("celery.taskapp.countdown", 3, 0.01, options=options) == 3
            else None
        ]

    async def fail(self, number):
        with pytest.raises(ApplicationError) as raised:
            await self._caller.call("celery.taskapp.fail", f"failure {number}")
        assert raised.value.kwargs["exc_message"] == f"failure {number}", raised.value
        return [number]

    async def retry(self, number):
        return [number if await self._caller.call("celery.taskapp.retry_once", 0.05) == 1 else None]

    async def submit(self, number):
        submitted = self._caller.call("celery_api.submit", "faults.run", [number, self._path])
        return await self._caller.call("celery_api.result", await submitted)

    async def follow_by_id(self, number):
        task_id = await self._caller.call("celery_api.submit", "faults.run", [number, self._path, 0.02])
        await self._caller.call("celery_api.state", task_id)
        return await self._caller.call("celery_api.result", task_id)

    async def cancel(self, number):
        call = self._caller.call("celery.taskapp.sleep", 0.05)
        reactor.callLater(0.02, call.cancel)
        with pytest.raises((CancelledError, ApplicationError)):
            await call
        return [number]


async def saturation(make, seconds):
    """How many calls a second there can be: each of some callers makes the next one when one has ended."""
    made = 0
    ends = reactor.seconds() + seconds

    async def one_after_another():
        nonlocal made
        while reactor.seconds() < ends:
            made += 1
            await make(made)

    began = reactor.seconds()
    await DeferredList(
        [ensureDeferred(one_after_another()) for _ in range(CALLERS)],
        fireOnOneErrback=True,
        consumeErrors=True,
    )
    return made / (reactor.seconds() - began)


@pytest.mark.soak
@pytest.mark.endurance
@pytest.mark.timeout(24 * 3600)
@pytest_twisted.ensureDeferred
async def test_half_saturation(trial, start_bridge):
    """Memory is flat after the first minutes, and nothing is left in a table at the end."""
    url, bridge = await start_bridge(max_in_flight_per_caller=1000)
    caller = await connect(url)
    calls = MixedCalls(caller, trial.path.with_suffix(".before"))
    async with trial.wamp_calls(caller, "celery", bridge, call=MixedCalls(caller, trial.path)) as load:
        rate = await saturation(calls, SATURATE) / 2
        trial.size = Size(seconds=trial.size.seconds, rate=round(rate, 1))
        settle = min(SETTLE, trial.size.seconds / 3)
        load.start(rate)
        await task.deferLater(reactor, settle)
        settled = await deferToThread(resident, bridge.process.pid)
        await task.deferLater(reactor, trial.size.seconds - settle)
        grown = await deferToThread(resident, bridge.process.pid) / settled - 1
    assert trial.counts.results == trial.counts.calls
    assert trial.counts.twice == 0
    assert grown < 0.05, f"from {settled:.0f} MiB by {grown:.1%}"
    await caller.close()
