"""What a canvas does besides its result, on a real broker and worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from celery import group
from twisted.internet.threads import deferToThread

from tests.support.canvasapp import create_app
from tests.support.waiting import until
from twistedcelery import CallCancelled, TwistedCelery


@pytest.fixture
def tx_app(worker, broker_url):
    """A client on ``rpc://``, with one worker."""
    pytest_twisted.blockon(deferToThread(worker, app="tests.support.canvasapp"))
    client = TwistedCelery(create_app(broker_url, "rpc://"))
    yield client
    pytest_twisted.blockon(client.disconnect())


async def content(path: Path) -> str:
    """What a callback has written, once it has."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"), what=f"{path.name} is written")
    return path.read_text()


@pytest_twisted.ensureDeferred
async def test_links_are_called(tx_app, tmp_path):
    """A callback given with ``link``, as an option, and to a chain gets the value."""
    add, write = (tx_app.app.tasks[f"c.{name}"] for name in ("add", "write"))
    signature = add.s(1, 1)
    signature.link(write.s(str(tmp_path / "signature")))
    assert await tx_app.apply_async(signature) == 2
    assert await tx_app.apply_async(add.s(2, 2), link=write.s(str(tmp_path / "option"))) == 4
    chained = add.s(3, 3) | add.s(1)
    chained.link(write.s(str(tmp_path / "chain")))
    assert await tx_app.apply_async(chained) == 7
    call = tx_app.task(add).apply_async((4, 4), link=write.s(str(tmp_path / "task")))
    assert await call == 8
    found = [await content(tmp_path / name) for name in ("signature", "option", "chain", "task")]
    assert found == ["2\n", "4\n", "7\n", "8\n"]


@pytest_twisted.ensureDeferred
async def test_error_callbacks_are_called(tx_app, tmp_path):
    """Those of ``link_error`` and of ``on_error``, and for a chain's later tasks too."""
    fail, identity, callback = (tx_app.app.tasks[f"c.{name}"] for name in ("fail", "identity", "write_error"))
    canvases = {
        "on_error": fail.s("boo").on_error(callback.s(str(tmp_path / "on_error"))),
        "chain": (identity.s("boo") | fail.s()).on_error(callback.s(str(tmp_path / "chain"))),
    }
    for name, canvas in canvases.items():
        with pytest.raises(ValueError, match="boo"):
            await tx_app.apply_async(canvas)
        assert await content(tmp_path / name) == "ValueError: boo\n"


@pytest_twisted.ensureDeferred
async def test_a_cancelled_canvas_does_not_go_on(tx_app, tmp_path):
    """Neither the members of a group that have not started, nor the rest of a chain."""
    add, write = (tx_app.app.tasks[f"c.{name}"] for name in ("add", "write"))
    path = tmp_path / "written"
    calls = [
        tx_app.apply_async(group(write.s(number, str(path)) for number in range(3)), countdown=1),
        tx_app.apply_async(add.s(1, 1) | write.s(str(path)), countdown=1),
    ]
    for call in calls:
        await call.published
        call.cancel()
        with pytest.raises(CallCancelled):
            await call
    assert tx_app.in_flight == 0
    assert await tx_app.apply_async(add.s(1, 1), countdown=2) == 2
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_progress_of_a_group(tx_app):
    """``on_update`` hears of each member."""
    seen = []
    progress = tx_app.app.tasks["c.progress"]
    call = tx_app.apply_async(group(progress.s(), progress.s()))
    call.on_update(lambda state, meta: seen.append((state, meta)))
    assert await call == ["done", "done"]
    assert seen == [("PROGRESS", {"current": 1})] * 2
