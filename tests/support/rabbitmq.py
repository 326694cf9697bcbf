"""A private RabbitMQ node: its own ports, directories, Erlang cookie and port mapper."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.support.debian import require, unavailable
from tests.support.ports import free_port, reachable
from tests.support.process import Process, wait_until

__all__ = ["RabbitMQ", "RabbitMQNode", "load", "save"]

# AMQP 0-9-1's protocol header. A broker that is ready answers it with Connection.Start,
# which names the product.
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

# No plugins. Two schedulers, for two cores, that sleep when idle instead of spinning.
_ERLANG_ARGUMENTS = "+S 2:2 +SDcpu 2:2 +SDio 4 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"

_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
num_acceptors.tcp = 2
log.file = false
log.console = true
log.console.level = info
log.console.use_colors = off
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 2GB
collect_statistics = none
"""


@dataclass(frozen=True)
class RabbitMQ:
    """A running node, as any process that knows its address and cookie sees it."""

    directory: str
    port: int
    port_mapper_port: int
    distribution_port: int
    cookie: str
    default_vhost: str = "/"

    @property
    def name(self) -> str:
        """The Erlang node's name."""
        return f"twistedcelery-{self.port}@localhost"

    @property
    def url(self) -> str:
        """The URL of `default_vhost`, for the administrator."""
        return self.vhost_url(self.default_vhost)

    def vhost_url(self, vhost: str, user: str = "guest", password: str = "guest") -> str:
        """The broker URL of a virtual host."""
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{vhost}"

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """A virtual host of one's own, deleted afterwards with its connections.

        :return: its broker URL
        """
        name = self.add_vhost()
        try:
            yield self.vhost_url(name)
        finally:
            self.eval(f'rabbit_vhost:delete(<<"{name}">>, <<"tests">>).')

    def add_vhost(self) -> str:
        """Make a virtual host.

        :return: its name
        """
        name = f"test-{uuid.uuid4().hex}"
        self.eval(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"tests">>),'
            f'ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            ' <<".*">>, <<".*">>, <<".*">>, <<"tests">>).'
        )
        return name

    def close_connections(self) -> None:
        """Close all client connections, as an administrator does (AMQP 320, connection forced)."""
        self.eval('rabbit_networking:close_all_connections("closed by a test").')

    def close_client_connections(self) -> int:
        """As `close_connections`, for those of pika alone: workers, which have py-amqp's, are left alone.

        :return: how many it closed
        """
        closed = self.eval(
            "Product = fun(Connection) ->"
            " [{_, Told}] = rabbit_networking:connection_info(Connection, [client_properties]),"
            ' case lists:keyfind(<<"product">>, 1, Told) of {_, _, Name} -> Name; false -> none end end,'
            'length([rabbit_networking:close_connection(Connection, "closed by a test")'
            " || Connection <- rabbit_networking:connections(),"
            ' (catch Product(Connection)) =:= <<"Pika Python Client Library">>]).'
        )
        return int(closed)

    def block_publishers(self) -> None:
        """Raise the memory alarm: connections that publish are blocked. See `unblock_publishers`."""
        self.eval("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1}).")

    def unblock_publishers(self) -> None:
        """Clear the memory alarm."""
        self.eval('vm_memory_monitor:set_vm_memory_high_watermark({absolute, "2GB"}).')

    def sync(self) -> None:
        """Write down which queues there are. Until then, for up to 2 s, a kill loses new ones.

        Mnesia buffers its log, and the broker confirms a queue's declaration before that is on disk.
        """
        self.eval("ok = mnesia:sync_log().")

    def queues(self, vhost: str) -> set[str]:
        """The names of all queues of a virtual host."""
        names = self.eval(
            'lists:join(" ", [binary_to_list(element(4, amqqueue:get_name(Queue)))'
            f' || Queue <- rabbit_amqqueue:list(<<"{vhost}">>)]).'
        )
        return set(re.findall(r'"([^" ]+)"', names))

    def eval(self, expressions: str) -> str:
        """Evaluate Erlang in the node: what ``rabbitmqctl eval`` does, in milliseconds instead of a second.

        :return: the value as Erlang prints it
        """
        finished = subprocess.run(
            [
                *("erl_call", "-c", self.cookie, "-n", self.name, "-timeout", "20", "-e"),
                # A name of its own: the node refuses two callers of one name, and -r repeats names.
                *("-h", f"test-{uuid.uuid4().hex}"),
            ],
            input=f"{expressions}\n".encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ERL_EPMD_PORT": str(self.port_mapper_port), "HOME": self.directory},
            check=False,
        )
        answer = finished.stdout.decode(errors="replace").strip()
        if finished.returncode != 0 or not answer.startswith("{ok, "):
            raise AssertionError(f"RabbitMQ did not evaluate {expressions!r}: {answer}")
        return answer.removeprefix("{ok, ").removesuffix("}")

    @property
    def ready(self) -> bool:
        """Whether it speaks AMQP."""
        return reachable(self.port, send=_PROTOCOL_HEADER, expect=b"RabbitMQ")


