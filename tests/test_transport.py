"""Tests of Transport: protocols written for asyncio are told the same on ours, in the same order.

Each script runs under asyncio's own server, on asyncio's loop, and under ours on either loop, with the same client;
what the protocol was told, what the client got, and what the loop's exception handler was told must be equal.
"""

import asyncio
import contextlib
import contextvars
import gc
import socket
import struct
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

import pytest
from conftest import RingFactory

import aiouring
from aiouring import AsyncRing, Connection, Transport

HOST = "127.0.0.1"
BIG = Random(5).randbytes(8_000_000)

Client = Callable[[socket.socket], Awaitable[object]]


class Told(asyncio.Protocol):
    """Notes what it is told; consecutive data are one note, since chunks may be cut anywhere."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(self, *what: Any) -> None:
        if what[0] == "data" and self.notes and self.notes[-1][0] == "data":
            self.notes[-1] = ("data", self.notes[-1][1] + what[1])
        else:
            self.notes.append(what)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.note("data", data)

    def eof_received(self) -> bool | None:
        self.note("eof")
        return None

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost", type(exc))
        if not self.lost.done():
            self.lost.set_result(None)


async def receive(sock: socket.socket, count: int = 1 << 30) -> bytes:
    """`count` bytes, or everything to the end of the stream or to its reset: one who closes unread data sends that."""
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while len(got) < count and (data := await asyncio.get_running_loop().sock_recv(sock, 100_000)):
            got += data
    return bytes(got)


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


# ---- scripts: a protocol and a client --------------------------------------------------------------


class Echo(Told):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


async def talks(sock: socket.socket) -> bytes:
    """Sends a little, waits for as much, sends the end."""
    await send(sock, b"hello")
    got = await receive(sock, 5)
    sock.shutdown(socket.SHUT_WR)
    return got + await receive(sock)


async def says_little(sock: socket.socket) -> bytes:
    """Sends at once, and the end."""
    with contextlib.suppress(OSError):
        await send(sock, b"hello")
        sock.shutdown(socket.SHUT_WR)
    return await receive(sock)


async def listens(sock: socket.socket) -> bytes:
    return await receive(sock)


async def resets(sock: socket.socket) -> None:
    await send(sock, b"hello")
    await receive(sock, 5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class StaysOpen(Told):
    """Answers after the end of the stream, and is then told nothing of it again."""

    def eof_received(self) -> bool:
        self.note("eof", self.transport.is_closing())
        asyncio.get_running_loop().call_later(0.01, self.answer)
        return True

    def answer(self) -> None:
        self.transport.writelines(
            [b"to ", bytearray(b"be "), memoryview(b"sure")]
        )  # asyncio of Python 3.13 never closes after b""
        self.transport.close()
        self.note("closed", self.transport.is_closing(), self.transport.is_reading())
        self.transport.close()


class ClosesAtOnce(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.close()
        self.note("closing", transport.is_closing())


class AbortsAtOnce(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.abort()
        transport.abort()
        transport.close()
        transport.write(b"nothing")


class WritesMuchAndCloses(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.write(BIG)
        transport.close()
        self.note("closing", transport.is_closing(), transport.get_write_buffer_size() > 0)


class WritesMuchAndAborts(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(0.05, transport.abort)
        transport.write(BIG)


class RaisesOnData(Told):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        raise ZeroDivisionError


class RaisesOnEof(Told):
    def eof_received(self) -> None:
        super().eof_received()
        raise ZeroDivisionError


class RaisesWhenMade(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        raise ZeroDivisionError


class RaisesWhenLost(Told):
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        raise ZeroDivisionError


class ClosesOnData(Told):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(b"bye")
        self.transport.close()


class PausesFirst(Echo):
    """Reads nothing for a while."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        transport.pause_reading()
        self.note("reading", transport.is_reading())
        asyncio.get_running_loop().call_later(0.05, self.go_on)

    def go_on(self) -> None:
        self.note("before")
        self.transport.resume_reading()
        self.transport.resume_reading()
        self.note("reading", self.transport.is_reading())


