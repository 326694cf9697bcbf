"""Reads what a result backend has stored for many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pickle import UnpicklingError
from typing import Any

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import SecurityError
from kombu.exceptions import ContentDisallowed, SerializationError

from twistedcelery.transports.decoding import Undecodable, check_meta

__all__ = ["Snapshot", "read_snapshots"]

#: What decoding raises, where a backend does it together with fetching.
_DECODING_ERRORS = (
    ContentDisallowed,
    SerializationError,
    SecurityError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    UnpicklingError,
)


class Snapshot:
    """The stored state of one task at one moment.

    :ivar fingerprint: equal for equal states, and cheap to compare
    """

    __slots__ = ("_decode", "fingerprint", "task_id")

    def __init__(self, task_id: str, fingerprint: Any, decode: Callable[[], Any]) -> None:
        self.task_id = task_id
        self.fingerprint = fingerprint
        self._decode = decode

    def meta(self) -> Mapping[str, Any]:
        """The result meta. Raises whatever decoding raises: a file may be half written."""
        return check_meta(self._decode())


def read_snapshots(backend: Any, task_ids: Sequence[str]) -> Iterator[Snapshot]:
    """Read the states of those tasks that have one. This blocks.

    :param backend: a Celery result backend; what it raises when it cannot be reached comes through
    """
    if isinstance(backend, BaseKeyValueStoreBackend):
        for task_id, payload in zip(task_ids, _payloads(backend, task_ids), strict=True):
            if payload:
                yield Snapshot(task_id, payload, partial(backend.decode_result, payload))
        return
    for task_id in task_ids:
        try:
            meta = backend.get_task_meta(task_id, cache=False)
        except _DECODING_ERRORS as error:
            yield Snapshot(task_id, repr(error), partial(Undecodable, error))
            continue
        if meta.get("status") != states.PENDING:
            # Exceptions are made anew by each read, and compare unequal.
            yield Snapshot(task_id, (meta.get("status"), repr(meta.get("result"))), partial(dict, meta))


def _payloads(backend: Any, task_ids: Sequence[str]) -> Iterator[Any]:
    keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
    try:
        found = backend.mget(keys)
    except NotImplementedError:
        found = map(backend.get, keys)
    if isinstance(found, Mapping):
        # Some clients answer with a mapping, and leave out what they do not have.
        return map(found.get, keys)
    return iter(found)
