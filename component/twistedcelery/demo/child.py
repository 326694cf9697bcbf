"""Runs child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Child", "stop_all"]

_PR_SET_PDEATHSIG = 1

#: Lines of a log to show when its process fails.
_TAIL = 30


class Child:
    """A running process in a process group of its own, with its output in a file.

    A Ctrl-C in the terminal does not reach another group, so the parent decides when and how the child
    ends. If the parent is killed, Linux sends the child its stop signal.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start it.

        :param name: what messages call it
        :param log: the file for its output
        :param env: its whole environment
        :param stop_signal: ends it and everything it started
        """
        self.name = name
        self._log = log
        self._stop_signal = stop_signal
        parent = os.getpid()
        # Look it up here: nothing may be loaded between fork and exec.
        prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

        def die_with_parent() -> None:
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, stop_signal)
                if os.getppid() != parent:  # the parent died before the line above
                    os._exit(1)

        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # there are no threads yet
            )

    @property
    def status(self) -> int | None:
        """``None`` while it runs; then its exit status, or minus the number of the signal that ended it."""
        return self._process.poll()

    def tail(self) -> str:
        """The end of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])

    def ask_to_stop(self) -> None:
        """Send the stop signal. Does nothing once it has ended."""
        self._process.send_signal(self._stop_signal)

    def kill(self) -> None:
        """Kill what is left of its process group, and reap it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the whole group has ended already
        self._process.wait()


def stop_all(children: Sequence[Child], timeout: float) -> None:
    """Stop all children at once, and block until they have ended.

    :param timeout: seconds until those that have not ended are killed
    """
    deadline = time.monotonic() + timeout
    for child in children:
        child.ask_to_stop()
    while time.monotonic() < deadline and any(child.status is None for child in children):
        time.sleep(0.02)
    for child in children:
        child.kill()