class Waits(Told):
    """Writes until told to stop, goes on when told, and closes."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=100_000, low=5_000)
        self.note("limits", transport.get_write_buffer_limits())
        transport.write(BIG)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.note("little is left", self.transport.get_write_buffer_size() <= 5_000)
        asyncio.get_running_loop().call_soon(self.transport.close)  # asyncio's own stumbles over a close in here


class EndsFirst(Told):
    """Says that nothing more will be said, and listens."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.note("can", transport.can_write_eof())
        transport.write(b"all")
        transport.write_eof()
        transport.write_eof()
        try:
            transport.write(b"more")
        except RuntimeError as error:
            self.note(str(error))


async def listens_first(sock: socket.socket) -> bytes:
    got = await receive(sock)
    await send(sock, b"heard")
    return got


class Refuses(Told):
    """Mistakes, which change nothing."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        for wrong in ("text", 5, None):
            try:
                transport.write(wrong)
            except TypeError:
                self.note("TypeError")
        for high, low in ((5, 6), (-1, None), (None, -1)):
            try:
                transport.set_write_buffer_limits(high, low)
            except ValueError:
                self.note("ValueError")
        transport.set_write_buffer_limits(low=10)
        self.note(transport.get_write_buffer_limits())
        memory = bytearray(b"as it was")
        transport.write(memory)
        memory[:] = b"no longer"
        transport.close()


class Knows(Told):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        sock = transport.get_extra_info("socket")
        self.note(peer[0], here[0], transport.get_extra_info("sslcontext"), transport.get_extra_info("nothing", 5))
        self.note(sock.getpeername() == peer, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        self.note(transport.get_protocol() is self, isinstance(transport, asyncio.Transport) or "uvloop")
        transport.close()


class Buffered(asyncio.BufferedProtocol, Told):
    """Takes seven bytes at a time, and sends them back."""

    def get_buffer(self, sizehint: int) -> bytearray:
        self.memory = bytearray(7)
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        self.note("data", bytes(self.memory[:nbytes]))
        self.transport.write(self.memory[:nbytes])


class BufferedEmpty(Buffered):
    def get_buffer(self, sizehint: int) -> bytearray:
        return bytearray()


class BufferedRaises(Buffered):
    def buffer_updated(self, nbytes: int) -> None:
        raise ZeroDivisionError


class BufferedCloses(Buffered):
    """Closes in the middle of a chunk."""

    def buffer_updated(self, nbytes: int) -> None:
        self.note("data", b"some")
        self.transport.close()


class Changes(Told):
    """Another protocol takes over after the first data."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        other = Buffered() if data == b"hello" else Echo()
        other.transport, other.notes, other.lost = self.transport, self.notes, self.lost
        self.transport.set_protocol(other)
        self.note("is", self.transport.get_protocol() is other)
        self.transport.write(b"after")


async def asks_twice(sock: socket.socket) -> bytes:
    await send(sock, b"hello")
    got = await receive(sock, 5)
    await send(sock, b"to the other one")
    got += await receive(sock, 16)
    sock.shutdown(socket.SHUT_WR)
    return got + await receive(sock)


async def reads_late(sock: socket.socket) -> bytes:
    await asyncio.sleep(0.1)
    return await receive(sock)


SCRIPTS: list[tuple[type[Told], Client]] = [
    (Echo, talks),
    (Echo, says_little),
    (Echo, resets),
    (StaysOpen, says_little),
    (ClosesAtOnce, listens),
    (AbortsAtOnce, listens),
    (WritesMuchAndCloses, listens),
    (RaisesOnData, says_little),
    (RaisesOnEof, says_little),
    (RaisesWhenMade, says_little),
    (RaisesWhenLost, says_little),
    (ClosesOnData, says_little),
    (PausesFirst, says_little),
    (Waits, reads_late),
    (EndsFirst, listens_first),
    (Refuses, listens),
    (Knows, listens),
    (Buffered, talks),
    (Buffered, says_little),
    (BufferedEmpty, says_little),
    (BufferedRaises, says_little),
    (BufferedCloses, says_little),
    (Changes, asks_twice),
]