class RabbitMQNode:
    """Starts, kills and stops a node. What it stored survives between starts.

    Its methods block; in a test whose reactor must go on, call them with ``deferToThread``.
    """

    def __init__(self, directory: Path, *, owner: int | None = None) -> None:
        """Prepare a node; `start` runs it.

        :param directory: an empty directory for everything the node keeps
        :param owner: the process the node must not outlive; this process unless given
        """
        server = require("rabbitmq-server")
        if shutil.which("erl_call") is None:
            unavailable("erl_call is missing: Erlang was not installed from Debian's packages")
        self.broker = RabbitMQ(
            directory=str(directory),
            port=free_port(),
            port_mapper_port=free_port(),
            distribution_port=free_port(),
            cookie=uuid.uuid4().hex.upper(),
        )
        directory.mkdir(parents=True, exist_ok=True)
        configuration = directory / "rabbitmq.conf"
        configuration.write_text(_CONFIGURATION.format(port=self.broker.port))
        plugins = directory / "enabled_plugins"
        plugins.write_text("[].\n")
        self._data = directory / "data"
        cookie = directory / ".erlang.cookie"
        cookie.write_text(self.broker.cookie)
        cookie.chmod(0o400)
        env = {
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(self.broker.port_mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.broker.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.broker.port),
            "RABBITMQ_DIST_PORT": str(self.broker.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._data),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "no-rabbitmq-env.conf"),
            "RABBITMQ_PID_FILE": str(directory / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG_ARGUMENTS,
        }
        # Without one in the foreground, Erlang would start a port mapper that outlives the node.
        self._port_mapper = Process(
            ["epmd", "-port", str(self.broker.port_mapper_port), "-address", "127.0.0.1"],
            directory=directory,
            name="epmd",
            env=env,
            owner=owner,
        )
        self._server = Process([str(server)], directory=directory, name="rabbitmq", env=env, owner=owner)

    @property
    def pid(self) -> int:
        """The process id of the server; it has children."""
        return self._server.pid

    def start(self) -> None:
        """Start it, on the same ports and data as before, and wait until it takes connections."""
        if not self._port_mapper.running:
            self._port_mapper.start()
            self._port_mapper.wait_until(
                lambda: reachable(self.broker.port_mapper_port), timeout=10, what="it takes connections"
            )
        self._server.start()
        self._server.wait_until(lambda: self.broker.ready, timeout=60, what="it takes connections")

    def renew(self) -> None:
        """Make it as good as new, whatever a test did to it: running, and `broker.url` empty."""
        if not self._server.running:
            self.start()
        self.thaw()
        self.broker.unblock_publishers()
        self.broker = replace(self.broker, default_vhost=self.broker.add_vhost())
        # A test may kill it at once.
        self.broker.sync()

    def kill(self) -> None:
        """Kill the whole node (SIGKILL). See `RabbitMQ.sync` for queues that are new."""
        self._server.kill()

    def wipe(self) -> None:
        """Delete what a killed node has stored: `start` makes it as it was when it was new."""
        shutil.rmtree(self._data)

    def stop(self) -> None:
        """Stop it in good order. Safe to call twice."""
        self._server.stop()
        self._port_mapper.kill()

    def freeze(self) -> None:
        """Stop scheduling it (SIGSTOP): connections stay open and nothing answers. See `thaw`."""
        for pid in self._server.descendants:
            os.kill(pid, signal.SIGSTOP)
        wait_until(
            lambda: all(_is_stopped(pid) for pid in self._server.descendants), timeout=10, what="it is frozen"
        )

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        for pid in self._server.descendants:
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    """Whether every thread of a process has obeyed SIGSTOP; what has ended counts as well."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
    except OSError:
        return True
    return all(state in "TtZX" for state in states)


def load(path: Path) -> RabbitMQ:
    """Read what `save` wrote."""
    return RabbitMQ(**json.loads(path.read_text()))


def save(broker: RabbitMQ, path: Path) -> None:
    """Write a running node's address for other processes."""
    path.write_text(json.dumps(asdict(broker)))
