"""The shape of the package: imports never point up, and each foreign library has its place."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import twistedcelery

PACKAGE = Path(twistedcelery.__file__).parent

#: The rooms, from the bottom to the top. A module imports from its own row and from lower ones.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "_types", "_deferreds", "_logging"}),
    frozenset({"encoding"}),
    frozenset({"transports"}),
    frozenset({"workers"}),
    frozenset({"results"}),
    frozenset({"calls"}),
    frozenset({"client", ""}),
    frozenset({"wamp", "testing", "demo", "cli"}),
)

#: Who may import what of others, as folders or modules of the package.
PLACES = {
    "pika": {"transports.amqp.link"},
    "hiredis": {"transports.redis.protocol"},
    "redis": {"transports.redis"},
    "OpenSSL": {"transports.tls"},
    "autobahn": {"wamp"},
    "crossbar": {"wamp"},
    "pytest": {"testing.plugin"},
}


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


def imported_modules(name: str, *, at_run_time: bool = False) -> set[str]:
    """The modules of the package that one imports, by their names within it."""
    tree: ast.AST = MODULES[name]
    if at_run_time:
        tree = Untyped().visit(ast.parse(ast.unparse(tree)))
    found = set()
    for target in imports(tree):
        if target.partition(".")[0] != "twistedcelery":
            continue
        inner = target.partition(".")[2]
        # ``from twistedcelery.x import y``: y is a module, or a name in the module x.
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


class Untyped(ast.NodeTransformer):
    """Removes what only type checkers see."""

    def visit_If(self, node: ast.If) -> ast.AST | None:  # ast's name
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def room(name: str) -> str:
    """The folder of a module, or the module itself where it stands at the root."""
    return name.partition(".")[0]


def folder(name: str) -> str:
    """``transports.amqp`` of a module in that folder; the room of a module in none."""
    parts = name.split(".")
    is_folder = PACKAGE.joinpath(*parts[:2]).is_dir()
    return ".".join(parts[:2]) if is_folder else parts[0]


FOLDERS = {
    parent: {folder(name) for name in MODULES if name.startswith(f"{parent}.")} - {parent}
    for parent in ("transports", "wamp")
}


def layer(name: str) -> int:
    """The row of a module's room."""
    (found,) = (number for number, rooms in enumerate(LAYERS) if room(name) in rooms)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_never_point_up(name):
    """A room knows those below it."""
    for target in imported_modules(name):
        assert layer(target) <= layer(name), f"{name or 'the package'} imports {target}"


def test_imports_have_no_cycles():
    """Within a row there is one direction too. What type checkers alone import does not count."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in sorted(imported_modules(name, at_run_time=True) - {name}):
                # A folder is imported with whatever is imported from it.
                if not name.startswith(f"{target}.") and target:
                    visit(target, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("parent", ["transports", "wamp"])
def test_folders_import_each_other_in_one_direction(parent):
    """Of two folders in a room, at most one knows the other."""
    known = {
        (folder(name), folder(target))
        for name in MODULES
        for target in imported_modules(name)
        if {folder(name), folder(target)} <= FOLDERS[parent] and folder(name) != folder(target)
    }
    assert not {(a, b) for a, b in known if (b, a) in known}
    # They would be parts of one transport.
    assert parent != "transports" or not known


@pytest.mark.parametrize("library", PLACES)
def test_foreign_libraries_have_their_place(library):
    """What may change or be missing is imported where the table says, and nowhere else."""
    found = {
        name
        for name, tree in MODULES.items()
        if any(target.partition(".")[0] == library for target in imports(tree))
    }
    outside = {name for name in found if not {name, folder(name), room(name)} & PLACES[library]}
    assert not outside
    assert found or library == "crossbar"


def test_the_bridge_uses_the_public_library():
    """The WAMP side knows nothing of transports, pika or the client's parts."""
    used = {
        target
        for name in MODULES
        if room(name) == "wamp"
        for target in imported_modules(name)
        if room(target) != "wamp"
    }
    assert used <= {"", "_deferreds", "_logging", "_types", "errors"}


def names_of_tests(tree: ast.Module) -> set[str]:
    return {target for target in imports(tree) if target.partition(".")[0] in {"tests", "my_app"}}


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
                if name.partition(".")[0] in {"autobahn", "crossbar", "redis", "hiredis"}:
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
