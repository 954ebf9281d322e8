"""Tests of TLSSending: what shares a record, how far encryption runs ahead, and the end."""

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tls_certificates import NAME, client_context, server_context

import aiouring
from aiouring import AsyncRing, BufferRing, Connection
from aiouring._sending import HIGH_WATER
from aiouring._tls import RECORD, Engine, TLSSettings
from aiouring._tls_sending import CHUNK, FULL, TLSSending


class Peer:
    """The other end of a TLS connection, on a bare socket: it sees records, and reads only when told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.engine = Engine(TLSSettings(client_context(), False, NAME, 1, 1))
        sock.setblocking(False)

    async def shake(self) -> None:
        """The handshake."""
        loop = asyncio.get_running_loop()
        self.engine.decrypt()
        while True:
            await loop.sock_sendall(self.sock, self.engine.take())
            if self.engine.shaken:
                return
            self.engine.feed(await loop.sock_recv(self.sock, 65536))
            self.engine.decrypt()

    async def records(self, count: int) -> list[int]:
        """The lengths of the next `count` records."""
        loop, data = asyncio.get_running_loop(), b""
        lengths: list[int] = []
        while len(lengths) < count or data:
            if len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
                data += await loop.sock_recv(self.sock, 65536)
                continue
            whole = 5 + int.from_bytes(data[3:5], "big")
            self.engine.feed(data[:whole])
            lengths.append(whole)
            data = data[whole:]
        return lengths

    async def read(self, count: int) -> bytes:
        """Read until `count` bytes of plaintext are there."""
        got = self.engine.decrypt()
        while len(got) < count:
            self.engine.feed(await asyncio.get_running_loop().sock_recv(self.sock, 65536))
            got += self.engine.decrypt()
        return got

    async def send(self, data: bytes) -> None:
        """Send something."""
        self.engine.encrypt(memoryview(data))
        await asyncio.get_running_loop().sock_sendall(self.sock, self.engine.take())


@pytest_asyncio.fixture
async def group(ring: AsyncRing) -> BufferRing:
    """Buffers for connections made by hand."""
    return ring.register_buffer_ring(count=16, size=1024)


Ends = tuple[Connection, Peer]


@pytest_asyncio.fixture
async def ends(ring: AsyncRing, group: BufferRing) -> AsyncIterator[Ends]:
    """A TLS connection as a server, and its peer, which has read the tickets."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection, peer = Connection(ring, ours, group), Peer(theirs)
    starting = asyncio.ensure_future(
        connection.start_tls(server_context(), server_side=True, ssl_shutdown_timeout=0.15)
    )
    await peer.shake()
    await starting
    await connection.send(b"!")
    assert await peer.read(1) == b"!"
    yield connection, peer
    connection.abort()
    await connection.aclose()
    theirs.close()


def sending(connection: Connection) -> TLSSending:
    """Its sending half."""
    assert isinstance(connection._sending, TLSSending)
    return connection._sending


async def test_a_turns_writes_share_a_record(ends: Ends) -> None:
    """Small parts written in one turn of the loop are one record, and those of the next another."""
    connection, peer = ends
    for _ in range(100):
        connection.write(b"x" * 10)
    assert connection.statistics().to_send == 1000
    first = await peer.records(1)
    assert len(first) == 1
    assert 1000 < first[0] < 1100
    connection.write(b"y")
    assert len(await peer.records(1)) == 1
    assert await peer.read(1001) == b"x" * 1000 + b"y"


async def test_the_bytes_are_those_of_the_call(ends: Ends, group: BufferRing) -> None:
    """A bytearray may be changed at once; a lent buffer is handed over, unless a view of it is alive."""
    connection, peer = ends
    data = bytearray(b"as it was")
    connection.write(data)
    data[:] = b"different"
    connection.write(memoryview(b"a view")[2:])
    await peer.send(b"a chunk of it")
    chunk = await connection.receive()
    part = chunk.view[2:7]
    with pytest.raises(BufferError, match="slice"):
        connection.write(chunk)
    part.release()
    del part
    connection.write(chunk)
    with pytest.raises(ValueError, match="released"):
        connection.write(chunk)
    connection.write(b"")
    assert await peer.read(26) == b"as it wasviewa chunk of it"
    assert group.statistics().in_use == 0


