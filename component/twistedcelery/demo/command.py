"""Starts the demo, waits for its first result, and runs until it is stopped."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from twistedcelery.demo import files
from twistedcelery.demo.child import Child, stop_all
from twistedcelery.demo.errors import DemoError

__all__ = ["run"]

#: What stops the demo.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds that the children get to stop by themselves.
_STOP_TIMEOUT = 10.0


def run(*, broker: str | None, backend: str | None, port: int) -> int:
    """Run the demo until SIGINT, SIGTERM or SIGHUP.

    :param broker: URL of a Celery broker; files in a temporary directory unless given
    :param backend: URL of a Celery result backend; files in the same directory unless given
    :param port: where the router listens, on 127.0.0.1
    :return: the exit status
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        _run(broker, backend, port)
    except KeyboardInterrupt:
        return 0
    except DemoError as error:
        print(f"twistedcelery demo: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(broker: str | None, backend: str | None, port: int) -> None:
    began = time.monotonic()
    root = files.find()
    _check_port(port)
    with tempfile.TemporaryDirectory(prefix="twistedcelery-demo-") as temporary:
        directory = Path(temporary)
        children: list[Child] = []
        try:
            _start(children, root, directory, broker, backend, port)
            print(f"Starting router, bridge and worker; their logs are in {directory}", flush=True)
            # Imported late: while it loads, the children start. Signals wait meanwhile, since an import may
            # catch what they raise.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                from twisted.internet import reactor

                from twistedcelery.demo.watch import watch
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            watch(reactor, children, port, began)
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the demo is stopping already
            stop_all(children, _STOP_TIMEOUT)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the router will
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            state = "is in use" if in_use else f"cannot be used ({error.strerror})"
            raise DemoError(
                f"port {port} on 127.0.0.1 {state}: choose another with --port N, or make demo PORT=N"
            ) from error


def _start(
    children: list[Child], root: Path, directory: Path, broker: str | None, backend: str | None, port: int
) -> None:
    config = files.node_config(root, port)
    node = directory / "node"
    node.mkdir()
    (node / "config.json").write_text(json.dumps(config, indent=4))
    env = _environment(root, directory, config, broker, backend)
    children.append(
        Child(
            "router",
            [_program("crossbar"), "start", "--cbdir", str(node), "--color", "false"],
            log=directory / "router.log",
            env=env,
            cwd=directory,
        )
    )
    children.append(
        Child(
            "worker",
            # With a pool of threads the worker is one process. It sends events, so that the tasks of other
            # clients are published too.
            [
                *(sys.executable, "-m", "celery", "-A", "my_app", "worker"),
                *("--pool=threads", "--loglevel=INFO", "--task-events"),
            ],
            log=directory / "worker.log",
            env=env,
            cwd=directory,
            # After any other signal it waits for its tasks, and for its next poll of the broker.
            stop_signal=signal.SIGKILL,
        )
    )


def _environment(
    root: Path, directory: Path, config: dict[str, Any], broker: str | None, backend: str | None
) -> dict[str, str]:
    env = dict(os.environ)
    paths = [str(root / "demo"), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    env["MY_APP_DATA"] = str(directory / "data")
    for variable, url in (("CELERY_BROKER_URL", broker), ("CELERY_RESULT_BACKEND", backend)):
        env.pop(variable, None)
        if url:
            env[variable] = url
    for variable in files.secret_variables(config):
        if not env.get(variable):
            env[variable] = secrets.token_urlsafe(32)
    return env


def _program(name: str) -> str:
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise DemoError(f"the program {name!r} is not installed: pip install 'twistedcelery[crossbar]'")
    return path
