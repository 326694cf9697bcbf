"""Reads messages from a queue that the client has subscribed to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kombu.serialization import loads, prepare_accept_content
from twisted.logger import Logger

from twistedcelery._logging import CountedWarnings
from twistedcelery.transports.decoding import limited_recursion
from twistedcelery.transports.interface import IncomingMessage

__all__ = ["Inbox"]


class Inbox:
    """Decodes what may be decoded, and drops the rest with a line in the log, one a minute.

    :param accept: names of serialisers, or content types, as in ``accept_content``
    :param what: names a message in the log
    :param seconds: tells the time, as a reactor's ``seconds`` does
    """

    _log = Logger()

    def __init__(self, accept: Any, what: str, seconds: Callable[[], float]) -> None:
        self._accept = prepare_accept_content(accept)
        self._dropped = f"{what} is dropped"
        self._warnings = CountedWarnings(self._log, seconds)

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
            self._warnings.warn(self._dropped, f"of type {message.content_type!r}: {error}")
            return None
        if isinstance(payload, Mapping | list):
            return payload
        self._warnings.warn(self._dropped, f"it is {type(payload).__name__}, not a mapping or a list")
        return None
