"""The network that the fault tests rely on does what it says, byte for byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.fix_faults import FaultProxy

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 10.0


class Echo:
    """A server that says back what it hears, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.has_heard = threading.Condition()
        self._door = socket.create_server((HOST, 0))
        self.port: int = self._door.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._is_closing = False
        self._talks: list[threading.Thread] = []
        self._thread.start()

    def wait_for(self, heard: bytes) -> None:
        with self.has_heard:
            assert self.has_heard.wait_for(lambda: self.heard == heard, TIMEOUT_SECONDS), self.heard

    def close(self) -> None:
        self._is_closing = True
        socket.create_connection((HOST, self.port)).close()
        self._thread.join()
        self._door.close()

    def _accept(self) -> None:
        while True:
            peer, _ = self._door.accept()
            if self._is_closing:
                peer.close()
                break
            self._talks.append(threading.Thread(target=self._talk, args=(peer,)))
            self._talks[-1].start()
        for talk in self._talks:
            talk.join()

    def _talk(self, peer: socket.socket) -> None:
        with peer, suppress(ConnectionError):  # the proxy may cut us
            while said := peer.recv(65536):
                with self.has_heard:
                    self.heard += said
                    self.has_heard.notify_all()
                peer.sendall(said)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(HOST, echo.port) as between:
        yield between


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def open_one() -> socket.socket:
        opened.append(socket.create_connection((proxy.host, proxy.port), timeout=TIMEOUT_SECONDS))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


Connect = Callable[[], socket.socket]


def receive(client: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        block = client.recv(count - len(received))
        assert block, f"the connection ended after {received!r}"
        received += block
    return received


def assert_silent(client: socket.socket) -> None:
    client.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.settimeout(TIMEOUT_SECONDS)


def test_a_healthy_proxy_passes_every_byte_both_ways(proxy: FaultProxy, connect: Connect) -> None:
    client = connect()
    said = bytes(range(256)) * 8192
    writer = threading.Thread(target=client.sendall, args=(said,))
    writer.start()
    assert receive(client, len(said)) == said
    writer.join()
    proxy.wait_until(lambda p: p.bytes_to_client == len(said))
    assert proxy.bytes_to_server == len(said)
    assert proxy.connections == 1


def test_a_closed_client_closes_the_connection_to_the_server(
    proxy: FaultProxy, connect: Connect
) -> None:
    client = connect()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 10) == b"last words"
    assert client.recv(1) == b""
    proxy.wait_until(lambda p: p.open_connections == 0)


def test_cut_resets_every_connection_and_lets_new_ones_through(
    proxy: FaultProxy, connect: Connect
) -> None:
    clients = [connect(), connect()]
    proxy.wait_until(lambda p: p.connections == 2)
    proxy.cut()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.open_connections == 0
    again = connect()
    again.sendall(b"x")
    assert receive(again, 1) == b"x"


def test_refuse_turns_new_connections_away_and_leaves_the_old(
    proxy: FaultProxy, connect: Connect
) -> None:
    old = connect()
    old.sendall(b"a")
    assert receive(old, 1) == b"a"
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    old.sendall(b"b")
    assert receive(old, 1) == b"b"
    proxy.heal()
    new = connect()
    new.sendall(b"c")
    assert receive(new, 1) == b"c"


def test_stall_holds_bytes_back_and_heal_delivers_them(
    echo: Echo, proxy: FaultProxy, connect: Connect
) -> None:
    client = connect()
    client.sendall(b"before")
    assert receive(client, 6) == b"before"
    proxy.stall()
    client.sendall(b"-held")
    newcomer = connect()
    newcomer.sendall(b"+new")
    # Nothing to wait for: a call that comes after them in the proxy's thread shows that they wait.
    proxy.stall()
    assert echo.heard == b"before"
    assert_silent(client)
    proxy.heal()
    assert receive(client, 5) == b"-held"
    assert receive(newcomer, 4) == b"+new"


@pytest.mark.parametrize("count", [1, 5, 9])
def test_cut_after_lets_exactly_that_many_bytes_through(
    echo: Echo, proxy: FaultProxy, connect: Connect, count: int
) -> None:
    client = connect()
    proxy.cut_after(count, "to_server")
    client.sendall(b"0123456789")
    proxy.wait_until(lambda p: p.connections == 1 and p.open_connections == 0)
    assert proxy.bytes_to_server == count
    again = connect()
    again.sendall(b"x")
    assert receive(again, 1) == b"x"  # it happens once


def test_stall_after_lets_exactly_that_many_bytes_through(
    proxy: FaultProxy, connect: Connect
) -> None:
    client = connect()
    proxy.stall_after(4)
    client.sendall(b"0123456789")
    proxy.wait_until(lambda p: p.bytes_to_client == 4)
    assert receive(client, 4) == b"0123"
    assert_silent(client)
    proxy.heal()
    assert receive(client, 6) == b"456789"


def test_swallow_replies_loses_what_the_server_says_and_nothing_that_it_hears(
    echo: Echo, proxy: FaultProxy, connect: Connect
) -> None:
    client = connect()
    client.sendall(b"one")
    assert receive(client, 3) == b"one"
    proxy.swallow_replies()
    client.sendall(b"two")
    proxy.wait_until(lambda p: p.swallowed_bytes == 3)
    echo.wait_for(b"onetwo")
    assert_silent(client)


def test_a_byte_sequence_sets_the_fault_off_even_in_two_pieces(
    echo: Echo, proxy: FaultProxy, connect: Connect
) -> None:
    client = connect()
    proxy.when_seen(b"COMMIT", proxy.swallow_replies)
    client.sendall(b"begin;COM")
    assert receive(client, 9) == b"begin;COM"
    client.sendall(b"MIT;")
    proxy.wait_until(lambda p: p.swallowed_bytes == 4)
    echo.wait_for(b"begin;COMMIT;")
    assert_silent(client)


def test_a_dead_server_looks_like_a_dead_server(connect: Connect, proxy: FaultProxy) -> None:
    proxy.upstream = (HOST, 1)
    with pytest.raises(ConnectionError):
        receive(connect(), 1)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p%40ss@db.example:5432/orders?sslmode=disable",
        "postgresql:///orders?host=/run/postgresql",
        "host=db.example port=5432 dbname=orders user=u password='p@ ss'",
    ],
)
def test_a_dsn_leads_to_the_proxy_and_keeps_the_rest(proxy: FaultProxy, dsn: str) -> None:
    before = conninfo_to_dict(dsn)
    after = conninfo_to_dict(proxy.dsn(dsn))
    assert (after.pop("host"), after.pop("port")) == (proxy.host, str(proxy.port))
    assert after == {key: value for key, value in before.items() if key not in {"host", "port"}}