async def test_a_buffer_of_the_group(ring: AsyncRing, ends: Ends, group: BufferRing) -> None:
    """A buffer that was received in plain and is sent by TLS goes back to its group."""
    connection, peer = ends
    left, right = socket.socketpair()
    async with Connection(ring, left, group) as plain:
        right.send(b"passed on")
        connection.write(await plain.receive())
        assert await peer.read(9) == b"passed on"
    right.close()
    assert group.statistics().in_use == 0


async def test_encryption_waits_for_the_kernel(ends: Ends) -> None:
    """Of many bytes only a few are ciphertext at a time; drain() waits, and all of them arrive."""
    connection, peer = ends
    data = os.urandom(5_000_000)
    connection.write(data)
    connection.write(data)
    draining = asyncio.ensure_future(connection.drain())
    reading = asyncio.ensure_future(peer.read(2 * len(data)))
    most = 0
    while not reading.done():
        await asyncio.sleep(0)
        most = max(most, connection._sending.raw.pending)
        assert connection._sending.raw.crowded or connection.statistics().to_send < HIGH_WATER + RECORD
    assert await reading == data + data
    await draining
    assert FULL // 2 < most <= FULL + CHUNK + CHUNK // 100
    assert connection.statistics().to_send == 0


async def test_after_the_end(ends: Ends) -> None:
    """After send_eof() nothing can be sent, in words that say why; receiving goes on."""
    connection, peer = ends
    connection.write(b"last")
    await connection.send_eof()
    await connection.send_eof()
    assert await peer.read(4) == b"last"
    for write in (connection.write, connection.send):
        with pytest.raises(BrokenPipeError, match=r"send_eof\(\)"):
            await write(b"more")  # type: ignore[misc]
    await peer.send(b"answer")
    assert await connection.receive_exactly(6) == b"answer"


async def test_closing_does_not_wait_for_ever(ends: Ends) -> None:
    """A peer that takes nothing for ssl_shutdown_timeout seconds is left; others who wait are told."""
    connection, _ = ends
    connection.write(b"x" * 1_000_000)
    waiting = asyncio.ensure_future(connection.send(b"y"))
    await asyncio.sleep(0)
    before = time.monotonic()
    await connection.aclose()
    assert 0.14 < time.monotonic() - before < 5
    with pytest.raises(ConnectionAbortedError):
        await waiting


async def test_closing_waits_for_a_slow_peer(ends: Ends) -> None:
    """One that takes a little all the time is waited for, however long it takes in all; it gets all of it."""
    connection, peer = ends
    data = os.urandom(6 * FULL)
    sending(connection)._timeout = 0.5
    connection.write(data)
    before = time.monotonic()
    closing = asyncio.ensure_future(connection.aclose())
    got = b""
    while not peer.engine.ended:
        peer.engine.feed(await asyncio.get_running_loop().sock_recv(peer.sock, 8192))
        got += peer.engine.decrypt()
        await asyncio.sleep(0.005)
    await closing
    assert got == data
    assert time.monotonic() - before > 0.6


@pytest.mark.parametrize("way", ["read", "never read", "abort", "reset"])
async def test_closing_survives_what_nobody_waits_for(ring: AsyncRing, group: BufferRing, way: str) -> None:
    """What arrives unasked, as tickets do, while the rest is on its way, does not have the kernel drop that rest."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    connection, peer = Connection(ring, ours, group), Peer(theirs)
    timeout = 0.5 if way == "never read" else 30
    starting = asyncio.ensure_future(
        connection.start_tls(server_context(), server_side=True, ssl_shutdown_timeout=timeout)
    )
    await peer.shake()
    await starting
    data = os.urandom(200_000)
    await connection.send(data)  # the kernel has it, and the peer as much as its window takes
    closing = asyncio.ensure_future(connection.aclose())
    await asyncio.sleep(0.05)
    assert not closing.done()
    await peer.send(b"unasked for")
    if way == "abort":
        connection.abort()
    if way == "read":
        assert await peer.read(len(data)) == data
    if way == "reset":
        peer.sock.close()  # with what it has not read
    async with asyncio.timeout(10):
        await closing
    peer.sock.close()


async def test_a_failure_is_told_to_the_writer(ends: Ends) -> None:
    """Forged bytes end the connection: reader and writer get the ssl module's error, and the peer an alert."""
    connection, peer = ends
    waiting = asyncio.ensure_future(connection.receive())
    await asyncio.sleep(0)
    await asyncio.get_running_loop().sock_sendall(peer.sock, b"\x17\x03\x03\x00\x20" + b"forged" * 6)
    with pytest.raises(ssl.SSLError):
        await waiting
    with pytest.raises(ssl.SSLError):
        connection.write(b"more")
    with pytest.raises(ssl.SSLError):
        await connection.send()
    await asyncio.sleep(0.01)  # the alert is sent
    with pytest.raises(ssl.SSLError):
        await connection.drain()
    with pytest.raises(ssl.SSLError, match="ALERT"):
        await peer.read(1)