async def play(server: Any, made: "asyncio.Future[Told]", client: Client) -> tuple[Any, ...]:
    """One connection to `server`; what its protocol, its client, and the exception handler have to tell."""
    loop = asyncio.get_running_loop()
    problems: list[str] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: problems.append(repr(type(context.get("exception")))))
    try:
        async with server:
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, server.sockets[0].getsockname())
                got = await client(sock)
            protocol = await made
            await protocol.lost
            for _ in range(3):
                await asyncio.sleep(0)
            return protocol.notes, got, problems
    finally:
        loop.set_exception_handler(before)


def once(kind: type[Told], made: "asyncio.Future[Told]") -> Callable[[], Told]:
    """A factory for one connection."""

    def make() -> Told:
        protocol = kind()
        made.set_result(protocol)
        return protocol

    return make


EXPECTED: dict[tuple[type[Told], Client], tuple[Any, ...]] = {}


def expected(kind: type[Told], client: Client) -> tuple[Any, ...]:
    """How asyncio plays a script."""
    if (kind, client) in EXPECTED:
        return EXPECTED[kind, client]

    async def reference() -> tuple[Any, ...]:
        loop = asyncio.get_running_loop()
        made = loop.create_future()
        return await play(await loop.create_server(once(kind, made), HOST, 0), made, client)

    def run() -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            EXPECTED[kind, client] = runner.run(reference())

    thread = threading.Thread(target=run)  # this one has a loop that runs
    thread.start()
    thread.join()
    return EXPECTED[kind, client]


@pytest.mark.parametrize(("kind", "client"), SCRIPTS, ids=lambda each: each.__name__)
async def test_protocols_are_told_the_same(kind: type[Told], client: Client, ring: AsyncRing) -> None:
    """What asyncio's transports tell a protocol, ours tell."""
    made = asyncio.get_running_loop().create_future()
    server = await aiouring.create_server(once(kind, made), HOST, 0, ring=ring)
    assert await play(server, made, client) == expected(kind, client)


# ---- what asyncio's do not do, or differently ------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; ours and the peer's, which does not block."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


async def closed(transport: Transport) -> None:
    """Close, and wait for all of it."""
    transport.abort()
    await transport._connection.wait_closed()


