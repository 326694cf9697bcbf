"""Provides Celery's own Redis result backend, for its keys and payloads, without a connection."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery.app.backends import by_url
from celery.backends import base

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.decoding import MAX_REPLY_BYTES, ReplyDecoder

__all__ = ["OfflineRedisBackend"]

#: What precedes a compressed state, before the name of its compression and a NUL. Celery 5.7 began with it.
_COMPRESSED: bytes | None = getattr(base, "COMPRESSED_PAYLOAD_MAGIC", None)


class OfflineRedisBackend:
    """An application's Redis result backend, never connected, which decodes as `ReplyDecoder` does.

    :param app: the Celery application
    :param client: takes the place of its redis-py client
    :param max_bytes: what a state may have
    """

    def __init__(self, app: Any, client: Any = None, max_bytes: int = MAX_REPLY_BYTES) -> None:
        self._app = app
        self._client = client
        self._decoder = ReplyDecoder(app, max_bytes)

    @cached_property
    def celery(self) -> Any:
        """Celery's backend. It is not the application's, which other threads may be using.

        :raises ConfigurationError: it cannot work as it is configured
        """
        try:
            cls, url = by_url(self._app.backend_cls or self._app.conf.result_backend, self._app.loader)
            made = cls(app=self._app, url=url)
        except Exception as problem:
            # Celery and redis-py check their settings with errors of all kinds.
            raise ConfigurationError(f"result_backend cannot be used: {problem}") from problem
        made.always_retry = False
        made.decode_result = self.decode
        if self._client is not None:
            made.client = self._client
        return made

    @property
    def pool(self) -> Any:
        """The redis-py connection pool that Celery would use."""
        return self.celery.client.connection_pool

    def key(self, task_id: str) -> bytes:
        """The key of a task's state, which is also the channel that it is published on.

        :raises ConfigurationError: the result backend cannot work as it is configured
        """
        key: bytes = self.celery.get_key_for_task(task_id)
        return key

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Decode a state; as `twistedcelery.transports.decoding.ReplyDecoder.decode`."""
        headers = {}
        if _COMPRESSED is not None and payload.startswith(_COMPRESSED):
            compression, _, payload = payload[len(_COMPRESSED) :].partition(b"\0")
            headers["compression"] = compression.decode("utf-8", "replace")
        made = self.celery
        return self._decoder.decode(payload, made.content_type, made.content_encoding, headers)
