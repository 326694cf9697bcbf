"""Exceptions and their texts, in words that every WAMP serialiser carries."""

from __future__ import annotations

from celery.utils.serialization import UnpickleableExceptionWrapper

__all__ = ["describe_exception", "plain_text"]

#: Longer messages of exceptions are cut: they travel in errors and events, never alone.
_MAX_EXCEPTION_TEXT = 16 * 1024


def describe_exception(error: BaseException) -> dict[str, str]:
    """An exception as plain text. Never raises, whatever the exception's class does."""
    if isinstance(error, UnpickleableExceptionWrapper):
        # Celery wraps what it cannot rebuild; the wrapper tells what it stands for.
        exc_type, exc_module = error.exc_cls_name, error.exc_module
    else:
        exc_type, exc_module = type(error).__name__, type(error).__module__
    try:
        message = str(error)
    except Exception as broken:
        # A class of the user's, rebuilt from a message: its __str__ may rely on what is not there.
        message = f"<no message: {type(broken).__name__} in __str__>"
    return {
        "exc_type": plain_text(exc_type),
        "exc_module": plain_text(exc_module),
        "exc_message": plain_text(message),
    }


def plain_text(value: object) -> str:
    """Text that can always be sent, cut to a bearable length."""
    plain = str(value)[:_MAX_EXCEPTION_TEXT].encode(errors="backslashreplace").decode()
    return "\\x00" + plain[1:] if plain.startswith("\0") else plain
