"""A message's properties and headers in, bytes for AMQP 0-9-1 out: py-amqp's own encoding.

pika cannot encode floats, which time limits and users' headers have; and what Celery's own client
puts on the wire is what py-amqp makes of it.

What RabbitMQ answers by closing the channel or the connection is refused here: it would cost
every other message on that channel its confirmation.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from amqp import Message
from celery.app.amqp import AMQP

from twistedcelery.message import OutgoingMessage

__all__ = ["encode_properties"]

#: What AMQP 0-9-1 has but for the headers, in py-amqp's names.
_PROPERTY_NAMES = {name for name, _ in Message.PROPERTIES} - {"application_headers"}

#: Options that Celery puts into a message's body or headers, and leaves among its properties as
#: well; py-amqp drops what it does not know.
_USED_BY_CELERY = {
    name for make in (AMQP.as_task_v1, AMQP.as_task_v2) for name in inspect.signature(make).parameters
}

#: RabbitMQ's longest message TTL, in milliseconds: 49.7 days.
_MAX_EXPIRATION = 2**32 - 1


def encode_properties(message: OutgoingMessage, userid: str) -> bytes:
    """Encode the property flags and the property list of a content header.

    :param userid: who is logged in; RabbitMQ accepts no other ``user_id``
    :raises Exception: where there is no AMQP form, or RabbitMQ would not accept it
    """
    properties, headers = message.properties, message.headers
    unknown = properties.keys() - _PROPERTY_NAMES - _USED_BY_CELERY
    if unknown:
        raise ValueError(f"AMQP has no property {', '.join(sorted(unknown))}")
    if int(properties.get("expiration") or 0) > _MAX_EXPIRATION:
        raise ValueError("expires is further away than RabbitMQ's longest TTL, 49.7 days")
    if properties.get("user_id") not in (None, userid):
        raise ValueError(f"user_id must be that of the connection, {userid!r}")
    if not _finite(headers):
        raise ValueError("headers cannot have NaN or Infinity")
    for name in ("CC", "BCC"):
        if name in headers and not _is_list_of_text(headers[name]):
            raise ValueError(f"the header {name} must be a list of routing keys")
    message_of_amqp = Message(application_headers=headers, **properties)
    # py-amqp has no public name for this; kombu pins its major version.
    encoded: bytes = message_of_amqp._serialize_properties()  # noqa: SLF001  # see above
    return encoded


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return True


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
