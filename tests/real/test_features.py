"""What each broker and result backend can do, and who does it: the table in ``docs/transports.md``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from celery import chord, group
from kombu import Exchange, Queue
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.support.features import read_column, write_column
from tests.support.taskapp import create_app
from twistedcelery import CallCancelled, TwistedCelery

#: The parts of a client, by the names of the threads that serve them where nothing is native.
PUBLISH, RESULTS, STORE, SUBSCRIBE = "publish", "results", "store", "subscribe"

# Celery's own backend for Redis, in the threads, uses what redis-py has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

CANNOT = "Celery cannot"


def add(tx_app: TwistedCelery) -> Any:
    return tx_app.app.tasks["taskapp.add"]


async def send(tx_app: TwistedCelery) -> None:
    await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True)


async def result(tx_app: TwistedCelery) -> None:
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    with pytest.raises(ValueError, match="no"):
        await tx_app.send_task("taskapp.fail", args=("no",))


async def progress(tx_app: TwistedCelery) -> None:
    seen = []
    call = tx_app.send_task("taskapp.countdown", args=(3, 0.2))
    call.on_update(lambda state, meta: seen.append((state, meta["total"])))
    assert await call == 3
    assert ("PROGRESS", 3) in seen


async def cancel(tx_app: TwistedCelery) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "touched")
        call = tx_app.send_task("taskapp.touch", args=(str(file),), countdown=1)
        await call.published
        call.cancel()
        with pytest.raises(CallCancelled):
            await call
        # When this one is due, so is the other one.
        assert await tx_app.send_task("taskapp.add", args=(1, 2), countdown=2) == 3
        assert not file.exists(), "the worker ran a task that was revoked"


async def canvas(tx_app: TwistedCelery) -> None:
    assert await tx_app.apply_async(add(tx_app).s(1, 2) | add(tx_app).s(3)) == 6
    assert await tx_app.apply_async(group(add(tx_app).s(n, n) for n in range(3))) == [0, 2, 4]


async def chords(tx_app: TwistedCelery) -> None:
    called = tx_app.apply_async(
        chord([add(tx_app).s(n, n) for n in range(2)], tx_app.app.tasks["taskapp.echo"].s())
    )
    assert (await called)["args"] == [[0, 2]]


async def by_id(tx_app: TwistedCelery) -> None:
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    await call
    known = tx_app.result(call.task_id)
    assert await known.state == "SUCCESS"
    assert await known.result == 3


async def saved_groups(tx_app: TwistedCelery) -> None:
    members = tx_app.group_result("the-group", [tx_app.result("one"), tx_app.result("two")])
    await members.save()
    restored = await tx_app.group_result("the-group").restore()
    assert restored is not None
    assert [member.id for member in restored.results] == ["one", "two"]


async def commands(tx_app: TwistedCelery) -> None:
    assert await tx_app.control.rate_limit("taskapp.echo", "1000/s") is None


async def inspect(tx_app: TwistedCelery) -> None:
    assert len(await tx_app.control.ping(timeout=10, limit=1)) == 1
    active = await tx_app.control.inspect(timeout=10, limit=1).active()
    assert active is not None
    assert list(active.values()) == [[]]


async def events(tx_app: TwistedCelery) -> None:
    seen: Deferred[dict[str, Any]] = Deferred()
    stream = tx_app.events({"task-succeeded": lambda event: seen.called or seen.callback(event)}, state=True)
    await stream.ready
    await tx_app.control.enable_events()
    # The worker turns events on when it gets to it: ask until it has.
    while not seen.called:
        await tx_app.send_task("taskapp.sleep", args=(0.1,))
    await seen
    await stream.close()


async def eta(tx_app: TwistedCelery) -> None:
    begun = reactor.seconds()
    assert await tx_app.send_task("taskapp.add", args=(1, 2), countdown=1) == 3
    assert reactor.seconds() - begun >= 1


async def priorities(tx_app: TwistedCelery) -> None:
    """What waits is taken in the order of its priorities, whichever end of them the broker takes first."""
    queue = Queue("by-priority", Exchange("by-priority"), "by-priority", max_priority=9)
    # So many that files, which are read in any order, do not look sorted by chance.
    sent = [3, 9, 0, 6] * 3
    for priority in sent:
        await tx_app.send_task(
            "taskapp.echo", (priority,), queue=queue, priority=priority, ignore_result=True
        )

    def read() -> list[int]:
        with tx_app.app.connection_for_read() as connection:
            bound = queue(connection.default_channel)
            return [bound.get(no_ack=True).decode()[0][0] for _ in sent]

    if await deferToThread(read) not in (sorted(sent), sorted(sent, reverse=True)):
        raise NotImplementedError


#: Each feature: its name, which parts of the client serve it, and what tries it.
FEATURES: list[tuple[str, set[str], Callable[[TwistedCelery], Awaitable[None]]]] = [
    ("tasks sent and taken by the broker", {PUBLISH}, send),
    ("results and failures", {RESULTS}, result),
    ("progress and other states", {RESULTS}, progress),
    ("cancelling, revoking", {PUBLISH}, cancel),
    ("ETA and countdown", {PUBLISH}, eta),
    ("priorities", {PUBLISH}, priorities),
    ("chains and groups", {RESULTS}, canvas),
    ("chords", {RESULTS, STORE}, chords),
    ("results by id", {STORE}, by_id),
    ("groups saved and restored", {STORE}, saved_groups),
    ("control commands", {PUBLISH}, commands),
    ("`inspect`, replies to commands", {SUBSCRIBE}, inspect),
    ("events", {SUBSCRIBE}, events),
]


async def served(
    tx_app: TwistedCelery, parts: set[str], probe: Callable[[TwistedCelery], Awaitable[None]]
) -> str:
    """Try a feature with a new client, and say who served it."""
    try:
        await probe(tx_app)
    except NotImplementedError:
        return CANNOT
    threads = {thread.name.removeprefix("twistedcelery-") for thread in threading.enumerate()} & parts
    if not threads:
        return "native"
    polled = RESULTS in threads and tx_app._binding.bound.results._keeps_states
    return "threads, polled" if polled else "threads"


@pytest.fixture(
    params=[
        "`amqp`, `rpc`",
        "`amqp`, `redis`",
        "`redis`, `redis`",
        "`redis`, `redis`, in threads",
        "`amqp`, `db+sqlite`",
        "`filesystem`, `file`",
    ]
)
def column(request):
    """The name of a column."""
    return request.param


@pytest.fixture
def make(column, request, tmp_path, worker):
    """``make()`` gives a new client of the broker and the backend of a column, beside a worker."""
    config: dict[str, Any] = {"worker_prefetch_multiplier": 0, "result_chord_retry_interval": 0.1}
    names = [name.strip("`") for name in column.split(", ")]
    urls = []
    for place, name in enumerate(names[:2]):
        if name == "redis":
            urls.append(request.getfixturevalue("redis_server").url(place))
        elif name == "amqp":
            urls.append(request.getfixturevalue("broker_url"))
        elif name == "db+sqlite":
            urls.append(f"db+sqlite:///{tmp_path}/results.sqlite")
        elif name == "rpc":
            urls.append("rpc://")
        elif name == "file":
            (tmp_path / "results").mkdir()
            urls.append(f"file://{tmp_path}/results")
        else:
            folders = {key: str(tmp_path / key) for key in ("messages", "control")}
            for folder in folders.values():
                (tmp_path / folder).mkdir()
            config["broker_transport_options"] = {
                "data_folder_in": folders["messages"],
                "data_folder_out": folders["messages"],
                "control_folder": folders["control"],
                "polling_interval": 0.02,
            }
            urls.append("filesystem://")
    worker(*urls, config=config)
    transport = "threads" if "in threads" in names else "auto"
    return lambda: TwistedCelery(create_app(*urls, **config), transport=transport)


@pytest.mark.timeout(150)
@pytest_twisted.ensureDeferred
async def test_features_are_served_as_the_table_says(column, make, pytestconfig):
    """Each feature works, by native code or in threads, or is one that Celery does not have there."""
    found = {}
    for name, parts, probe in FEATURES:
        tx_app = make()
        try:
            found[name] = await served(tx_app, parts, probe)
        finally:
            await tx_app.disconnect()
    if pytestconfig.getoption("write_features"):
        write_column(column, found)
    assert read_column(column) == found, "make features writes docs/transports.md anew"
