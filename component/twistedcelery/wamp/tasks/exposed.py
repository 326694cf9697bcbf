"""Holds the tasks that the bridge exposes, and what it knows of each."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import celery
import kombu
from celery import Celery
from celery.app.task import extract_exec_options
from celery.app.utils import find_app

import twistedcelery
from twistedcelery import TwistedCelery
from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.uris import Uris, why_not_a_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery.app.task import Task

    from twistedcelery.wamp.config import Configuration

__all__ = ["ExposedTask", "ExposedTasks", "load_application"]

_FILES = (importlib.__file__, kombu.__file__, celery.__file__, twistedcelery.__file__)
#: The folders of those who import an application: no line of theirs says what is wrong with it.
_IMPORTERS = [str(Path(file).parent) for file in _FILES if file]


@dataclass(frozen=True)
class ExposedTask:
    """One task that callers may call.

    :ivar name: the task's name
    :ivar uri: its procedure; ``None`` for a name that makes no URI, which only ``celery_api.submit`` can call
    :ivar reason: why it has no URI
    :ivar task: the task as the application registered it; ``None`` for one that only workers have
    :ivar ignores_result: whether workers announced such a task with ``ignore_result``
    """

    name: str
    uri: str | None
    reason: str | None
    task: Task | None
    ignores_result: bool = False

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check arguments as ``apply_async`` does.

        The arguments of a task that only workers have are checked by the worker.

        :raise TypeError: if the arguments do not fit the task's signature
        """
        # A task class whose run() Celery did not wrap has no such check.
        check = getattr(self.task, "__header__", None)
        if self.task is not None and self.task.typing and check is not None:
            check(*args, **kwargs)

    def send_options(self) -> dict[str, Any]:
        """The options the task was declared with, as ``apply_async`` passes them to ``send_task``."""
        if self.task is None:
            return {"ignore_result": True} if self.ignores_result else {}
        declared = {key: value for key, value in extract_exec_options(self.task).items() if value is not None}
        return {"ignore_result": self.task.ignore_result, **declared, "task_type": self.task}

    @cached_property
    def sends_its_own_way(self) -> bool:
        """As `twistedcelery.TwistedCelery.sends_its_own_way`."""
        return self.task is not None and TwistedCelery.sends_its_own_way(self.task)

    def describe(self) -> dict[str, Any]:
        """Describe the task to callers: ``name``, ``uri``, ``signature`` and ``doc``, as text or ``None``.

        A task without a URI has a ``reason``. Workers announce no signature and no doc.
        """
        return dict(self._description)

    @cached_property
    def _description(self) -> dict[str, Any]:
        # Inspecting thousands of functions takes long, so it is done once.
        described: dict[str, Any] = {
            "name": self.name,
            "uri": self.uri,
            "signature": self._signature(),
            "doc": None if self.task is None else inspect.getdoc(self.task.run),
        }
        if self.reason is not None:
            described["reason"] = self.reason
        return described

    def _signature(self) -> str | None:
        if self.task is None:
            return None
        try:
            return str(inspect.signature(self.task.run))
        except (TypeError, ValueError):
            # A callable that is no Python function.
            return None


def load_application(name: str | None) -> Celery:
    """Import an application with all its tasks.

    :param name: as ``celery -A`` takes it; ``None``: one without tasks, which Celery configures from
        ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` in the environment
    :raise ConfigurationError: if it cannot be imported, is something else, or has settings that cannot work
    """
    app = Celery("twistedcelery", set_as_current=False) if name is None else _imported(name)
    TwistedCelery.check(app)
    return app


def _imported(name: str) -> Celery:
    try:
        app = find_app(name)
        if isinstance(app, Celery):
            app.loader.import_default_modules()
            app.finalize()
    except Exception as error:
        # Importing runs the user's code, which can raise anything.
        raise ConfigurationError(
            f"configuration key 'app': the Celery application {name!r:.80} cannot be imported: "
            f"{type(error).__name__}: {error}{_where(error)}"
        ) from error
    if not isinstance(app, Celery):
        raise ConfigurationError(
            f"configuration key 'app': found {name!r:.80}, which is a {type(app).__name__}; "
            "accepted is a Celery application, as `celery -A` takes it"
        )
    return app


def _where(error: Exception) -> str:
    """Say which line failed, or in which folders a module was looked for."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib")]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).exists() and not _is_in(frame.filename, *_IMPORTERS)
    ]
    # The user's own line, where there is one, rather than that of a library that it called.
    users = [frame for frame in frames if not _is_in(frame.filename, *libraries)]
    for frame in (users or frames)[-1:]:
        return f" ({frame.filename}, line {frame.lineno}: {frame.line})"
    if not isinstance(error, ModuleNotFoundError):
        return ""
    # Python's own folders are no news.
    folders = dict.fromkeys(str(Path(entry).resolve()) for entry in ("", *sys.path))
    listed = [folder for folder in folders if not _is_in(folder, sys.prefix, sys.base_prefix)]
    return f"; it was looked for in {', '.join(listed)}, and among the installed packages"


def _is_in(path: str, *folders: str) -> bool:
    own = Path(path).resolve()
    return any(own.is_relative_to(Path(folder).resolve()) for folder in folders)


class ExposedTasks(Mapping[str, ExposedTask]):
    """The exposed tasks, by name: the application's, and those that workers announce.

    :param changed: called with each task that is exposed from now on, or (``False``) no longer
    """

    def __init__(
        self,
        app: Celery,
        config: Configuration,
        uris: Uris,
        changed: Callable[[ExposedTask, bool], None] = lambda _task, _exposed: None,
    ) -> None:
        self._config = config
        self._uris = uris
        self._changed = changed
        registered = app.tasks.items() if config.discover != "workers" else ()
        self._tasks = {
            name: self._make(name, task) for name, task in sorted(registered) if config.exposes(name)
        }

    def __getitem__(self, name: str) -> ExposedTask:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)

    def announced(self, name: str, ignores_result: bool | None) -> None:
        """Add a task that workers have, or (``None``) no longer have. The application's own tasks stay."""
        known = self._tasks.get(name)
        if not self._config.exposes(name) or (known is not None and known.task is not None):
            return
        if ignores_result is not None:
            task = self._tasks[name] = self._make(name, None, ignores_result)
            if known is None:
                self._changed(task, True)
        elif known is not None:
            del self._tasks[name]
            self._changed(known, False)

    def _make(self, name: str, task: Task | None, ignores_result: bool = False) -> ExposedTask:
        uri = self._uris.task(name)
        reason = why_not_a_uri(uri)
        return ExposedTask(name, None if reason else uri, reason, task, ignores_result)
