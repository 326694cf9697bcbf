"""Makes task ids by which bridges recognise each other's tasks.

The bridge that sends a task publishes its events. The leader among the bridges sees the same task in
Celery's event stream and must skip it, without asking the others. So a bridge's ids are UUIDs of version
8, the one for custom contents (RFC 9562): the mark of the bridge, random bits, and a check value. The check
value is a hash of the rest, the realm and the prefix, so that bridges of other realms and prefixes do not
recognise the id. Celery's own ids are of version 4.
"""

from __future__ import annotations

import hashlib
import os
import uuid

__all__ = ["TaskIds"]

#: Bytes before the check value: the bridge's mark, 66 random bits, and those for version and variant.
_HEAD = 12

#: Bytes of the mark. It is random: the chance that two bridges share it is one in sixteen million.
_MARK = 3

_VERSION, _VARIANT = 0x80, 0x80


class TaskIds:
    """The ids of the tasks that the bridges of one prefix in one realm send.

    :ivar own: the mark of this bridge, in hexadecimal digits
    """

    def __init__(self, realm: str, prefix: str) -> None:
        self._mark = os.urandom(_MARK)
        self.own = self._mark.hex()
        # Neither can contain the separator.
        self._space = f"{realm}\0{prefix}\0".encode()

    def new(self) -> str:
        """An id, as Celery writes them. It cannot be guessed."""
        head = bytearray(self._mark + os.urandom(_HEAD - _MARK))
        head[6] = head[6] & 0x0F | _VERSION
        head[8] = head[8] & 0x3F | _VARIANT
        return str(uuid.UUID(bytes=bytes(head) + self._check(head)))

    def made(self, task_id: str) -> bool:
        """Whether one of these bridges made the id."""
        try:
            octets = uuid.UUID(task_id).bytes
        except ValueError:
            return False
        head, check = octets[:_HEAD], octets[_HEAD:]
        return head[6] & 0xF0 == _VERSION and check == self._check(head)

    def owner(self, task_id: str) -> str | None:
        """The mark of the bridge that made an id; ``None`` if none of them did."""
        return uuid.UUID(task_id).hex[: 2 * _MARK] if self.made(task_id) else None

    def _check(self, head: bytes | bytearray) -> bytes:
        return hashlib.blake2b(self._space + head, digest_size=16 - _HEAD).digest()
