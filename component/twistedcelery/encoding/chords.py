"""What sending a chord asks of the result backend, found out without asking it.

Celery's canvas calls its backend while it sends: may there be chords at all, remember this one,
this is its size. Which of these mean I/O is up to the backend's class. What does is noted down,
for `twistedcelery.transports.interface.ResultStore.prepare`; the rest is Celery's own code, among
it the fallback that polls with the task ``celery.chord_unlock``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend

from twistedcelery.encoding.app_view import OfflineBackend, backend_class
from twistedcelery.encoding.message import Preparation
from twistedcelery.errors import UnsupportedByBackend

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["ChordBackend"]


class ChordBackend(OfflineBackend):
    """Stands in for the real result backend while a canvas is encoded.

    :param app: the configured application
    """

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self._real = backend_class(app)
        self._noted: list[Preparation] = []

    @contextmanager
    def noting(self) -> Iterator[list[Preparation]]:
        """Note what has to be done in the list given, and nowhere else."""
        outer, self._noted = self._noted, []
        try:
            yield self._noted
        finally:
            self._noted = outer

    def use(self, view: Celery) -> None:
        """Send what chords need through a view, whose backend this is."""
        self.app = view

    # Called by Celery's canvas

    def ensure_chords_allowed(self) -> None:
        """:raises UnsupportedByBackend: with Celery's own words"""
        try:
            self._real.ensure_chords_allowed(self)
        except NotImplementedError as error:
            raise UnsupportedByBackend(str(error)) from error

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        if self._real.set_chord_size is not Backend.set_chord_size:
            self._noted.append(Preparation("set_chord_size", (group_id, chord_size)))

    def apply_chord(self, header_result_args: tuple[Any, ...], body: Any, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        # Backends that count up have apply_chord replaced as they are made.
        if self._real.apply_chord is not Backend.apply_chord or getattr(self._real, "implements_incr", False):
            group_id, results = header_result_args
            self._noted.append(Preparation("apply_chord", ((group_id, list(results)), body), kwargs))
        else:
            super().apply_chord(header_result_args, body, **kwargs)
