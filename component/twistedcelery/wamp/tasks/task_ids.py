"""Task ids by which bridges recognise each other's tasks.

The bridge that sends a task publishes what happens to it. The leader among the bridges reads of the
same task in Celery's event stream, and must leave it alone, without asking the others. So their ids
are UUIDs of version 8, the one for contents of one's own (RFC 9562), that end in a check value: it
follows from the random bits before it, from the realm and from the prefix, so that bridges which
publish elsewhere do not take them for theirs. They begin with a mark of the bridge that made them, which
alone knows all of its tasks. Celery's own ids are of version 4.
"""

from __future__ import annotations

import hashlib
import os
import uuid

__all__ = ["TaskIds"]

#: Bytes before the check value: the bridge's mark, 66 random bits, and those for version and variant.
_HEAD = 12

#: Bytes of the mark. It is random: two bridges have the same once in sixteen million times.
_MARK = 3

_VERSION, _VARIANT = 0x80, 0x80


class TaskIds:
    """The ids of the tasks that the bridges of one prefix in one realm send.

    :ivar own: the mark of this bridge, in hexadecimal digits
    """

    def __init__(self, realm: str, prefix: str) -> None:
        self._mark = os.urandom(_MARK)
        self.own = self._mark.hex()
        # Neither of them can hold the separator.
        self._space = f"{realm}\0{prefix}\0".encode()

    def new(self) -> str:
        """An id, as Celery writes them. It cannot be guessed."""
        head = bytearray(self._mark + os.urandom(_HEAD - _MARK))
        head[6] = head[6] & 0x0F | _VERSION
        head[8] = head[8] & 0x3F | _VARIANT
        return str(uuid.UUID(bytes=bytes(head) + self._check(head)))

    def made(self, task_id: str) -> bool:
        """Whether the id is one of these."""
        try:
            octets = uuid.UUID(task_id).bytes
        except ValueError:
            return False
        head, check = octets[:_HEAD], octets[_HEAD:]
        return head[6] & 0xF0 == _VERSION and check == self._check(head)

    def owner(self, task_id: str) -> str | None:
        """The mark of the bridge that made an id; ``None``: none of them did."""
        return uuid.UUID(task_id).hex[: 2 * _MARK] if self.made(task_id) else None

    def _check(self, head: bytes | bytearray) -> bytes:
        return hashlib.blake2b(self._space + head, digest_size=16 - _HEAD).digest()
