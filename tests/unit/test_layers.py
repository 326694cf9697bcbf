"""The shape of the package: imports never point up, and each foreign library has its place."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import twistedcelery

PACKAGE = Path(twistedcelery.__file__).parent

#: From the bottom to the top. A module imports from lower layers, and, of its own folder, from its
#: siblings. The package itself is ``""``.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "_types",
            "answers",
            "commands",
            "descendants",
            "errors",
            "gathering",
            "incoming",
            "members",
            "message",
            "offline",
            "recent",
        }
    ),
    frozenset({"appview", "pacing", "replay", "results", "revoker"}),
    frozenset({"call", "chords", "signatures"}),
    frozenset({"encoder", "join", "pending", "reply"}),
    frozenset({"canvas_encoder", "transports.connection", "transports.deadlines", "transports.interface"}),
    frozenset({"transports.failover", "transports.publication", "transports.tls", "transports"}),
    frozenset({"transports.queued"}),
    frozenset(
        {
            "access",
            "events",
            "replies",
            "transports.amqp",
            "transports.no_results",
            "transports.redis",
            "transports.threads",
        }
    ),
    frozenset({"control", "outbox", "sending", "transports.choose"}),
    frozenset({"canvas", "wires", "workers"}),
    frozenset({"task"}),
    frozenset({"canvas_methods"}),
    frozenset({"client"}),
    frozenset({""}),
    frozenset({"wamp"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
)

#: Who may import what of others, as folders or modules of the package.
PLACES = {
    "pika": {"transports.amqp.link"},
    "txredisapi": {"transports.redis.link"},
    "redis": {"transports.redis"},
    "OpenSSL": {"transports.tls"},
    "autobahn": {"wamp"},
    "crossbar": {"wamp"},
}

#: Lines of code in a module: without blank lines, comments and docstrings.
MAX_LINES = 250


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name within it; a folder's ``__init__`` has the folder's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of what is imported anywhere in a module, for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def imported_modules(name: str) -> set[str]:
    """The modules of the package that one imports, by their names within it."""
    found = set()
    for target in imports(MODULES[name]):
        if target.partition(".")[0] != "twistedcelery":
            continue
        inner = target.partition(".")[2]
        # ``from twistedcelery.x import y``: y is a module, or a name in the module x.
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def layer(name: str) -> int:
    """The layer of a module, by the longest of its folders that the table has."""
    while True:
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
        assert name, "a module that no layer has"
        name = name.rpartition(".")[0]


def folder(name: str) -> str:
    """``transports.amqp`` of a module or folder in it."""
    return next(
        (
            names
            for names in ("transports.amqp", "transports.redis", "transports.threads", "wamp", "demo")
            if name == names or name.startswith(f"{names}.")
        ),
        name,
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_layer(name):
    """A new module is put into the table, or into a folder that is there."""
    top = name.partition(".")[0]
    listed = {each for names in LAYERS for each in names}
    assert name in listed or any(name.startswith(f"{each}.") for each in listed - {"", "transports"}), top


@pytest.mark.parametrize("name", MODULES)
def test_imports_never_point_up(name):
    """A module knows those below it, and its siblings in the same folder."""
    for target in imported_modules(name):
        if folder(target) != folder(name):
            assert layer(target) < layer(name), f"{name or 'the package'} imports {target}"


def test_imports_have_no_cycles():
    """Also within a folder there is one direction."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in sorted(imported_modules(name) - {name}):
                # A folder is imported with whatever is imported from it.
                if not name.startswith(f"{target}.") and target:
                    visit(target, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("library", PLACES)
def test_foreign_libraries_have_their_place(library):
    """What may change or be missing is imported where the table says, and nowhere else."""
    found = {
        name
        for name, tree in MODULES.items()
        if any(target.partition(".")[0] == library for target in imports(tree))
    }
    outside = {name for name in found if not {name, folder(name)} & PLACES[library]}
    assert not outside
    assert found or library == "crossbar"


def test_the_bridge_uses_the_public_library():
    """The WAMP side knows nothing of transports, pika or the client's parts."""
    used = {
        target
        for name in MODULES
        if folder(name) == "wamp"
        for target in imported_modules(name)
        if folder(target) != "wamp"
    }
    assert used <= {"", "_types", "errors"}


def names_of_tests(tree: ast.Module) -> set[str]:
    return {target for target in imports(tree) if target.partition(".")[0] in {"tests", "my_app", "pytest"}}


@pytest.mark.parametrize("name", MODULES)
def test_the_package_needs_no_test_or_demo_application(name):
    """What is installed does not import what is not."""
    assert not names_of_tests(MODULES[name])


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_the_reactor(name):
    """The reactor is passed in: importing it installs one, which is the application's choice."""
    for node in MODULES[name].body:
        assert not any(
            target == "twisted.internet.reactor"
            for each in ([node] if not isinstance(node, ast.ClassDef) else node.body)
            if isinstance(each, ast.Import | ast.ImportFrom)
            for target in imports(each)
        )


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short(name):
    """A module that grows past the limit has become two."""
    tree = MODULES[name]
    path = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    code: set[int] = set()
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and node.end_lineno is not None
        ):
            code.difference_update(range(node.lineno, node.end_lineno + 1))
    assert len(code) <= MAX_LINES


def run(program: str) -> str:
    """Run Python in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:twistedcelery", "-c", textwrap.dedent(program)],
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_works_without_its_extras():
    """Without autobahn, crossbar and redis it is imported, and a task over AMQP is sent."""
    run(
        """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"autobahn", "crossbar", "redis", "txredisapi"}:
                    raise ImportError(f"{name} is not there")

        sys.meta_path.insert(0, Missing())
        from celery import Celery
        from twisted.internet.task import Clock
        import twistedcelery

        app = Celery("unit", broker="amqp://127.0.0.1:1//", backend="rpc://")
        tx_app = twistedcelery.TwistedCelery(app, Clock())
        call = tx_app.send_task("tasks.add", args=(2, 3))
        assert not call.called
        call.addErrback(lambda failure: failure.trap(twistedcelery.Disconnected))
        tx_app.disconnect()
        assert call.called
        """
    )


def test_importing_the_library_does_little():
    """It installs no reactor, and loads no transport before one is wanted."""
    loaded = run(
        """
        import sys
        import twistedcelery
        print("\\n".join(sys.modules))
        """
    ).splitlines()
    for name in ("twisted.internet.reactor", "pika", "autobahn", "twistedcelery.transports.amqp"):
        assert name not in loaded
    assert "twistedcelery.client" in loaded
