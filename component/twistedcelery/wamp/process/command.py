"""Implements ``twistedcelery bridge``: the bridge as a process of its own."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.bridge import check
from twistedcelery.wamp.process.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["configuration", "run"]

_log = Logger()


def run(*, url: str, realm: str, config: Path | None, settings: Sequence[tuple[str, str]]) -> int:
    """Run a bridge until SIGINT or SIGTERM.

    :param url: the router's
    :param config: a file with the configuration, as a JSON object
    :param settings: keys and values that add to the file, or override it
    :return: the exit status
    """
    # Importing it installs it, which only a program may do.
    from twisted.internet import reactor

    every: Any = reactor
    try:
        extra = configuration(config, settings)
        check(extra)
        runner = Runner(every, url, realm, extra)
    except ConfigurationError as error:
        print(f"twistedcelery bridge: {error}", file=sys.stderr)  # noqa: T201  # for who typed the command
        return 1
    _log_to_stderr()
    # The bridge has a trigger of its own, which lets its calls end.
    every.addSystemEventTrigger("before", "shutdown", runner.stop)
    every.callWhenRunning(runner.start)
    _stop_at_signals(every, runner)
    every.run(installSignalHandlers=False)
    return 0


def _stop_at_signals(reactor: Any, runner: Runner) -> None:
    """Stop at the first SIGINT or SIGTERM, which takes up to ``drain_timeout``, and at the second one leave.

    Twisted's own handlers raise an error at the second one.
    """
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            runner.stop_draining()
            return
        stopping = True
        count = runner.open_calls
        if count:
            _log.info(
                "the bridge stops, and waits for {count} call{s} in flight. A second Ctrl-C leaves now.",
                count=count,
                s="" if count == 1 else "s",
            )
        reactor.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: reactor.callFromThread(stop))


def _log_to_stderr() -> None:
    # Their types do not declare the interfaces that they provide.
    observer: Any = textFileLogObserver(sys.stderr)
    level: Any = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    # Autobahn logs several lines for each connection that fails or ends. The reason is in the bridge's own.
    level.setLogLevelForNamespace("autobahn.twisted.websocket", LogLevel.critical)
    level.setLogLevelForNamespace("twistedcelery.wamp.session.CeleryBridge", LogLevel.error)
    level.setLogLevelForNamespace("twisted.internet.base", LogLevel.warn)
    filtered: Any = FilteringLogObserver(observer, [level])
    globalLogBeginner.beginLoggingTo([filtered], redirectStandardIO=False)


def configuration(path: Path | None, settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Combine a file and settings into the bridge's configuration.

    :param settings: a value that is no JSON is taken as text
    :raise ConfigurationError: if the file cannot be read, or holds no JSON object
    """
    extra: dict[str, Any] = {}
    if path is not None:
        try:
            extra = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from error
        if not isinstance(extra, dict):
            raise ConfigurationError(f"{path} holds no JSON object")
    for key, text in settings:
        try:
            extra[key] = json.loads(text)
        except ValueError:
            extra[key] = text
    return extra
