"""Tests of StreamReader and StreamWriter: handlers written for asyncio.start_server() do the same on ours.

Each handler runs under asyncio's own server and under ours, with the same client; what the client got, what the
handler noted and what the loop's exception handler was told must be equal.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import aiouring
from aiouring import AsyncRing, Connection, StreamReader, StreamWriter

HOST = "127.0.0.1"
LIMIT = 100

Notes = list[Any]
Client = Callable[[socket.socket], Awaitable[bytes]]
Handler = Callable[[Any, Any, Notes], Awaitable[None] | None]


async def read_all(sock: socket.socket) -> bytes:
    """Everything to the end of the stream, or to its reset."""
    got = b""
    try:
        while data := await asyncio.get_running_loop().sock_recv(sock, 100_000):
            got += data
    except ConnectionResetError:
        got += b"(reset)"
    return got


def says(data: bytes) -> Client:
    """A client that sends `data` and the end, and reads everything."""

    async def client(sock: socket.socket) -> bytes:
        await asyncio.get_running_loop().sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)
        return await read_all(sock)

    return client


# ---- handlers, as somebody wrote them for asyncio --------------------------------------------------


async def shout(reader: Any, writer: Any, notes: Notes) -> None:
    """Line by line, in capitals."""
    async for line in reader:
        writer.write(line.upper())
        await writer.drain()
    notes.append(reader.at_eof())
    writer.close()
    await writer.wait_closed()
    notes.append(writer.is_closing())


async def until_eof(reader: Any, writer: Any, notes: Notes) -> None:
    """The other usual loop."""
    while not reader.at_eof():
        data = await reader.read(7)
        if len(data) > 7 or (not data and not reader.at_eof()):
            notes.append(data)
        if data:  # asyncio of Python 3.13 never closes after an empty one
            writer.writelines([data, data])
    writer.close()


async def framed(reader: Any, writer: Any, notes: Notes) -> None:
    """Messages with their length in front, until the stream ends in the middle of one."""
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(2), "big")
            message = await reader.readexactly(size)
            writer.write(message[::-1])
    except asyncio.IncompleteReadError as error:
        notes.append((error.partial, error.expected))
    notes.append(await reader.readexactly(0))
    for wrong in (reader.readexactly(-1), reader.readuntil(b"")):
        try:
            await wrong
        except ValueError:
            notes.append("ValueError")
    writer.close()


async def separated(reader: Any, writer: Any, notes: Notes) -> None:
    """Separators and limits."""
    notes.append(await reader.readuntil(b"\r\n"))
    for _ in range(3):
        try:
            notes.append(await reader.readuntil(b";"))
        except asyncio.LimitOverrunError as error:
            notes.append(error.consumed)
            notes.append(await reader.readexactly(error.consumed))
            notes.append(await reader.readexactly(1))
    for _ in range(4):
        try:
            notes.append(await reader.readline())
        except ValueError as error:
            notes.append(type(error))
    notes.append(await reader.readline())
    try:
        await reader.readuntil()
    except asyncio.IncompleteReadError as error:
        notes.append((error.partial, error.expected))
    writer.write(b"done")
    writer.close()


async def everything_first(reader: Any, writer: Any, notes: Notes) -> None:
    """Read to the end, answer, say that this was all."""
    data = await reader.read()
    notes.append((len(data), await reader.read(), await reader.read(5), await reader.readline(), await reader.read(0)))
    notes.append(writer.can_write_eof())
    for _ in range(20):
        writer.write(data)
    writer.write_eof()
    writer.write_eof()
    try:
        writer.write(b"more")
    except RuntimeError as error:
        notes.append(str(error))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def eof_at_once(reader: Any, writer: Any, notes: Notes) -> None:
    """Say first that nothing will be said, and listen."""
    writer.write_eof()
    notes.append(await reader.read())
    writer.close()


async def about_the_connection(reader: Any, writer: Any, notes: Notes) -> None:
    """What can be known of it."""
    peer, here = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    notes.append((peer[0], here[0], writer.get_extra_info("sslcontext"), writer.get_extra_info("nothing", 5)))
    sock = writer.get_extra_info("socket")
    notes.append((sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0, sock.getpeername() == peer))
    notes.append((writer.transport.get_extra_info("peername") == peer, reader.exception()))
    notes.append((writer.is_closing(), writer.transport.get_write_buffer_size()))
    writer.close()
    writer.close()
    await writer.wait_closed()
    notes.append((writer.is_closing(), await reader.read(1), await reader.readline(), reader.at_eof()))
    try:
        with contextlib.suppress(RuntimeError):  # uvloop's
            writer.write(b"into the void")
        await writer.drain()
    except ConnectionResetError as error:
        notes.append(type(error))
    try:
        await reader.readexactly(1)
    except asyncio.IncompleteReadError as error:
        notes.append((error.partial, error.expected))


async def failing(reader: Any, writer: Any, notes: Notes) -> None:
    """An error after an answer, which the client gets all the same."""
    writer.write(b"an error happened")
    notes.append(await reader.readline())
    raise KeyError("deliberate")


async def aborting(reader: Any, writer: Any, notes: Notes) -> None:
    """Leave without sending."""
    await reader.readline()
    writer.transport.abort()
    await writer.wait_closed()
    notes.append(await reader.read())


_tasks: set["asyncio.Task[None]"] = set()


def plain(reader: Any, writer: Any, notes: Notes) -> None:
    """A plain function, which leaves the work to a task."""

    async def later() -> None:
        writer.write(await reader.readline())
        await asyncio.sleep(0)
        writer.close()

    task = asyncio.ensure_future(later())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def firehose(reader: Any, writer: Any, notes: Notes) -> None:
    """Write until the client has had enough."""
    try:
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()
    except ConnectionError:
        notes.append("gone")
    with contextlib.suppress(RuntimeError):  # uvloop's
        writer.write(b"nobody hears this, and nobody minds")
    try:
        await writer.drain()
    except ConnectionError:
        notes.append("still gone")
    writer.close()


async def reset(sock: socket.socket) -> bytes:
    """A client that leaves in the middle, rudely."""
    got = await asyncio.get_running_loop().sock_recv(sock, 10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    return got


LINES = b"one\ntwo\n\nlast without an end"
MESSAGES = b"\0\5hello\0\0\1\0" + b"x" * 256 + b"\0\7short"
SEPARATED = (
    b"head\r\n" + b"a" * LIMIT + b";" + b"b" * (LIMIT + 1) + b";" + b"c;" + b"line\n" + b"d" * 300 + b"\nafter\nend"
)

CASES: list[tuple[Handler, Client]] = [
    (shout, says(LINES)),
    (shout, says(b"")),
    (until_eof, says(LINES)),
    (framed, says(MESSAGES)),
    (separated, says(SEPARATED)),
    (everything_first, says(b"0123456789" * 10_000)),
    (eof_at_once, says(b"hello")),
    (about_the_connection, says(b"")),
    (failing, says(b"hello\n")),
    (aborting, says(b"hello\n")),
    (plain, says(b"hello\n")),
    (firehose, reset),
]


async def run(start: Callable[..., Awaitable[Any]], handler: Handler, client: Client) -> tuple[bytes, Notes, list[str]]:
    """One client of one server; what it got, what the handler noted, and what it raised."""
    notes: Notes = []
    problems: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(repr(context.get("exception"))))
    done = loop.create_future()

    async def serve(reader: Any, writer: Any) -> None:
        try:
            await handler(reader, writer, notes)  # type: ignore[misc]
        finally:
            done.set_result(None)

    def serve_plainly(reader: Any, writer: Any) -> None:
        handler(reader, writer, notes)
        done.set_result(None)

    server = await start(serve_plainly if handler is plain else serve, HOST, 0, limit=LIMIT)
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        got = await client(sock)
        await done
        for _ in range(3):
            await asyncio.sleep(0)
    server.close()
    await server.wait_closed()
    return got, notes, problems


@pytest.mark.parametrize(("handler", "client"), CASES, ids=[handler.__name__ for handler, _ in CASES])
async def test_the_same_handler(ring: AsyncRing, handler: Handler, client: Client) -> None:
    """A handler does on our streams what it does on asyncio's."""

    async def start(*arguments: Any, **options: Any) -> aiouring.Server:
        return await aiouring.start_server(*arguments, ring=ring, streams=True, **options)

    async with asyncio.timeout(20):
        theirs = await run(asyncio.start_server, handler, client)
        ours = await run(start, handler, client)
    assert ours == theirs


