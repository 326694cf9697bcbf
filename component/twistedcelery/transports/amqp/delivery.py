"""What a consumer receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Delivery"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a consumer received; the fields are AMQP's."""

    body: bytes
    content_type: str | None
    content_encoding: str | None
    correlation_id: str | None
    headers: Mapping[str, Any]
    delivery_tag: int
