"""A process under test: started, waited for, stopped, with its output kept."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import guardian

__all__ = ["ROOT", "SOURCES", "Process", "kill_all_in", "python_program", "wait_until"]

#: The project's root directory.
ROOT = Path(__file__).resolve().parents[2]
#: Where the project's packages are imported from; the same as ``pythonpath`` in ``pyproject.toml``.
SOURCES = [str(ROOT / folder) for folder in ("component", "demo", ".")]


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Poll a condition until it holds. It blocks: not for the reactor's thread while a test runs.

    :param timeout: seconds
    :param what: completes "timed out waiting until ..."
    :raises TimeoutError: when the condition did not hold in time
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {timeout} s waiting until {what}")
        time.sleep(0.02)


def python_program(name: str) -> str:
    """The path of a console script of the running virtual environment."""
    return str(Path(sys.executable).with_name(name))


def kill_all_in(directory: Path) -> None:
    """Kill every `Process` whose report lies below a directory, whoever started it."""
    for report in directory.glob("**/*.guardian.json"):
        facts = json.loads(report.read_text())
        if "left_behind" in facts:
            continue  # it has ended
        try:
            guardian_fd = os.pidfd_open(facts["guardian"])
        except ProcessLookupError:
            continue  # it ended while we looked
        try:
            signal.pidfd_send_signal(guardian_fd, signal.SIGTERM)
            select.select([guardian_fd], [], [], 30)
        finally:
            os.close(guardian_fd)


class Process:
    """One process and everything it starts. Dies with its owner, whatever happens to that one.

    Its methods block; in a test whose reactor must go on, call them with ``deferToThread``.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        owner: int | None = None,
    ) -> None:
        """Describe a process; `start` runs it.

        :param directory: where the log and the guardian's report go
        :param name: the stem of their file names
        :param env: variables added to those of this process
        :param owner: the process this one must not outlive; this process unless given
        """
        self.log = directory / f"{name}.log"
        self._report = directory / f"{name}.guardian.json"
        self._command = list(command)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._cwd = cwd
        self._owner = os.getpid() if owner is None else owner
        self._guardian: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it has a process id. A process that ended can be started again."""
        assert not self.running, f"{self.log.stem} is running already"
        self._report.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._guardian = subprocess.Popen(
                # Isolated and without site-packages: it needs neither, and starts in 20 ms.
                [
                    *(sys.executable, "-I", "-S", guardian.__file__),
                    *(str(self._owner), str(self._report), *self._command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        self.wait_until(self._report.exists, timeout=30, what="it has started")

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._guardian is not None and self._guardian.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the command itself."""
        pid: int = self._facts()["pid"]
        return pid

    @property
    def returncode(self) -> int | None:
        """As a shell gives it: 128 + N when signal N ended it. ``None`` while it runs."""
        return None if self._guardian is None else self._guardian.poll()

    @property
    def left_behind(self) -> list[str]:
        """The command lines of what was still running when the command itself had ended."""
        assert self._guardian is not None, "it was never started"
        self._guardian.wait(timeout=30)
        left_behind: list[str] = self._facts()["left_behind"]
        return left_behind

    @property
    def descendants(self) -> list[int]:
        """The ids of the processes that it started, directly or not."""
        return guardian.descendants(self.pid)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._report.read_text())
        return facts

    def output(self) -> str:
        """Everything it has printed so far, over all its starts."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Poll a condition; fail at once when the process ends, and show its last words.

        :raises AssertionError: with the end of the log
        """

        def holds() -> bool:
            # Asked in this order, a process that did its work and ended is no failure.
            ended = not self.running
            if condition():
                return True
            if ended:
                raise AssertionError(
                    f"{self.log.stem} ended with {self.returncode} before {what}:\n{self._last_words()}"
                )
            return False

        try:
            wait_until(holds, timeout=timeout, what=what)
        except TimeoutError as error:
            raise AssertionError(f"{self.log.stem}: {error}\n{self._last_words()}") from error

    def wait_for_output(self, text: str, *, timeout: float = 30) -> None:
        """Wait until it has printed this text."""
        self.wait_until(lambda: text in self.output(), timeout=timeout, what=f"it prints {text!r}")

    def _last_words(self) -> str:
        return "\n".join(self.output().splitlines()[-60:])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        os.kill(self.pid, number)

    def interrupt(self) -> None:
        """Send SIGINT as Ctrl-C in a terminal does: to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout: float = 30) -> int:
        """Wait for it to end by itself.

        :return: its `returncode`
        :raises AssertionError: when it is still running after ``timeout`` seconds
        """
        self.wait_until(lambda: not self.running, timeout=timeout, what="it ends")
        assert self._guardian is not None
        return self._guardian.wait()

    def stop(self, timeout: float = 20) -> None:
        """Ask it to end (SIGTERM) and wait for that; kill it when it does not. Safe to call twice."""
        if not self.running:
            return
        try:
            self.signal(signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has just ended by itself
        try:
            self.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill it and all it started (SIGKILL), at once. Safe to call twice."""
        if self._guardian is not None and self._guardian.poll() is None:
            self._guardian.terminate()
            self._guardian.wait(timeout=30)
