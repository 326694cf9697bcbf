"""The command ``twistedcelery``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["main"]

#: The exit status after a Ctrl-C, as shells have it.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: without the program's name; ``sys.argv`` unless given
    :return: the exit status
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        # The command has not begun: it handles the signal itself.
        return INTERRUPTED
    return status


# Import each command late: --help and --version need neither Twisted nor Autobahn.


def _demo(options: argparse.Namespace) -> int:
    from twistedcelery.demo import command

    return command.run(broker=options.broker, backend=options.backend, port=options.port)


def _bridge(options: argparse.Namespace) -> int:
    from twistedcelery.wamp.process import command

    settings = [*([("app", options.app)] if options.app else []), *options.set]
    return command.run(url=options.url, realm=options.realm, config=options.config, settings=settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="twistedcelery",
        description="Celery tasks for Twisted, and for WAMP clients through Crossbar.io.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="run router, bridge and a worker on this machine, until Ctrl-C",
        description="Run a Crossbar.io router, the bridge and one Celery worker with the demo's tasks. "
        "It needs the extra 'crossbar', no server and no root. Ctrl-C stops everything it started.",
    )
    demo.add_argument(
        "--broker", metavar="URL", help="Celery broker (default: files in a temporary directory)"
    )
    demo.add_argument(
        "--backend", metavar="URL", help="Celery result backend (default: files in a temporary directory)"
    )
    demo.add_argument(
        "--port", type=_port, default=8080, metavar="N", help="port on 127.0.0.1 (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    bridge = commands.add_parser(
        "bridge",
        help="expose a Celery application's tasks on a WAMP router",
        description="Expose a Celery application's tasks on a WAMP router, until SIGTERM or Ctrl-C. "
        "With TWISTEDCELERY_TICKET in the environment, the bridge authenticates with it by ticket or "
        "WAMP-CRA. Its authid is 'bridge', or what TWISTEDCELERY_AUTHID says.",
    )
    bridge.add_argument(
        "--url",
        default="ws://127.0.0.1:8080/ws",
        help="the router's address: ws://, wss://, rs:// or rss:// (default: %(default)s)",
    )
    bridge.add_argument("--realm", default="realm1", help="default: %(default)s")
    bridge.add_argument("-A", "--app", metavar="APP", help="the Celery application, as `celery -A` takes it")
    bridge.add_argument(
        "--config", type=Path, metavar="FILE", help="the bridge's configuration, as a JSON object"
    )
    bridge.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key of the configuration to a JSON value or plain text; can be repeated",
    )
    bridge.set_defaults(run=_bridge)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            version = metadata.version("twistedcelery")
        except metadata.PackageNotFoundError:
            version = "(run from its source, not installed)"
        print(f"twistedcelery {version}")
        parser.exit()


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return key, value


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
