"""What ``make bench`` makes of what it measured."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import bench.__main__ as command
from bench.client import BASELINE, FLOOR, SUBJECT, Client
from bench.comparison import Comparison
from bench.measurement import Measurement
from bench.servers import ServerMissing


def measured(cpu_per_call: float) -> Measurement:
    return Measurement(calls=1000, cpu=cpu_per_call / 1000, elapsed=0.5)


def comparison(*rounds: tuple[float, float]) -> Comparison:
    """Rounds of the baseline and the subject, in microseconds of CPU per call."""
    result = Comparison((BASELINE, SUBJECT), BASELINE)
    for baseline, subject in rounds:
        result = result.with_round({BASELINE: measured(baseline), SUBJECT: measured(subject)})
    return result


def test_a_ratio_compares_within_rounds():
    """A round in which the machine was busy counts as much as any other."""
    assert comparison((800, 200), (2400, 720), (700, 280)).ratio(SUBJECT) == pytest.approx(0.3)
    assert comparison((800, 200)).ratio(BASELINE) == 1


def test_the_table():
    """It has the medians of CPU and of throughput, and the ratio, of each client."""
    header, *lines = comparison((800, 200), (900, 300), (1000, 250)).table().splitlines()
    assert header.split() == ["client", "us", "CPU", "a", "call", "calls/s", "ratio", "of", "CPU"]
    assert [line.split()[-3:] for line in lines] == [["900", "2000", "1.00"], ["250", "2000", "0.25"]]


@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["--max-ratio", "0.5"], 0)])
def test_the_limit(monkeypatch, capsys, arguments, status):
    """Above the limit, which is 0.35 unless given, the command fails."""
    costs = {BASELINE: 1000, SUBJECT: 400, FLOOR: 100}

    @contextmanager
    def servers():
        yield "amqp://"

    def measure(self: Client, workload: object) -> Measurement:
        return measured(costs[self])

    monkeypatch.setattr(command, "servers", servers)
    monkeypatch.setattr(Client, "measure", measure)
    assert command.main(["--rounds", "2", *arguments]) == status
    assert ("0.35 is allowed" in capsys.readouterr().out) == bool(status)


def test_without_a_broker(monkeypatch, capsys):
    """A machine that lacks RabbitMQ is told so."""

    @contextmanager
    def servers():
        raise ServerMissing("no rabbitmq-server")
        yield

    monkeypatch.setattr(command, "servers", servers)
    assert command.main([]) == 2
    assert "no rabbitmq-server" in capsys.readouterr().err
