"""The table of event kinds, and what follows from a row."""

from __future__ import annotations

import pytest

from tests.unit.wamp.test_feed import FOREIGN, leader
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.event_kinds import BY_CELERY_TYPE, EVENT_KINDS, SENT, Ends


@pytest.mark.parametrize("name", EVENT_KINDS)
def test_a_row_is_enough(name, setup):
    """Every kind can be configured, and Celery's event of that type reaches the topic of that name."""
    one, stream = leader(setup, events=[name])
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send(EVENT_KINDS[name].celery_type, FOREIGN)
    assert one.session.topics() == [f"app.add.{name}"]


def test_the_table_is_consistent():
    """Types are unique, and what ends an attempt ranks above everything within it."""
    kinds = EVENT_KINDS.values()
    assert len(BY_CELERY_TYPE) == len(EVENT_KINDS)
    within = [kind.rank for kind in kinds if kind.ends is Ends.NOTHING]
    assert min(within) == SENT.rank
    assert all(kind.rank > max(within) for kind in kinds if kind.ends is not Ends.NOTHING)
    defaults = {kind.name for kind in kinds if kind.is_default}
    assert Configuration.parse({"app": "a"}, {}).events == defaults


@pytest.mark.parametrize(("requeue", "final"), [(True, False), (False, True)])
def test_a_rejected_task_may_run_again(requeue, final):
    """The event's ``requeue`` says whether an attempt or the task has ended."""
    kind, details = EVENT_KINDS["rejected"], {"requeue": requeue}
    assert (kind.is_final(details), kind.is_retry(details)) == (final, not final)
