"""A TCP proxy that does to a database connection what networks do.

One thread owns every socket and does all the work; methods are carried out in that thread and
return when they have taken effect, so a test never has to sleep. Bytes are counted exactly: a fault
"after n bytes" lets n bytes through and not one more.
"""

from __future__ import annotations

import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ordermigrate.demo.servers import HOST, find_free_port

Direction = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")

_BLOCK = 256 * 1024
_LONGEST_NEEDLE = 256
_CALL_SECONDS = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Pipe:
    """One direction of one connection: what was read from one socket and not yet written."""

    direction: Direction
    reader: socket.socket
    writer: socket.socket
    waiting: bytes = b""
    tail: bytes = b""  # the end of what was read before, for needles across two reads
    is_ended: bool = False  # the reader has sent its last byte


@dataclass(eq=False)
class _Link:
    """One client's connection and the proxy's own to the server."""

    client: socket.socket
    server: socket.socket
    pipes: tuple[_Pipe, _Pipe] = field(init=False)

    def __post_init__(self) -> None:
        self.pipes = (
            _Pipe("to_server", self.client, self.server),
            _Pipe("to_client", self.server, self.client),
        )


@dataclass
class _Trap:
    """What happens once, after so many more bytes or when a byte sequence is seen."""

    direction: Direction
    fault: Callable[[], None]
    bytes_left: int = 0
    needle: bytes = b""  # empty: it waits for the bytes
    is_seen: bool = False


