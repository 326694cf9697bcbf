"""What ``make bench`` makes of what it measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred, fail, succeed

import bench.__main__ as command
from bench import runner
from bench.calls import Calls
from bench.contender import Contender, ContenderFailed
from bench.measurement import Measurement, count_errors, quantile
from bench.row import Family, Row, cpu, difference, figure, rate, ratio, total
from bench.rows import FAMILIES
from bench.servers import Scene, ServerMissing, Servers
from bench.table import cells, markdown_table, text_table
from bench.workload import Workload

OURS, THEIRS = Contender("ours", "Ours", "ours"), Contender("theirs", "Theirs", "theirs")


def measured(cpu_per_call: float, *, errors: int = 0, elapsed: float = 0.5, **figures: float) -> Measurement:
    used = {"client": cpu_per_call / 1000, "router": cpu_per_call / 500}
    return Measurement(
        calls=1000, elapsed=elapsed, cpu=used, errors=errors, memory={"client": 1}, figures=figures
    )


def row(**fields: object) -> Row:
    return Row("a-row", "a row", ("ours", "theirs"), ratio(cpu("ours"), cpu("theirs")), **fields)


def rounds(*costs: tuple[float, float]) -> list[dict[str, Measurement]]:
    """Rounds of both, in microseconds of CPU per call."""
    return [{"ours": measured(ours), "theirs": measured(theirs)} for ours, theirs in costs]


def family(*rows: Row) -> Family:
    return Family("some", "Some", Scene(), (OURS, THEIRS), rows, calls=1000)


class TestFigures:
    def test_a_ratio_compares_within_rounds(self):
        """A round in which the machine was busy counts as much as any other."""
        result = row().result(rounds((200, 800), (720, 2400), (280, 700)), {})
        assert result.value == pytest.approx(0.3)
        assert result.values == pytest.approx((0.25, 0.3, 0.4))

    def test_what_they_are_made_of(self):
        """CPU of the client or of others, throughput, and what a contender measured besides."""
        one = {"ours": measured(100, p50=3.0), "theirs": measured(200, elapsed=2.0, p50=1.0)}
        assert cpu("ours")(one) == pytest.approx(100)
        assert cpu("ours", "client", "router")(one) == pytest.approx(300)
        assert ratio(rate("ours"), rate("theirs"))(one) == pytest.approx(4)
        assert total(cpu("ours"), cpu("theirs"))(one) == pytest.approx(300)
        assert difference(figure("ours", "p50"), figure("theirs", "p50"))(one) == 2.0

    def test_quantiles_and_errors(self):
        """A quantile is a value that was seen; an error is whatever is not the value."""
        assert quantile([5.0, 1.0, 3.0], 0.5) == 3.0
        assert quantile(list(map(float, range(100))), 0.99) == 99.0
        assert quantile([1.0], 1.0) == 1.0
        assert count_errors([3, 5, ValueError()], lambda number: number + 3) == 2


class TestVerdicts:
    @pytest.mark.parametrize(
        ("ours", "limits", "verdict"),
        [
            (100, {}, "reported"),
            (100, {"must": 0.2, "aim": 0.1}, "aim reached"),
            (150, {"must": 0.2, "aim": 0.1}, "reached"),
            (150, {"must": 0.2}, "reached"),
            (250, {"must": 0.2, "aim": 0.1}, "missed"),
            (3500, {"must": 3.5, "aim": 4, "at_least": True}, "reached"),
            (3400, {"must": 3.5, "aim": 4, "at_least": True}, "missed"),
            (4000, {"must": 3.5, "aim": 4, "at_least": True}, "aim reached"),
        ],
    )
    def test_limits(self, ours, limits, verdict):
        """Both limits count, in the row's direction."""
        result = row(**limits).result(rounds((ours, 1000)), {})
        assert result.verdict == verdict
        assert result.failed == (verdict == "missed")

    def test_the_worst_of_the_rounds(self):
        """Lateness is not a matter of medians."""
        assert row(summary=max).result(rounds((1, 10), (9, 10), (2, 10)), {}).value == pytest.approx(0.9)

    def test_wrong_results(self):
        """A row whose calls went wrong has its figures, and no verdict on them."""
        wrong = {"ours": measured(1, errors=2), "theirs": measured(1)}
        result = row(must=5).result([wrong, wrong], {})
        assert (result.verdict, result.problem, result.failed) == (
            "wrong results",
            "ours: 4 calls failed",
            True,
        )

    def test_not_measured(self):
        """What could not be measured is said, and is no failure."""
        result = row(must=5).result(rounds((1, 1)), {"theirs": "theirs is not installed"})
        assert (result.values, result.verdict, result.failed) == ((), "not measured", False)
        assert cells(result)[-1] == "not measured: theirs is not installed"
        assert row().result([], {}).problem == "not run"


class TestTables:
    def test_a_line(self):
        """It has the limits, the median, the lowest and the highest."""
        result = row(must=0.35, aim=0.2).result(rounds((200, 1000), (300, 1000), (900, 1000)), {})
        assert cells(result) == ("a-row", "a row", "≤ 0.35", "≤ 0.20", "0.30", "0.20", "0.90", "reached")
        assert cells(replace(result, row=row(must=1200, unit="ms", at_least=True)))[2:5] == (
            "≥ 1,200 ms",
            "",
            "0.30 ms",
        )

    def test_text_and_markdown(self):
        """Columns are as wide as what they hold; Markdown has a rule below its header."""
        header, line = text_table([row().result(rounds((1, 2)), {})]).splitlines()
        assert header.split()[:2] == ["row", "what"]
        assert header.index("measured") == line.index("0.50")
        assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


