"""The trials' own tools."""

from __future__ import annotations

from collections import Counter, deque

from tests.real.faults import test_bridge, test_rabbitmq, test_redis, test_replies, test_workers
from tests.real.faults.measuring import KEPT, PENDING, Watch, tables
from tests.real.faults.table import cells, row_names, write_row
from tests.real.faults.test_endurance import ENDURANCE
from tests.real.faults.trial import FAULTS, Counts, Size, Trial
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery
from twistedcelery._deferreds import Waiters
from twistedcelery.results.pending import PendingResults, StateCache
from twistedcelery.wamp.bridge import Bridge
from twistedcelery.wamp.config import Configuration

#: Their rows are in `FAULTS` because they are imported.
MODULES = (test_bridge, test_rabbitmq, test_redis, test_replies, test_workers)


class Part:
    """Stands for a part of the package: so its module says."""

    __module__ = "twistedcelery.part"


def test_tables_are_found_wherever_they_are():
    """In attributes, slots, containers, and behind methods; of other packages' objects none."""
    part, hidden, foreign = Part(), Part(), Counter(a=1)
    part.waiters = {"one": Waiters()}
    part.waiters["one"].wait()
    part.foreign = foreign
    hidden.queue = deque([1, 2, 3])
    part.listener = StateCache.note.__get__(StateCache())
    part.others = [hidden]
    found = tables(part)
    assert found["Part.waiters"] == found["Waiters._waiting"] == 1
    assert found["Part.queue"] == 3
    assert found["StateCache._states"] == 0


def test_what_is_left_is_what_was_not_there_before():
    """A table of pending things that grew is told, with how much; one that is bounded by itself is not."""
    pending = PendingResults()
    pending._waiting["before"] = []
    watch = Watch(lambda: [pending])
    assert watch.report().left == {}
    pending._waiting["after"] = []
    pending.states.note("task", {})
    assert watch.report().left == {"PendingResults._waiting": 1}
    watch.stop()


def test_tables_of_pending_things_have_the_names_that_are_looked_for():
    """Each is found in a client of one of the transports, or in a bridge."""
    urls = [("amqp://127.0.0.1:1//", "rpc://"), ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/1")]
    clients = [
        TwistedCelery(create_app(*each), transport=transport, disconnect_at_shutdown=False)
        for each in urls
        for transport in ("auto", "threads")
    ]
    bridge = Bridge(
        Configuration.parse({"app": "unused"}),
        clients[0].app,
        clients[0]._reactor,
        clients[0],
        realm="realm1",
    )
    assert set(tables(bridge, *clients)) >= PENDING | set(KEPT)


def test_a_row_is_written_once(tmp_path):
    """A row is added, and replaced afterwards; what stands around the table stays."""
    document = tmp_path / "soak.md"
    begin, end = "<!-- make soak writes from here -->", "<!-- make soak writes to here -->"
    document.write_text(f"# Title\n\n{begin}\n{end}\n\nThe end.\n")
    trial = Trial("a fault", Size(seconds=2, rate=50), tmp_path)
    for results in (90, 97):
        trial.counts = Counts(100, results, Counter(ResultLost=100 - results), 0, 1, 2, 0.0123, 4.4)
        write_row(cells(trial), document)
    write_row(["another fault", *[""] * 8], document)
    assert row_names(document) == ["a fault", "another fault"]
    text = document.read_text()
    row = (
        "| a fault | 50 a second, 2 s | 100 | 97 | 3 `ResultLost`; 2 of them ran | 0 | 1 | 12 ms | + 4 MiB |"
    )
    assert row in text
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nThe end.\n")


def test_the_document_has_no_row_that_is_tried_no_more():
    """A trial that is renamed or taken out leaves no row behind."""
    assert set(row_names()) <= {*FAULTS, ENDURANCE}
