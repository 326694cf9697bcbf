"""Fixtures of the fault trials."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import deferToThread

from tests.real.faults.bridge import BridgeProcess
from tests.real.faults.table import cells, write_row
from tests.real.faults.tasks import APP
from tests.real.faults.trial import Trial
from tests.real.wamp.nodes import TICKET, TICKET_VARIABLE, node_config
from tests.support.impatience import make_impatient
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.worker import Worker


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask soon what became of their calls."""
    make_impatient(monkeypatch)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Trial], None]:
    """``record(trial)`` prints its row, and writes it into the table where ``--write-soak`` is given."""

    def write(trial: Trial) -> None:
        row = cells(trial)
        # pytest shows it where the test fails, or with -s.
        sys.stdout.write(f"{' | '.join(row)}\n")
        if request.config.getoption("write_soak"):
            write_row(row)

    return write


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path, record: Callable[[Trial], None]) -> Iterator[Trial]:
    """The row that the test is; see `tests.real.faults.trial.fault`."""
    new = Trial(*request.param, tmp_path / "executions")
    yield new
    record(new)


@pytest.fixture
def start_bridge(
    broker_url: str, worker: Callable[..., Worker], crossbar_node: Callable[..., CrossbarNode], tmp_path: Path
) -> Iterator[Callable[..., Awaitable[tuple[str, BridgeProcess]]]]:
    """``await start_bridge(**extra)``: a router, a worker, and a bridge in a process of its own.

    It returns the router's URL and the bridge.
    """
    started: list[BridgeProcess] = []

    async def start(**extra: Any) -> tuple[str, BridgeProcess]:
        port = free_port()
        node = await deferToThread(crossbar_node, node_config(port), port=port, env={TICKET_VARIABLE: TICKET})
        await deferToThread(worker, app=APP, pool="threads", concurrency=4)
        bridge = BridgeProcess(tmp_path, node.url, broker_url, APP, extra)
        started.append(bridge)
        await deferToThread(bridge.process.start)
        return node.url, bridge

    yield start
    for bridge in started:
        bridge.process.stop()
