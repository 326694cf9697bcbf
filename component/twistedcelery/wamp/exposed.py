"""Which tasks of an application the bridge exposes, and what it knows of each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.task import extract_exec_options
from celery.app.utils import find_app

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.uris import Uris, why_not_a_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from celery.app.task import Task

    from twistedcelery.wamp.config import Configuration

__all__ = ["ExposedTask", "exposed_tasks", "load_application"]


@dataclass(frozen=True, slots=True)
class ExposedTask:
    """One task that callers may call.

    :ivar name: the task's name
    :ivar uri: its procedure; ``None`` for a name that fits in no URI, which only
        ``celery_api.submit`` can call
    :ivar reason: why it has no URI
    :ivar task: the task as the application registered it
    """

    name: str
    uri: str | None
    reason: str | None
    task: Task

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Celery's own check, which ``apply_async`` makes before it sends.

        :raise TypeError: where the arguments do not fit the task's signature
        """
        # A task class whose run() Celery did not wrap has no such check.
        check = getattr(self.task, "__header__", None)
        if self.task.typing and check is not None:
            check(*args, **kwargs)

    def send_options(self) -> dict[str, Any]:
        """The options the task was declared with, as ``apply_async`` passes them to ``send_task``."""
        declared = {key: value for key, value in extract_exec_options(self.task).items() if value is not None}
        return {"ignore_result": self.task.ignore_result, **declared, "task_type": self.task}

    def describe(self) -> dict[str, Any]:
        """What a caller needs to know: ``name``, ``uri``, ``signature`` and ``doc``, as text or ``None``.

        ``reason`` is there for a task without a URI.
        """
        described: dict[str, Any] = {
            "name": self.name,
            "uri": self.uri,
            "signature": self._signature(),
            "doc": inspect.getdoc(self.task.run),
        }
        if self.reason is not None:
            described["reason"] = self.reason
        return described

    def _signature(self) -> str | None:
        try:
            return str(inspect.signature(self.task.run))
        except (TypeError, ValueError):
            # Something callable that is no Python function.
            return None


def load_application(name: str) -> Celery:
    """Import an application with all its tasks.

    :param name: as ``celery -A`` takes it
    :raise ConfigurationError: where it cannot be imported, or is something else
    """
    try:
        app = find_app(name)
        if isinstance(app, Celery):
            app.loader.import_default_modules()
            app.finalize()
    except Exception as error:
        # Importing runs the user's code, so anything can come out of it.
        raise ConfigurationError(
            f"configuration key 'app': the Celery application {name!r:.80} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(app, Celery):
        raise ConfigurationError(
            f"configuration key 'app': found {name!r:.80}, which is a {type(app).__name__}; "
            "accepted is a Celery application, as `celery -A` takes it"
        )
    return app


def exposed_tasks(app: Celery, config: Configuration, uris: Uris) -> dict[str, ExposedTask]:
    """The tasks that ``include`` and ``exclude`` leave, by name, in the order of their names."""
    exposed = {}
    for name, task in sorted(app.tasks.items()):
        if _matches(name, config.include) and not _matches(name, config.exclude):
            uri = uris.task(name)
            reason = why_not_a_uri(uri)
            exposed[name] = ExposedTask(name, None if reason else uri, reason, task)
    return exposed


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