async def test_what_had_come_is_the_first_data(ring: AsyncRing, pair: Pair) -> None:
    """A connection that was read from before goes on where that stopped: framed bytes, then chunks."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    pair[1].send(b"GET / upgrade, please")
    assert await connection.receive_until(b" ") == b"GET "
    protocol = Told()
    transport = Transport(connection, protocol)
    await send(pair[1], b" and more")
    pair[1].shutdown(socket.SHUT_WR)
    await protocol.lost
    assert protocol.notes == [("made",), ("data", b"/ upgrade, please and more"), ("eof",), ("lost", type(None))]
    await closed(transport)


async def test_who_cannot_have_a_transport(ring: AsyncRing, pair: Pair) -> None:
    """A connection that is closed, that a task reads from or a transport has, and a group that raises."""
    loop = asyncio.get_running_loop()
    group = ring.register_buffer_ring(count=4, size=64)
    async with Connection(ring, pair[0], group) as connection:
        for receiving in (connection.receive(), connection.receive_exactly(5)):
            task = loop.create_task(receiving)
            await asyncio.sleep(0)
            with pytest.raises(aiouring.ResourceBusyError):
                Transport(connection, Told())
            task.cancel()
            await asyncio.wait([task])
        transport = Transport(connection, Told())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError):
            Transport(connection, Told())
        with pytest.raises(aiouring.ResourceBusyError):
            await connection.receive()
        await closed(transport)
    with pytest.raises(ValueError, match="closed"):
        Transport(connection, Told())
    raises = ring.register_buffer_ring(count=4, size=64, on_empty="raise")
    async with Connection(ring, pair[1], raises) as other:
        with pytest.raises(ValueError, match="on_empty"):
            Transport(other, Told())


async def test_a_received_buffer_can_be_written(ring: AsyncRing, pair: Pair) -> None:
    """As with a connection, its lease ends and it goes back when it is sent."""
    group = ring.register_buffer_ring(count=4, size=64)
    connection = Connection(ring, pair[0], group)
    await send(pair[1], b"hello")
    chunk = await connection.receive()
    transport = Transport(connection, Told())
    transport.write(chunk)
    assert await receive(pair[1], 5) == b"hello"
    assert group.statistics().in_use == 0
    await closed(transport)


async def test_empty_writes_are_nothing(ring: AsyncRing, pair: Pair) -> None:
    """Between others, alone, and before a close, which they do not hold up."""
    protocol = Told()
    group = ring.register_buffer_ring(count=4, size=64)
    transport = Transport(Connection(ring, pair[0], group), protocol)
    transport.writelines([b"", b"one", bytearray(), b" two", memoryview(b"")])
    assert transport.get_write_buffer_size() == 7
    transport.close()
    transport.write(b"")
    assert await receive(pair[1]) == b"one two"
    await protocol.lost
    await closed(transport)


async def test_one_who_is_paused_holds_no_buffer(ring: AsyncRing) -> None:
    """What comes for paused protocols is kept apart, and not without bound: the group serves the others."""
    group = ring.register_buffer_ring(count=4, size=64)
    quiet, busy = Told(), Echo()
    flood = Random(6).randbytes(3_000_000)
    paused, peer = socket.socketpair()
    other, talker = socket.socketpair()
    for sock in (peer, talker):
        sock.setblocking(False)
    transports = [Transport(Connection(ring, sock, group), p) for sock, p in ((paused, quiet), (other, busy))]
    transports[0].pause_reading()
    sending = asyncio.ensure_future(send(peer, flood))
    for _ in range(20):
        await send(talker, b"hello")
        assert await receive(talker, 5) == b"hello"
    assert not sending.done()
    assert group.statistics().in_use == 0
    assert sum(map(len, transports[0]._taker._held or ())) <= 64 * 64
    assert quiet.notes == [("made",)]
    transports[0].resume_reading()
    await sending
    peer.shutdown(socket.SHUT_WR)
    await quiet.lost
    assert quiet.notes[1] == ("data", flood)
    for transport in transports:
        await closed(transport)
    peer.close()
    talker.close()


async def test_pausing_again_and_again_keeps_little(ring: AsyncRing, pair: Pair) -> None:
    """One who takes a chunk and pauses, over and over, gets all in order, and never has more than a bound kept."""
    group = ring.register_buffer_ring(count=16, size=64)
    most = 0

    class Nibbles(Told):
        def data_received(self, data: bytes) -> None:
            nonlocal most
            super().data_received(data)
            most = max(most, sum(map(len, transport._taker._held or ())))
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    protocol = Nibbles()
    transport = Transport(Connection(ring, pair[0], group), protocol)
    data = Random(7).randbytes(300_000)
    await send(pair[1], data)
    pair[1].shutdown(socket.SHUT_WR)
    await protocol.lost
    assert protocol.notes[1] == ("data", data)
    assert most <= 3 * 16 * 64
    await closed(transport)


async def test_a_ring_that_is_closed(new_ring: RingFactory) -> None:
    """Protocols learn of it, once: those that read, those that are paused, and those that cannot send."""
    ring = await new_ring()
    protocols, peers, transports = [], [], []
    group = ring.register_buffer_ring(count=8, size=64)
    for kind in range(3):
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        protocols.append(Told())
        transports.append(Transport(Connection(ring, ours, group), protocols[-1]))
        if kind == 1:
            transports[-1].pause_reading()
        if kind == 2:
            transports[-1].write(BIG)
    await asyncio.sleep(0.01)
    await ring.aclose()
    for protocol, transport, peer in zip(protocols, transports, peers, strict=True):
        await protocol.lost
        assert protocol.notes[-1] == ("lost", aiouring.RingClosedError)
        assert [note[0] for note in protocol.notes].count("lost") == 1
        transport.write(b"nobody hears this")
        await transport._connection.wait_closed()
        peer.close()


async def test_nothing_is_left_of_a_lost_connection(ring: AsyncRing, pair: Pair) -> None:
    """Transport and protocol go when nobody has them, without the garbage collector."""
    group = ring.register_buffer_ring(count=4, size=64)
    protocol = Echo()
    transport = Transport(Connection(ring, pair[0], group), protocol)
    await send(pair[1], b"hello")
    assert await receive(pair[1], 5) == b"hello"
    pair[1].close()
    await protocol.lost
    await transport._connection.wait_closed()
    await asyncio.sleep(0)
    seen = weakref.ref(transport), weakref.ref(protocol)
    gc.collect()
    gc.disable()
    try:
        del transport, protocol
        assert [each() for each in seen] == [None, None]
    finally:
        gc.enable()


async def test_the_context_is_the_makers(ring: AsyncRing, pair: Pair) -> None:
    """Every callback runs in the context in which its transport was made, whoever else runs in the same turn."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    group = ring.register_buffer_ring(count=8, size=64)

    class Looks(Echo):
        def note(self, *what: Any) -> None:
            super().note(*what, variable.get())
            variable.set(variable.get() + "+")

    protocols, peers = [], []
    for name in ("one", "two"):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        variable.set(name)
        protocols.append(Looks())
        Transport(Connection(ring, ours, group), protocols[-1])
        peers.append(theirs)
    variable.set("another")
    for peer in peers:
        await send(peer, b"hello")
    for peer in peers:
        assert await receive(peer, 5) == b"hello"
        peer.close()
    for protocol, name in zip(protocols, ("one", "two"), strict=True):
        await protocol.lost
        assert [note[-1] for note in protocol.notes] == [name + "+" * count for count in range(4)]
        await protocol.transport._connection.wait_closed()


