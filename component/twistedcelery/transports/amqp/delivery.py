"""Defines a message that a consumer receives over AMQP."""

from __future__ import annotations

from dataclasses import dataclass

from twistedcelery.transports.interface import IncomingMessage

__all__ = ["Delivery"]


@dataclass(frozen=True, slots=True)
class Delivery(IncomingMessage):
    """A message that a consumer received; the fields are AMQP's."""

    body: bytes
    correlation_id: str | None
    delivery_tag: int