class FaultProxy:
    """Stand in front of one server, and be the network between it and its clients.

    Args:
        host: The server's address.
        port: The server's port.

    """

    def __init__(self, host: str, port: int) -> None:
        self.host = HOST
        self.port = 0
        self.upstream = (host, port)
        self.connections = 0
        self._bytes: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self._swallowed_bytes = 0
        self._changed = threading.Condition()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._links: set[_Link] = set()
        self._traps: list[_Trap] = []
        self._is_stalled = False
        self._is_swallowing = False
        self._is_closed = False
        self._selector = selectors.DefaultSelector()
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._wake_receiver.settimeout(0.0)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._door = self._bind()
        self._open_door()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    def dsn(self, dsn: str) -> str:
        """Return the same DSN with the proxy's address in it; a URI stays a URI."""
        if "://" not in dsn:
            parameters = conninfo_to_dict(dsn) | {"host": self.host, "port": str(self.port)}
            parameters.pop("hostaddr", None)
            return make_conninfo("", **parameters)
        parts = urlsplit(dsn)
        userinfo, at, _ = parts.netloc.rpartition("@")
        options = [
            option
            for option in parts.query.split("&")
            if option.partition("=")[0] not in {"host", "hostaddr", "port"}
        ]
        address = f"{userinfo}{at}{self.host}:{self.port}"
        return urlunsplit(parts._replace(netloc=address, query="&".join(options)))

    # What networks do

    def cut(self) -> None:
        """Reset every connection, on both of its sides; new ones are let through."""

        def reset_all() -> None:
            for link in list(self._links):
                self._end(link, reset=True)

        self._call(reset_all)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED) until healed; those there are go on."""
        self._call(self._shut_door)

    def stall(self) -> None:
        """Let no byte pass in either direction until healed; connections stay open."""
        self._call(lambda: self._set_stalled(is_stalled=True))

    def swallow_replies(self) -> None:
        """From now on drop what the server says; what clients say still reaches it."""

        def swallow() -> None:
            self._is_swallowing = True

        self._call(swallow)

    def heal(self) -> None:
        """Take every fault and every trap away; reset connections stay dead."""

        def restore() -> None:
            self._traps.clear()
            self._is_swallowing = False
            self._open_door()
            self._set_stalled(is_stalled=False)

        self._call(restore)

    # The same at a chosen moment, once

    def cut_after(self, count: int, direction: Direction = "to_client") -> None:
        """Cut when so many more bytes, over all connections, have passed in one direction."""
        self.after_bytes(count, self.cut, direction)

    def stall_after(self, count: int, direction: Direction = "to_client") -> None:
        """Stall when so many more bytes have passed in one direction."""
        self.after_bytes(count, self.stall, direction)

    def after_bytes(
        self, count: int, fault: Callable[[], None], direction: Direction = "to_client"
    ) -> None:
        """Do anything when so many more bytes have passed; in the proxy's thread, before more."""
        self._call(lambda: self._traps.append(_Trap(direction, fault, bytes_left=count)))

    def when_seen(
        self, needle: bytes, fault: Callable[[], None], direction: Direction = "to_server"
    ) -> None:
        """Do something right after a byte sequence (no TLS) has passed.

        What was read together with the sequence still passes, so that a statement arrives whole:
        `proxy.when_seen(b"COMMIT", proxy.swallow_replies)` loses the reply to a commit that is
        done, `proxy.when_seen(b"COMMIT", proxy.cut)` leaves open whether it is.
        """
        if not 0 < len(needle) <= _LONGEST_NEEDLE:
            raise ValueError(f"a needle has 1 to {_LONGEST_NEEDLE} bytes")
        self._call(lambda: self._traps.append(_Trap(direction, fault, needle=needle)))

    # What can be seen

    @property
    def bytes_to_server(self) -> int:
        """How many bytes have passed from clients to the server."""
        return self._bytes["to_server"]

    @property
    def bytes_to_client(self) -> int:
        """How many bytes have passed from the server to clients; swallowed ones are not in it."""
        return self._bytes["to_client"]

    @property
    def swallowed_bytes(self) -> int:
        """How many bytes the server said in vain."""
        return self._swallowed_bytes

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def wait_until(
        self, is_true: Callable[[FaultProxy], bool], *, timeout_seconds: float = 30.0
    ) -> None:
        """Wait until something is true of the proxy, such as `lambda p: p.connections == 2`."""
        with self._changed:
            if not self._changed.wait_for(lambda: is_true(self), timeout_seconds):
                raise TimeoutError(f"not true of {self!r} within {timeout_seconds:g} s")

    def __repr__(self) -> str:
        """Show the figures that a test waits for."""
        return (
            f"FaultProxy(connections={self.connections}, open={self.open_connections}, "
            f"to_server={self.bytes_to_server}, to_client={self.bytes_to_client}, "
            f"swallowed={self.swallowed_bytes})"
        )

    def close(self) -> None:
        """End every connection and the thread; nothing to do the second time."""
        if self._is_closed:
            return

        def end() -> None:
            self._is_closed = True

        self._call(end)
        self._thread.join()

    def __enter__(self) -> Self:
        """Return the proxy, which listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the proxy."""
        self.close()

    # The thread

    def _call(self, act: Callable[[], None]) -> None:
        """Carry something out in the proxy's thread, and wait until it has been done."""
        if threading.current_thread() is self._thread:
            act()
            return
        if self._is_closed:
            raise RuntimeError("the proxy is closed")
        done: Future[None] = Future()

        def act_and_tell() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001  it is raised where it was called for
                done.set_exception(error)
            else:
                done.set_result(None)

        self._calls.put(act_and_tell)
        self._wake_sender.send(b"!")
        done.result(_CALL_SECONDS)

    def _run(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_receiver:
                    self._obey()
                elif key.fileobj is self._door:
                    self._welcome()
                elif key.data in self._links and not self._is_stalled:
                    self._pump(key.data)
            with self._changed:
                self._changed.notify_all()
        for link in list(self._links):
            self._end(link, reset=False)
        self._selector.close()
        for owned in (self._door, self._wake_sender, self._wake_receiver):
            owned.close()

    def _obey(self) -> None:
        self._wake_receiver.recv(4096)
        while not self._calls.empty():
            self._calls.get()()

    def _welcome(self) -> None:
        try:
            client, _ = self._door.accept()
        except (BlockingIOError, ConnectionError):
            return
        self.connections += 1
        try:
            server = socket.create_connection(self.upstream, timeout=5)
        except OSError:
            _close(client, reset=True)
            return
        for one in (client, server):
            one.settimeout(0.0)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        self._links.add(link)
        self._watch(link)

    def _watch(self, link: _Link) -> None:
        """Ask for exactly the events that this connection can make use of now."""
        for end in (link.client, link.server):
            events = 0
            for pipe in link.pipes:
                if pipe.reader is end and not pipe.waiting and not pipe.is_ended:
                    events |= selectors.EVENT_READ
                if pipe.writer is end and pipe.waiting:
                    events |= selectors.EVENT_WRITE
            if self._is_stalled:
                events = 0
            is_watched = end in self._selector.get_map()
            if events and is_watched:
                self._selector.modify(end, events, link)
            elif events:
                self._selector.register(end, events, link)
            elif is_watched:
                self._selector.unregister(end)

    def _pump(self, link: _Link) -> None:
        try:
            for pipe in link.pipes:
                self._read(pipe)
                self._write(link, pipe)
                if link not in self._links:
                    return  # a trap has cut it
        except OSError:
            self._end(link, reset=True)
            return
        if all(pipe.is_ended and not pipe.waiting for pipe in link.pipes):
            self._end(link, reset=False)
        else:
            self._watch(link)

    def _read(self, pipe: _Pipe) -> None:
        if pipe.waiting or pipe.is_ended:
            return
        try:
            read = pipe.reader.recv(_BLOCK)
        except BlockingIOError:
            return
        pipe.waiting = read
        if not read:
            pipe.is_ended = True
            pipe.writer.shutdown(socket.SHUT_WR)

    def _write(self, link: _Link, pipe: _Pipe) -> None:
        while pipe.waiting and link in self._links and not self._is_stalled:
            traps = [trap for trap in self._traps if trap.direction == pipe.direction]
            limits = [trap.bytes_left for trap in traps if not trap.needle]
            block = pipe.waiting[: min([len(pipe.waiting), *limits])]
            if pipe.direction == "to_client" and self._is_swallowing:
                self._swallowed_bytes += len(block)
                passed = block
            else:
                try:
                    passed = block[: pipe.writer.send(block)] if block else b""
                except BlockingIOError:
                    return
                self._bytes[pipe.direction] += len(passed)
            pipe.waiting = pipe.waiting[len(passed) :]
            self._spring(pipe, traps, passed)

    def _spring(self, pipe: _Pipe, traps: list[_Trap], passed: bytes) -> None:
        """Let each trap see what has passed, and set off those that waited for it."""
        for trap in traps:
            if trap.needle:
                seen = pipe.tail[len(pipe.tail) - len(trap.needle) + 1 :] + passed
                trap.is_seen = trap.is_seen or trap.needle in seen
                is_due = trap.is_seen and not pipe.waiting
            else:
                trap.bytes_left -= len(passed)
                is_due = trap.bytes_left == 0
            if is_due and trap in self._traps:
                self._traps.remove(trap)
                trap.fault()
        pipe.tail = (pipe.tail + passed)[-_LONGEST_NEEDLE:]

    def _set_stalled(self, *, is_stalled: bool) -> None:
        self._is_stalled = is_stalled
        for link in list(self._links):
            self._watch(link)

    def _end(self, link: _Link, *, reset: bool) -> None:
        self._links.discard(link)
        for end in (link.client, link.server):
            if end in self._selector.get_map():
                self._selector.unregister(end)
            _close(end, reset=reset)

    def _bind(self) -> socket.socket:
        """Take the port without listening on it: connections are refused, nobody else gets it."""
        while True:
            port = self.port or find_free_port()
            door = socket.socket()
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                door.bind((self.host, port))
            except OSError:
                door.close()
                if self.port:
                    raise
                continue
            door.settimeout(0.0)
            self.port = port
            return door

    def _open_door(self) -> None:
        if self._door not in self._selector.get_map():
            self._door.listen(128)
            self._selector.register(self._door, selectors.EVENT_READ)

    def _shut_door(self) -> None:
        if self._door in self._selector.get_map():
            self._selector.unregister(self._door)
            self._door.close()
            self._door = self._bind()


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.close()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[str], FaultProxy]]:
    """Return a factory: a proxy in front of the server that a DSN names; closed after the test."""
    made: list[FaultProxy] = []

    def make(dsn: str) -> FaultProxy:
        parameters = conninfo_to_dict(dsn)
        host = str(parameters.get("hostaddr") or parameters.get("host") or HOST)
        made.append(FaultProxy(host, int(parameters.get("port") or 5432)))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
