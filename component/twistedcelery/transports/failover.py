"""Turns kombu connections to the next broker of a failover list."""

from __future__ import annotations

from typing import Any

__all__ = ["switch_to_next"]


def switch_to_next(connection: Any) -> int:
    """Turn a kombu connection, which is not connected, to the next URL of its failover list.

    With one URL there is nothing to turn to.

    :return: how many URLs there are
    """
    if connection.cycle is not None:
        # Where a URL says nothing, kombu would keep what the URL before it said.
        connection.port = None
        connection.virtual_host = ""
        connection.maybe_switch_next()
    return max(1, len(connection.alt))