class TestCalls:
    def test_so_many_at_once(self):
        """The next call is made when one has ended; outcomes keep the order of the calls."""
        waiting: dict[int, Deferred[int]] = {}

        def call(number: int) -> Deferred[int]:
            waiting[number] = Deferred()
            return waiting[number]

        done = Calls(call, 3, 2).run()
        assert sorted(waiting) == [0, 1]
        waiting[1].callback(11)
        assert sorted(waiting) == [0, 1, 2]
        waiting[2].callback(12)
        waiting[0].callback(10)
        assert done.result == [10, 11, 12]

    def test_failures_are_outcomes(self):
        """A call that fails ends as any other."""
        calls = Calls(lambda number: fail(ValueError()) if number else succeed(3), 2, 1)
        outcomes = calls.run().result
        assert count_errors(outcomes, lambda number: number + 3) == 1
        assert all(latency > 0 for latency in calls.latencies)


class TestContenders:
    def test_not_installed(self):
        """A contender that is not installed is not run."""
        with pytest.raises(ContenderFailed, match="no_such_package is not installed"):
            Contender("x", "X", "x", needs="no_such_package").measure(Workload("", "", 1))

    def test_a_program_that_fails(self, capfd):
        """Its status is the reason; what it said is on standard error."""
        with pytest.raises(ContenderFailed, match="X ended with status 1"):
            Contender("x", "X", "no_such_module").measure(Workload("", "", 1))
        assert "no_such_module" in capfd.readouterr().err


class TestRunner:
    def run(self, monkeypatch, measure, scene=None, rounds=2):
        """Run one family, with what stands for its contenders and servers."""
        from contextlib import contextmanager

        @contextmanager
        def servers(_self: Servers, _scene: Scene, calls: int):
            if scene is not None:
                raise scene
            yield Workload("amqp://", "rpc://", calls)

        monkeypatch.setattr(Servers, "scene", servers)
        monkeypatch.setattr(Contender, "measure", measure)
        (one,) = runner.run([family(row(must=0.35))], rounds, None, lambda _: None)
        return one

    def test_rounds_are_interleaved(self, monkeypatch):
        """All contenders run in each round, and each round begins with another one."""
        order = []

        def measure(self: Contender, workload: Workload) -> Measurement:
            order.append(self.name)
            assert workload.calls == 1000
            return measured(100)

        assert len(self.run(monkeypatch, measure).rounds) == 2
        assert order == ["ours", "theirs", "theirs", "ours"]

    def test_a_contender_that_fails_is_not_tried_again(self, monkeypatch):
        """The others go on, and its rows say why there is nothing."""
        tried = []

        def measure(self: Contender, _: Workload) -> Measurement:
            tried.append(self.name)
            if self is THEIRS:
                raise ContenderFailed("theirs broke")
            return measured(100)

        one = self.run(monkeypatch, measure)
        assert tried == ["ours", "theirs", "ours"]
        assert [(result.verdict, result.problem) for result in one.results] == [
            ("not measured", "theirs broke")
        ]

    def test_without_a_server(self, monkeypatch):
        """A machine that lacks RabbitMQ is told so in each row."""
        one = self.run(monkeypatch, None, ServerMissing("no rabbitmq-server"))
        assert one.results[0].problem == "no rabbitmq-server"


class TestCommand:
    @pytest.mark.parametrize(("ours", "status"), [(400, 1), (300, 0)])
    def test_the_exit_status(self, monkeypatch, capsys, ours, status):
        """Where a row misses what it must reach, the command fails."""
        one = runner.Measured(family(row(must=0.35)), 1000, tuple(rounds((ours, 1000))))
        monkeypatch.setattr(command, "run", lambda *_: [one])
        assert command.main(["--rows", "amqp"]) == status
        assert ("missed" in capsys.readouterr().out) == bool(status)

    def test_without_anything_measured(self, monkeypatch):
        """Nothing measured is a status of its own."""
        monkeypatch.setattr(command, "run", lambda *_: [runner.Measured(family(row()), 1000)])
        assert command.main([]) == 2

    def test_rows_are_chosen_by_name(self):
        """By the name of a row or of a family; an unknown name is an error."""
        assert command.chosen("") == FAMILIES
        assert [one.name for one in command.chosen("router-cpu,redis")] == ["redis", "bridge"]
        with pytest.raises(SystemExit, match="no such rows: nonsense"):
            command.chosen("redis,nonsense")


class TestTable:
    def test_names_are_unique(self):
        """A name means one family or one row."""
        names = [family.name for family in FAMILIES]
        assert len(names) == len(set(names))
        names = [row.name for family in FAMILIES for row in family.rows]
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_rows_refer_to_their_family(self, family):
        """Each row's contenders and profile are there, and each contender's module."""
        from importlib.util import find_spec

        names = {contender.name for contender in family.contenders}
        for one in family.rows:
            assert set(one.contenders) <= names
            assert one.profiled[0] in names
        for contender in family.contenders:
            assert find_spec(f"bench.clients.{contender.module}") is not None
            replace(Workload("", "", 1), **contender.workload)
