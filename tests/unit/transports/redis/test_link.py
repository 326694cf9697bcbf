"""`open_link` and its links, on a transport in memory: bytes in, bytes out."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.unit.transports.amqp.fakes import outcomes_of
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, EncodeError
from twistedcelery.transports.connection import Refused, RefusedForNow
from twistedcelery.transports.redis.link import RedisParameters, open_link, open_subscriber


class Server:
    """An endpoint, and the Redis behind it."""

    def __init__(self, opener: Any = open_link, **parameters: Any) -> None:
        self.clock = Clock()
        self.transport = StringTransport()
        self.aborted = False
        self.transport.abortConnection = self._abort
        options = {"username": None, "password": None, "db": 0, "name": None, "check_interval": 25.0}
        self.opening = opener(self, RedisParameters(**{**options, **parameters}), self.clock)
        self.outcome = outcomes_of(self.opening)

    def connect(self, factory: Any) -> Deferred[Any]:
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        return succeed(self.protocol)

    def _abort(self) -> None:
        self.aborted = True

    def heard(self) -> bytes:
        """What was sent since the last time."""
        heard = self.transport.value()
        self.transport.clear()
        return heard

    def say(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def hang_up(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def ready(self) -> Any:
        """Log in, and give the link."""
        for _ in range(10):
            if self.outcome:
                break
            self.say(b"+OK\r\n")
        self.heard()
        return self.outcome[0]


def sent(*words: str) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


@pytest.mark.parametrize(
    ("parameters", "commands"),
    [
        ({}, [("SELECT", "0"), ("PING",)]),
        ({"password": "pw", "db": 3}, [("AUTH", "pw"), ("SELECT", "3"), ("PING",)]),
        (
            {"username": "me", "password": "pw", "name": "ours"},
            [("AUTH", "me", "pw"), ("CLIENT", "SETNAME", "ours"), ("SELECT", "0"), ("PING",)],
        ),
    ],
)
def test_the_handshake(parameters, commands):
    """Each step waits for the one before it."""
    server = Server(**parameters)
    for command in commands:
        assert not server.outcome
        assert server.heard() == sent(*command)
        server.say(b"+OK\r\n")
    assert len(server.outcome) == 1
    assert not server.aborted


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", BrokerAccessRefused),
        (b"-NOAUTH Authentication required.\r\n", BrokerAccessRefused),
        (b"-ERR DB index is out of range\r\n", BrokerAccessRefused),
        (b"-LOADING Redis is loading the dataset in memory\r\n", BrokerUnavailable),
        (b"-CLUSTERDOWN The cluster is down\r\n", BrokerUnavailable),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", BrokerUnavailable),
        (b"-ERR max number of clients reached\r\n", BrokerUnavailable),
    ],
)
def test_a_handshake_that_is_refused(reply, error):
    """Waiting helps only where the trouble may pass; the connection is dropped."""
    server = Server(password="secret")
    server.say(reply)
    assert type(server.outcome[0]) is error
    assert str(server.outcome[0]) in reply.decode()
    assert server.aborted


def test_a_server_that_hangs_up_during_the_handshake():
    """Is unavailable."""
    server = Server()
    server.hang_up()
    assert isinstance(server.outcome[0], BrokerUnavailable)
    assert "closed the connection" in str(server.outcome[0])


def test_cancelling_drops_the_connection():
    """As when the time for the attempt is up."""
    server = Server()
    server.opening.cancel()
    assert server.aborted


def test_the_password_is_not_shown():
    """Parameters may be logged."""
    assert "secret" not in repr(RedisParameters("me", "secret", 0, None, 25.0))


def test_replies():
    """Values are bytes as they came, and error replies are `Refused`."""
    server = Server()
    link = server.ready()
    found = outcomes_of(link.ask(("MGET", b"a", b"b", "ü")))
    assert server.heard() == sent("MGET", "a", "b").replace(b"*3", b"*4") + "$2\r\nü\r\n".encode()
    server.say(b"*3\r\n$2\r\n12\r\n$-1\r\n$3\r\n\xff\r\n\r\n")
    assert found == [[b"12", None, b"\xff\r\n"]]
    refused = outcomes_of(link.ask(("GET", "x")))
    server.say(b"-WRONGTYPE no\r\n")
    assert isinstance(refused[0], Refused)
    assert str(refused[0]) == "WRONGTYPE no"


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        (b"+OK\r\n+QUEUED\r\n*1\r\n:1\r\n", None),
        (b"+OK\r\n-ERR unknown command\r\n-EXECABORT discarded\r\n", "ERR unknown command"),
        (b"+OK\r\n+QUEUED\r\n*1\r\n-OOM no memory\r\n", "OOM no memory"),
    ],
)
def test_a_transaction(replies, problem):
    """Is confirmed by the reply to EXEC, and an error in it counts, wherever it is."""
    server = Server()
    outcome = outcomes_of(server.ready().send([("MULTI",), ("LPUSH", "q", "x"), ("EXEC",)]))
    server.say(replies)
    if problem is None:
        assert outcome == [[b"OK", b"QUEUED", [1]]]
    else:
        assert isinstance(outcome[0], Refused)
        assert str(outcome[0]) == problem


def test_the_end_of_a_link():
    """What is unanswered fails, those who asked are told once, and so are those who ask later."""
    server = Server()
    link = server.ready()
    told: list[Any] = []
    link.on_lost(told.append)
    waiting = outcomes_of(link.ask(("GET", "x")))
    server.hang_up()
    assert isinstance(waiting[0], BrokerUnavailable)
    link.on_lost(told.append)
    assert len(told) == 2
    assert isinstance(outcomes_of(link.ask(("GET", "x")))[0], BrokerUnavailable)
    assert not server.clock.getDelayedCalls()


def test_a_silent_server_is_given_up():
    """A PING that stays without an answer for as long as the interval between two."""
    server = Server(check_interval=10.0)
    link = server.ready()
    told: list[Any] = []
    link.on_lost(told.append)
    for _ in range(3):
        server.clock.advance(10)
        assert server.heard() == sent("PING")
        server.say(b"+PONG\r\n")
    server.clock.advance(10)
    assert not server.aborted
    server.clock.advance(10)
    assert server.aborted
    server.hang_up()
    assert "no answer to a PING for 10 s" in str(told[0])


def test_an_error_is_an_answer_to_a_ping():
    """A Redis that cannot write to its disk is not given up, from the handshake on: it can be read from."""
    server = Server(check_interval=10)
    server.say(b"+OK\r\n")
    server.say(b"-MISCONF Redis is configured to save RDB snapshots\r\n")
    assert len(server.outcome) == 1
    server.heard()
    for _ in range(3):
        server.clock.advance(10)
        assert server.heard() == sent("PING")
        server.say(b"-MISCONF Redis is configured to save RDB snapshots\r\n")
    assert not server.aborted


def test_subscriptions():
    """Messages go to who asked for them, also between the answers to subscriptions."""
    server = Server(open_subscriber)
    link = server.ready()
    messages: list[Any] = []
    link.on_message(lambda channel, payload: messages.append((channel, payload)))
    first, second = outcomes_of(link.subscribe(b"a")), outcomes_of(link.subscribe(b"b"))
    assert server.heard() == sent("SUBSCRIBE", "a") + sent("SUBSCRIBE", "b")
    server.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\n42\r\n")
    assert first
    assert not second
    server.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n")
    assert second
    assert messages == [(b"a", b"42")]
    gone, alive = outcomes_of(link.unsubscribe(b"a")), outcomes_of(link.ask(("PING",)))
    server.say(b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert gone
    assert alive


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", None),
        (b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$9\r\nconnected\r\n:0\r\n", "not the master"),
        (b"-NOPERM this user has no permissions to run the 'role' command\r\n", None),
    ],
)
@pytest.mark.parametrize("opener", [open_link, open_subscriber])
def test_a_master_is_wanted(opener, reply, error):
    """A replica will not do; a user who may not ask for the role has to be trusted."""
    server = Server(opener, master=True)
    for _ in range(2):
        server.say(b"+OK\r\n")
    assert server.heard().endswith(sent("ROLE"))
    server.say(reply)
    (outcome,) = server.outcome
    assert server.aborted == (error is not None)
    if error is not None:
        assert isinstance(outcome, BrokerUnavailable)
        assert error in str(outcome)


@pytest.mark.parametrize(
    ("reply", "passes"),
    [
        (b"-READONLY You can't write against a read only replica.", True),
        (b"-NOREPLICAS Not enough good replicas to write.", True),
        (b"-BUSY Redis is busy running a script.", True),
        (b"-ERR max number of clients reached", True),
        (b"-BUSYGROUP Consumer Group name already exists", False),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", False),
        (b"-WRONGTYPE Operation against a key holding the wrong kind of value", False),
        (b"-ERR unknown command", False),
    ],
)
def test_refusals_that_may_pass(reply, passes):
    """They are told apart, and the link stays."""
    server = Server()
    for _ in range(2):
        server.say(b"+OK\r\n")
    (link,) = server.outcome
    outcome = outcomes_of(link.ask(("SET", "key", "value")))
    server.say(reply + b"\r\n")
    assert type(outcome[0]) is (RefusedForNow if passes else Refused)
    assert not server.aborted


@pytest.mark.parametrize(
    ("commands", "replies", "partly"),
    [
        (["SADD", "LPUSH"], [b"-MISCONF no", b"-MISCONF no"], False),
        (["LPUSH", "LPUSH"], [b":1", b"-MISCONF no"], True),
        (["MULTI", "SADD", "EXEC"], [b"+OK", b"-MISCONF no", b"-EXECABORT no"], False),
        (["MULTI", "GET", "SADD", "EXEC"], [b"+OK", b"+QUEUED", b"-MISCONF no", b"-EXECABORT no"], False),
    ],
)
def test_commands_of_which_some_were_carried_out(commands, replies, partly):
    """The refusal says so; what was in a transaction was not carried out."""
    server = Server()
    for _ in range(2):
        server.say(b"+OK\r\n")
    (link,) = server.outcome
    outcome = outcomes_of(link.send([(command,) for command in commands]))
    for reply in replies:
        server.say(reply + b"\r\n")
    assert outcome[0].partly == partly


def test_several_subscriptions_at_once():
    """Each channel has a reply; where the user may not subscribe to one of them, there is one for all."""
    server = Server(open_subscriber)
    link = server.ready()
    link.on_message(lambda _channel, _payload: None)
    both, alive = outcomes_of(link.subscribe(b"a", b"b")), outcomes_of(link.ask(("PING",)))
    server.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    assert not both
    server.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert both
    assert alive
    refused, alive = outcomes_of(link.subscribe(b"a", b"c")), outcomes_of(link.ask(("PING",)))
    server.say(b"-NOPERM no\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert isinstance(refused[0], Refused)
    assert alive == [[b"pong", b""]]


@pytest.mark.parametrize(
    ("data", "words"), [(b"HTTP/1.1 400\r\n", "does not speak"), (b":5\r\n", "was not asked")]
)
def test_a_server_that_is_no_redis(data, words):
    """It is given up, and the reason is told."""
    server = Server()
    link = server.ready()
    told: list[Any] = []
    link.on_lost(told.append)
    server.say(data)
    assert server.aborted
    server.say(b"+OK\r\n")
    server.hang_up()
    assert words in str(told[0])


def test_what_cannot_be_sent():
    """It fails alone."""
    link = Server().ready()
    assert isinstance(outcomes_of(link.ask(("GET", "\ud800")))[0], EncodeError)


def test_a_command_that_was_given_up():
    """Its reply comes all the same, and is nobody else's."""
    server = Server()
    link = server.ready()
    first, second = link.ask(("GET", "a")), outcomes_of(link.ask(("GET", "b")))
    outcomes_of(first)
    first.cancel()
    server.say(b"$1\r\n1\r\n")
    assert not second
    server.say(b"$1\r\n2\r\n")
    assert second == [b"2"]