async def test_streams_of_asyncio_on_a_transport(ring: AsyncRing) -> None:
    """A protocol that pauses and resumes all the time: asyncio's own reader and writer, through 5 MB and back."""
    loop = asyncio.get_running_loop()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(50_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    tasks: list[asyncio.Task[None]] = []

    def make() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=1000)

        def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(loop.create_task(echo(reader, writer)))

        return asyncio.StreamReaderProtocol(reader, start)

    async with await aiouring.create_server(make, HOST, 0, ring=ring) as server:
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, server.sockets[0].getsockname())
            sending = asyncio.ensure_future(send(sock, BIG[:5_000_000]))
            assert await receive(sock, 5_000_000) == BIG[:5_000_000]
            await sending
            sock.shutdown(socket.SHUT_WR)
            assert await receive(sock) == b""
        await asyncio.gather(*tasks)


async def test_a_firehose_both_ways(ring: AsyncRing) -> None:
    """Many connections echo at once, with pauses in both directions; every byte comes back, in order."""
    group = ring.register_buffer_ring(count=8, size=512)

    class Paces(Echo):
        def pause_writing(self) -> None:
            self.transport.pause_reading()

        def resume_writing(self) -> None:
            self.transport.resume_reading()

        def note(self, *what: Any) -> None:
            """Not the data: this one is for speed."""

    async def one(number: int, address: Any) -> None:
        data = Random(number).randbytes(1_000_000)
        with socket.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, address)
            sending = asyncio.ensure_future(send(sock, data))
            await asyncio.sleep(0.01 * (number % 3))
            assert await receive(sock, len(data)) == data
            await sending

    async with await aiouring.create_server(Paces, HOST, 0, ring=ring, group=group) as server:
        await asyncio.gather(*(one(number, server.sockets[0].getsockname()) for number in range(8)))
