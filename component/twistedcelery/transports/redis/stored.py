"""Result keys and stored states, by Celery's own code."""

from __future__ import annotations

from typing import Any

from celery.app.backends import by_url
from celery.backends import base

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.decoding import ReplyDecoder

__all__ = ["StoredStates", "make_backend"]

#: What precedes a compressed state, before the name of its compression and a NUL. Celery 5.7 began with it.
_COMPRESSED: bytes | None = getattr(base, "COMPRESSED_PAYLOAD_MAGIC", None)


class StoredStates:
    """What an application's Redis result backend calls its keys, and how to read their values.

    :param app: the Celery application
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._decoder = ReplyDecoder(app)
        self._made: Any = None

    @property
    def pool(self) -> Any:
        """The redis-py connection pool that Celery would use."""
        return self._backend.client.connection_pool

    def key(self, task_id: str) -> bytes:
        """The key of a task's state, which is also the channel that it is published on.

        :raises ConfigurationError: the result backend cannot work as it is configured
        """
        key: bytes = self._backend.get_key_for_task(task_id)
        return key

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Decode a state; as `twistedcelery.transports.decoding.ReplyDecoder.decode`."""
        headers = {}
        if _COMPRESSED is not None and payload.startswith(_COMPRESSED):
            compression, _, payload = payload[len(_COMPRESSED) :].partition(b"\0")
            headers["compression"] = compression.decode("utf-8", "replace")
        made = self._backend
        return self._decoder.decode(payload, made.content_type, made.content_encoding, headers)

    @property
    def _backend(self) -> Any:
        # One of our own: other threads may be using the application's.
        if self._made is None:
            self._made = make_backend(self._app)
        return self._made


def make_backend(app: Any) -> Any:
    """Make another result backend like an application's. It connects when its client is used.

    :raises ConfigurationError: it cannot work as it is configured
    """
    try:
        cls, url = by_url(app.backend_cls or app.conf.result_backend, app.loader)
        return cls(app=app, url=url)
    except Exception as problem:
        # Celery and redis-py check their settings with errors of all kinds.
        raise ConfigurationError(f"result_backend cannot be used: {problem}") from problem