async def streams(ring: AsyncRing, limit: int = LIMIT) -> tuple[StreamReader, StreamWriter, socket.socket]:
    """A pair of ours on one end, and the other end."""
    left, right = socket.socketpair()
    right.setblocking(False)
    connection = Connection(ring, left, ring.register_buffer_ring(count=4, size=64))
    return StreamReader(connection, limit=limit), StreamWriter(connection), right


async def test_cancelled_reads_lose_nothing(ring: AsyncRing) -> None:
    """Where asyncio's read() loses what it had gathered, ours has it for the next."""
    reader, writer, peer = await streams(ring)
    with peer:
        for read in (reader.read, reader.readline, lambda: reader.readexactly(100), lambda: reader.readuntil(b"!")):
            reading = asyncio.ensure_future(read())
            peer.send(b"hello")
            async with asyncio.timeout(10):
                while reader._framing.unread != b"hello":
                    await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_a_lost_connection(ring: AsyncRing) -> None:
    """After a reset, what came before can be read; then the error is told by read(), drain() and exception()."""
    with socket.create_server((HOST, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    connection = Connection(ring, server, ring.register_buffer_ring(count=4, size=64))
    reader, writer = StreamReader(connection), StreamWriter(connection)
    client.send(b"last words")
    assert await reader.readexactly(5) == b"last "
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    async with asyncio.timeout(10):
        while reader.exception() is None:
            await asyncio.sleep(0)
    assert not reader.at_eof()
    assert await reader.read(10) == b"words"
    assert not reader.at_eof()
    with pytest.raises(ConnectionResetError):
        await reader.read(10)
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert reader.exception() is None


async def test_closing_while_writing_ends(ring: AsyncRing) -> None:
    """The end of writing waits for what is queued, and so does close(): the peer gets everything."""
    reader, writer, peer = await streams(ring)
    with peer:
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        writer.close()
        assert writer.is_closing()
        assert await read_all(peer) == b"x" * 1_000_000
        await writer.wait_closed()
        assert await reader.read() == b""
        assert "closed" in repr(reader) + repr(writer)


async def test_waiting_for_a_close_by_others(ring: AsyncRing) -> None:
    """wait_closed() ends when somebody closes the connection; giving it up changes nothing."""
    _, writer, peer = await streams(ring)
    with peer:
        waiting = [asyncio.ensure_future(writer.wait_closed()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert not waiting[1].done()
        await writer._connection.aclose()
        await waiting[1]


async def test_what_is_refused(ring: AsyncRing) -> None:
    """Arguments that make no sense are refused at once."""
    with pytest.raises(ValueError, match="limit=0"):
        await aiouring.start_server(print, HOST, 0, ring=ring, streams=True, limit=0)
    reader, writer, peer = await streams(ring)
    with peer:
        with pytest.raises(ValueError, match="limit=0"):
            StreamReader(writer._connection, limit=0)
        with pytest.raises(TypeError, match="str"):
            writer.write("text")
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)
        writer.close()
        await writer.wait_closed()
