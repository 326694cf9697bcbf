"""The demo's own error."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """The demo cannot run. Its message is what the user reads."""
