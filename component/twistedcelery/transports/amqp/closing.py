"""Works out which message RabbitMQ closed a channel for: it names no delivery tag.

RabbitMQ handles the messages of a channel in order. It has routed those before the one that it refuses,
and ignores those after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from twistedcelery.encoding.message import OutgoingMessage

__all__ = ["max_size", "suspects"]

_MAX_SIZE = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
_EXCHANGE = re.compile(r"exchange '([^']*)' in vhost")


def max_size(words: str) -> int | None:
    """The longest body that the broker takes, in bytes, where it has refused a longer one.

    :param words: what the broker said when it closed the channel
    """
    found = _MAX_SIZE.search(words)
    return int(found[1]) if found else None


def suspects(words: str, sent: Sequence[OutgoingMessage]) -> range:
    """The places of the first and the last message that may be the one.

    :param words: what the broker said when it closed the channel
    :param sent: the messages without a confirmation, in the order in which they were sent
    """
    limit = max_size(words)
    if limit is not None:
        # An earlier one of that size would have closed the channel before.
        found = [place for place, message in enumerate(sent) if len(message.body) > limit][:1]
    else:
        # An exchange or a permission may have gone while messages to it were under way: any of them.
        named = _EXCHANGE.search(words)
        exchange = named[1] if named else None
        names = {"", "amq.default"} if exchange == "amq.default" else {exchange}
        found = [place for place, message in enumerate(sent) if message.exchange in names]
    return range(found[0], found[-1] + 1) if found else range(len(sent))
