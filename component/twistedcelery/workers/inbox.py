"""Reads messages from a queue that the client has subscribed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.serialization import loads, prepare_accept_content
from twisted.logger import Logger

from twistedcelery.transports.decoding import limited_recursion
from twistedcelery.transports.interface import IncomingMessage

__all__ = ["Inbox"]


class Inbox:
    """Decodes what may be decoded, and drops the rest with a line in the log.

    :param accept: names of serialisers, or content types, as in ``accept_content``
    :param what: names a message in the log
    """

    _log = Logger()

    def __init__(self, accept: Any, what: str) -> None:
        self._accept = prepare_accept_content(accept)
        self._what = what

    def decode(self, message: IncomingMessage) -> Any:
        """:return: the message's payload, a mapping or a list; ``None`` when it is dropped"""
        try:
            with limited_recursion():
                payload = loads(
                    message.body, message.content_type, message.content_encoding, accept=self._accept
                )
        except Exception as error:
            # Also where the content type is not accepted. Serialisers are plug-ins: what they
            # raise for bad bytes is theirs to choose.
            self._log.warn(
                "{what} of type {type!r} is dropped: {error}",
                what=self._what,
                type=message.content_type,
                error=error,
            )
            return None
        if isinstance(payload, Mapping | list):
            return payload
        self._log.warn(
            "{what} is dropped: it is {kind}, not a mapping or a list",
            what=self._what,
            kind=type(payload).__name__,
        )
        return None