async def test_closing_after_a_failure(ends: Ends) -> None:
    """The peer of a connection that is closed right after TLS failed gets the alert that says why."""
    connection, peer = ends
    peer.sock.send(b"\x17\x03\x03\x00\x20" + b"forged" * 6)
    with pytest.raises(ssl.SSLError):
        await connection.receive()
    await connection.aclose()
    with pytest.raises(ssl.SSLError, match="ALERT"):
        await peer.read(1)


async def test_an_error_behind_good_bytes(ends: Ends) -> None:
    """What came in one piece with forged bytes is received first, then the error, although nothing more arrives."""
    connection, peer = ends
    peer.engine.encrypt(b"good")
    peer.sock.send(peer.engine.take() + b"\x17\x03\x03\x00\x20" + b"forged" * 6)
    assert await connection.receive_exactly(4) == b"good"
    async with asyncio.timeout(10):
        with pytest.raises(ssl.SSLError, match="(?i)record|decrypt"):
            await connection.receive()
        with pytest.raises(ssl.SSLError, match="ALERT"):
            await peer.read(1)


@pytest.mark.parametrize("way", ["abort", "send_eof"])
async def test_a_lent_buffer_that_is_refused(ring: AsyncRing, ends: Ends, way: str) -> None:
    """What was received elsewhere, and cannot be written any more, goes back to its group all the same."""
    connection, _ = ends
    group = ring.register_buffer_ring(count=2, size=64)
    ours, theirs = socket.socketpair()
    async with Connection(ring, ours, group) as other:
        theirs.send(b"hello")
        chunk = await other.receive()
        if way == "abort":
            connection.abort()
        else:
            await connection.send_eof()
        with pytest.raises(OSError, match="closed|send_eof"):
            connection.write(chunk)
        assert group.statistics().in_use == 0
        with pytest.raises(ValueError, match="released"):
            chunk.release()
    theirs.close()


async def test_only_in_its_thread(ends: Ends) -> None:
    """A write from another thread is refused, and changes nothing."""
    connection, peer = ends
    caught: list[Any] = []

    def elsewhere() -> None:
        for size in (1, 2 * RECORD):
            try:
                connection.write(b"x" * size)
            except aiouring.WrongContextError as error:
                caught.append(error)

    connection.write(b"a")
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    connection.write(b"b")
    assert await peer.read(2) == b"ab"
    assert len(caught) == 2


async def test_a_forks_child(ends: Ends) -> None:
    """In a fork's child the connection is refused; the parent's goes on as if nothing had been."""
    connection, peer = ends
    connection.write(b"a")
    child = os.fork()
    if not child:
        code = 1
        try:
            connection.write(b"from the child")
        except aiouring.WrongContextError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    connection.write(b"b")
    assert await peer.read(2) == b"ab"


async def test_a_peer_that_asks_for_a_handshake_and_goes(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for what can be encrypted only after the peer has answered hears that it will not."""
    connection, peer = ends
    monkeypatch.setattr(Engine, "encrypt", lambda *_: 0)  # as in a new handshake, which TLS 1.2 knows
    waiting = asyncio.ensure_future(connection.send(b"x"))
    await asyncio.sleep(0)
    peer.sock.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(10):
        with pytest.raises(BrokenPipeError, match="went"):
            await waiting


async def test_a_peer_that_makes_us_answer(ends: Ends) -> None:
    """One who has TLS answer without end, and does not read that, is left: our memory is not theirs."""
    connection, _ = ends
    half = sending(connection)
    outgoing = half._engine._outgoing
    connection.write(b"x" * 100_000)  # more than the sockets take
    await asyncio.sleep(0)
    for _ in range(9):
        outgoing.write(b"?" * (FULL // 10))  # stands for the answers to many key updates
        half.answer()
    outgoing.write(b"?" * (FULL // 10 + 10))
    with pytest.raises(ssl.SSLError, match="^the peer has not read"):
        half.answer()
    assert "bytes" in repr(half)
