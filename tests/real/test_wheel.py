"""The package as it is installed from a wheel, with no checkout in sight."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.support.installed import build_wheel, install
from tests.support.ports import free_port
from tests.support.process import ROOT, Process

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(180)]

#: What the demo needs beside code.
SHIPPED = {
    "twistedcelery/demo/page/index.html",
    "twistedcelery/demo/page/vendor/autobahn.min.js",
    "twistedcelery/demo/page/vendor/LICENSE",
    "twistedcelery/demo/shipped/crossbar/.crossbar/config.json",
    "twistedcelery/demo/shipped/demo/my_app/tasks.py",
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with the wheel."""
    return install(tmp_path_factory.mktemp("installed"))


def test_demo_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    """``twistedcelery demo`` makes its first call and serves its page; Ctrl-C leaves nothing behind."""
    empty, temporary = tmp_path / "empty", tmp_path / "temporary"
    empty.mkdir()
    temporary.mkdir()
    port = free_port()
    demo = Process(
        [str(programs / "twistedcelery"), "demo", "--port", str(port)],
        directory=tmp_path,
        name="demo",
        env={"PYTHONPATH": "", "TMPDIR": str(temporary)},
        cwd=empty,
    )
    demo.start()
    try:
        demo.wait_for_output("celery.my_app.tasks.add(2, 3) = 5", timeout=60)
        demo.wait_for_output(f"Dashboard: http://127.0.0.1:{port}/")
        for path, expected in (("", b"<title>Celery tasks</title>"), ("vendor/autobahn.min.js", b"autobahn")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                assert expected in answer.read()
        demo.interrupt()
        assert demo.wait() == 0
        assert demo.left_behind == []
        assert "Traceback" not in demo.output()
    finally:
        demo.stop()
    assert list(empty.iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_it_is_the_wheel_that_runs(programs: Path, tmp_path: Path) -> None:
    """The environment takes the package from the wheel, not from the checkout."""
    found = subprocess.run(
        [str(programs / "python"), "-c", "import twistedcelery; print(twistedcelery.__file__)"],
        env={"PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert Path(found.stdout).is_relative_to(programs.parent)


def test_a_wheel_from_the_source_distribution(tmp_path: Path) -> None:
    """The source distribution has all that a wheel is made of."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("twistedcelery-*/")
    names = zipfile.ZipFile(build_wheel(source, tmp_path)).namelist()
    assert set(names) >= SHIPPED
    assert not [name for name in names if name.endswith(".pyc")]
