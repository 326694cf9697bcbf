"""The ids by which bridges recognise each other's tasks."""

from __future__ import annotations

import uuid

from celery.utils import uuid as celery_uuid
from hypothesis import given
from hypothesis import strategies as st

from twistedcelery.wamp.task_ids import TaskIds

IDS = TaskIds("realm1", "celery")


def test_an_id_is_a_uuid_of_version_8():
    """It looks like Celery's own, and is unique."""
    ids = [IDS.new() for _ in range(1000)]
    assert len(set(ids)) == 1000
    for task_id in ids:
        parsed = uuid.UUID(task_id)
        assert (str(parsed), parsed.version, parsed.variant) == (task_id, 8, uuid.RFC_4122)


def test_bridges_know_their_ids():
    """Bridges of the same realm and prefix recognise an id, with and without dashes. Others do not."""
    for _ in range(100):
        task_id = IDS.new()
        assert TaskIds("realm1", "celery").made(task_id)
        assert IDS.made(uuid.UUID(task_id).hex)
        assert not TaskIds("realm1", "other").made(task_id)
        assert not TaskIds("realm2", "celery").made(task_id)
        assert not TaskIds("realm", "1celery").made(task_id)


def test_an_id_tells_its_bridge():
    """Any bridge can tell which bridge made an id. Other ids have no owner."""
    other = TaskIds("realm1", "celery")
    assert IDS.owner(other.new()) == other.own != IDS.own
    assert IDS.owner(uuid.UUID(IDS.new()).hex) == IDS.own
    assert IDS.owner(TaskIds("realm2", "celery").new()) is None
    assert IDS.owner("something else") is None


def test_celerys_ids_are_nobodys():
    """Celery's own ids are never taken for a bridge's."""
    assert not any(IDS.made(celery_uuid()) for _ in range(1000))


@given(st.text() | st.uuids().map(str))
def test_what_is_no_such_id(text):
    """Any text is accepted as a task id without an error."""
    assert not IDS.made(text)


def test_every_bit_counts():
    """An id that differs in a single bit is not recognised."""
    task_id = uuid.UUID(IDS.new())
    assert not any(IDS.made(str(uuid.UUID(int=task_id.int ^ 1 << bit))) for bit in range(128))
