"""``docs/tutorial.md``, followed literally: its files, its commands, and its page in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.installed import install
from tests.support.nodejs import FOLDER, node_program
from tests.support.ports import free_port
from tests.support.process import ROOT, Process

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(180)]

#: What a program that goes on running prints once the reader can go on.
READY = {
    "celery -A shop worker": "ready.",
    "crossbar start": "Ok, local node configuration ran successfully.",
    "twistedcelery bridge": "this bridge leads",
}


class Reader:
    """Follows the document in a folder, with other ports and another broker than it says.

    :ivar running: the programs in the terminals, by their first words
    """

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.running: dict[str, Process] = {}
        self.port = free_port()
        self._folder = folder
        self._broker_url = broker_url
        folder.mkdir()

    def adapt(self, text: str) -> str:
        """The text with this test's broker and port."""
        return text.replace("amqp://guest:guest@localhost:5672//", self._broker_url).replace(
            "8080", str(self.port)
        )

    def save(self, name: str, content: str) -> None:
        """Save a file of the document."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.adapt(content))

    def type(self, block: str) -> None:
        """Type the commands of a block in a terminal of its own, and compare what they print."""
        commands = "".join(line[2:] + "\n" for line in block.splitlines() if line.startswith("$ "))
        expected = "".join(line + "\n" for line in block.splitlines() if not line.startswith("$ "))
        if "pip install" in commands:
            assert "python3 -m venv venv\n" in commands
            assert "pip install 'twistedcelery[crossbar]'\n" in commands
            install(self._folder)
            return
        script = f". venv/bin/activate\n{self.adapt(commands)}"
        env = {"PYTHONPATH": "", "PYTHONUNBUFFERED": "1"}
        for program, text in READY.items():
            if program in commands:
                running = Process(
                    ["bash", "-ec", script],
                    directory=self._folder.parent,
                    name=program.partition(" ")[0],
                    env=env,
                    cwd=self._folder,
                )
                self.running[program] = running
                running.start()
                running.wait_for_output(text, timeout=60)
                return
        finished = subprocess.run(
            ["bash", "-ec", script],
            cwd=self._folder,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (finished.stderr, finished.stdout) == ("", expected)


@pytest.fixture
def reader(tmp_path: Path, broker_url: str) -> Iterator[Reader]:
    """A reader, whose programs end with the test."""
    reader = Reader(tmp_path / "reports", broker_url)
    yield reader
    for program in reversed(reader.running.values()):
        program.stop()


def test_the_tutorial_works_as_printed(reader: Reader) -> None:
    """It leads from an application to a page that calls a task, shows its progress and cancels it."""
    browser = debian.require("chromium")
    node = node_program()
    document = (ROOT / "docs" / "tutorial.md").read_text()
    steps = re.findall(r"(?:Save this as `([^`]+)`[^\n]*:\n\n)?```(\w+)\n(.*?)```", document, flags=re.DOTALL)
    assert len(steps) == document.count("```") / 2
    for name, language, text in steps:
        if language == "console":
            reader.type(text)
        else:
            assert name, f"not said where to save: {text[:80]}"
            reader.save(name, text)
    assert set(reader.running) == set(READY)

    address = reader.adapt(re.findall(r"Open (http://\S+) and press Start", document)[0])
    visited = subprocess.run(
        [node, str(FOLDER / "tutorial.js"), address, str(browser)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert visited.returncode == 0, visited.stderr
    seen = json.loads(visited.stdout)
    assert seen["problems"] == []
    shown = [seen[name] for name in ("connected", "cancelled", "done")]
    assert shown == ["Connected", "Cancelled", "Done: 20 pages"]
    assert {total for _, total in seen["progress"]} == {20}
    pages = [page for page, _ in seen["progress"]]
    assert len(pages) > 5
    assert pages == sorted(pages)
    reader.running["celery -A shop worker"].wait_for_output("Terminating")
