"""Questions about waiting calls without the usual waiting."""

from __future__ import annotations

import pytest

from twistedcelery.calls import lost

__all__ = ["make_impatient"]


def make_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients ask what became of their calls after a second, and each second."""
    for name in ("PATIENCE", "EVERY", "CONFIRM_AFTER", "ANSWER_TIME"):
        monkeypatch.setattr(lost, name, 1.0)
