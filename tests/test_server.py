"""Tests of start_server() and Server: serving, closing, handlers that fail, and a machine short of descriptors."""

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import RingFactory, echo, open_files

import aiouring
from aiouring import AsyncRing, Connection, Server, open_connection, open_unix_connection, start_server

HOST = "127.0.0.1"


async def never(connection: Connection) -> None:
    """Wait for what does not come."""
    await asyncio.get_running_loop().create_future()


async def connect(ring: AsyncRing, server: Server) -> Connection:
    """A connection to a server's first socket."""
    return await open_connection(*server.sockets[0].getsockname()[:2], ring=ring)


async def check_echo(connection: Connection, message: bytes = b"hello") -> None:
    """Have a message sent back, and the connection closed."""
    async with connection:
        await connection.send(message)
        await connection.send_eof()
        assert await connection.framing().rest() == message


class Problems(list[dict[str, Any]]):
    """What the loop's exception handler was told; without it, the fixture of the ring fails the test."""

    def __init__(self) -> None:
        super().__init__()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.append(context))


async def test_it_serves(ring: AsyncRing) -> None:
    """Many connections at once, each with a handler of its own; the face is asyncio.Server's."""
    group = ring.register_buffer_ring(count=16, size=512)
    async with await start_server(echo, HOST, 0, ring=ring, group=group, max_pending=2) as server:
        assert server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        assert HOST in repr(server)
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(check_echo(await connect(ring, server), b"%d" % number * 1000))
    assert not server.is_serving()
    assert server.sockets == ()
    assert "closed" in repr(server)
    server.close()
    await server.wait_closed()


async def test_on_the_default_ring() -> None:
    """Without a ring, the loop's own serves."""
    async with await start_server(echo, HOST, 0) as server:
        await check_echo(await open_connection(*server.sockets[0].getsockname()))
    await aiouring.default_ring().aclose()


async def test_every_kind_of_socket(ring: AsyncRing, tmp_path: Path) -> None:
    """Several hosts, a Unix path that is removed, and a given socket that is closed."""
    async with await start_server(echo, [HOST, "127.0.0.2"], 0, ring=ring) as server:
        assert len(server.sockets) == 2
        for listener in server.sockets:
            await check_echo(await open_connection(*listener.getsockname(), ring=ring))
    path = tmp_path / "socket"
    async with await start_server(echo, path=path, ring=ring):
        await check_echo(await open_unix_connection(path, ring=ring))
    assert not path.exists()
    given = socket.create_server((HOST, 0))
    given.setblocking(False)
    async with await start_server(echo, sock=given, ring=ring) as server:
        await check_echo(await connect(ring, server))
    assert given.fileno() == -1


async def test_nagle_is_off(ring: AsyncRing) -> None:
    """Accepted connections send at once, as asyncio's do."""
    seen = []

    async def look(connection: Connection) -> None:
        seen.append(connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with await start_server(look, HOST, 0, ring=ring) as server:
        async with await connect(ring, server) as connection:
            assert not await connection.receive()
    assert seen == [1]


async def test_what_is_refused(ring: AsyncRing) -> None:
    """A server listens on exactly one thing, and needs a handler."""
    for options in ({}, {"port": 0, "path": "x"}, {"host": HOST, "sock": socket.socket}):
        with pytest.raises(ValueError, match="exactly one"):
            await start_server(echo, ring=ring, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler"):
        await start_server(None, HOST, 0, ring=ring)  # type: ignore[arg-type]


async def test_a_graceful_close(ring: AsyncRing) -> None:
    """After close() nobody is accepted, a handler goes on until it ends, and wait_closed() waits for it."""
    async with await start_server(echo, HOST, 0, ring=ring) as server:
        address = server.sockets[0].getsockname()
        connection = await connect(ring, server)
        await connection.send(b"a")
        assert await connection.receive_exactly(1) == b"a"
        server.close()
        closing = asyncio.ensure_future(server.wait_closed())
        await asyncio.wait(list(server._accepting))
        with pytest.raises(ConnectionRefusedError):
            await open_connection(*address, ring=ring)
        assert not closing.done()
        await check_echo(connection)
        async with asyncio.timeout(10):
            await closing
    with pytest.raises(RuntimeError, match="closed"):
        await server.start_serving()


async def test_wait_closed_can_be_cancelled(ring: AsyncRing) -> None:
    """Giving up on the wait changes nothing for others who wait."""
    server = await start_server(echo, HOST, 0, ring=ring)
    waiting = [asyncio.ensure_future(server.wait_closed()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    assert server.is_serving()
    assert not waiting[1].done()
    server.close()
    await waiting[1]


async def test_serving_later(ring: AsyncRing) -> None:
    """With start_serving=False the kernel keeps connections until serving starts; one that never does is closed."""
    async with await start_server(echo, HOST, 0, ring=ring, start_serving=False) as server:
        assert not server.is_serving()
        connection = await connect(ring, server)
        connection.write(b"early")
        await server.start_serving()
        await server.start_serving()
        assert await connection.receive_exactly(5) == b"early"
        await connection.aclose()
    async with await start_server(echo, HOST, 0, ring=ring, start_serving=False):
        pass


@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_serve_forever(ring: AsyncRing, way: str) -> None:
    """It ends when it is cancelled, which closes the server, or by close(); only one task may be in it."""
    server = await start_server(echo, HOST, 0, ring=ring, start_serving=False)
    serving = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already"):
        await server.serve_forever()
    await check_echo(await connect(ring, server))
    if way == "cancel":
        serving.cancel()
    else:
        server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await server.wait_closed()
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()


@pytest.mark.parametrize("handler", [echo, never])
@pytest.mark.parametrize("way", ["close", "abort"])
async def test_clients_are_closed(ring: AsyncRing, way: str, handler: Callable[[Connection], Awaitable[None]]) -> None:
    """close_clients() sends what was written first, abort_clients() does not; handlers that wait for data end."""
    problems = Problems()
    handlers: list[Any] = []

    async def serve(connection: Connection) -> None:
        handlers.append(asyncio.current_task())
        connection.write(b"x" * 5_000_000)
        await handler(connection)

    server = await start_server(serve, HOST, 0, ring=ring)
    connection = await connect(ring, server)
    first = await connection.receive_exactly(1)
    server.close()
    if way == "close":
        server.close_clients()
        assert len(first + await connection.framing().rest()) == 5_000_000
    else:
        server.abort_clients()
        with contextlib.suppress(ConnectionResetError):
            assert len(await connection.framing().rest()) < 5_000_000
    if handler is never:
        handlers[0].cancel()
    async with asyncio.timeout(10):
        await server.wait_closed()
    await connection.aclose()
    assert problems == []


async def test_handlers_that_fail(ring: AsyncRing) -> None:
    """What a handler raises is reported, its connection aborted, and others are served on."""
    problems = Problems()

    async def fail(connection: Connection) -> None:
        if await connection.receive_exactly(1) == b"!":
            raise KeyError("deliberate")
        await connection.send(b"fine")

    async with await start_server(fail, HOST, 0, ring=ring) as server:
        for word, answer in ((b"!", b""), (b".", b"fine")):
            async with await connect(ring, server) as connection:
                await connection.send(word)
                assert await connection.framing().rest() == answer
    assert [str(problem["exception"]) for problem in problems] == ["'deliberate'"]
    assert problems[0]["server"] is server
    assert isinstance(problems[0]["connection"], Connection)


async def test_dismissed_handlers_that_fail_otherwise(ring: AsyncRing) -> None:
    """After close_clients() an abort is no news, in a group or alone; anything else is."""
    problems = Problems()

    async def receive(connection: Connection) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(connection.receive())

    async def trip(connection: Connection) -> None:
        try:
            await connection.receive()
        except ConnectionAbortedError:
            raise KeyError("deliberate") from None

    for handler, expected in ((receive, []), (trip, ["'deliberate'"])):
        async with await start_server(handler, HOST, 0, ring=ring) as server:
            connection = await connect(ring, server)
            while not server._clients:
                await asyncio.sleep(0)
            server.close_clients()
            assert not await connection.receive()
            await connection.aclose()
        assert [str(problem["exception"]) for problem in problems] == expected


async def test_cancelled_handlers(ring: AsyncRing) -> None:
    """A handler that is cancelled, even before it has begun, leaves no connection open, and is not reported."""
    problems = Problems()
    for turns in range(3):
        async with await start_server(never, HOST, 0, ring=ring) as server:
            connection = await connect(ring, server)
            while not server._clients:
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            next(iter(server._clients)).cancel()
            with await connection.receive() as chunk:
                assert not chunk
            await connection.aclose()
    assert problems == []


async def test_closing_the_ring_closes_the_server(new_ring: RingFactory) -> None:
    """Without its ring a server is closed."""
    ring = await new_ring()
    server = await start_server(echo, HOST, 0, ring=ring)
    await asyncio.sleep(0)
    await ring.aclose()
    async with asyncio.timeout(10):
        await server.wait_closed()
    assert not server.is_serving()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_end_of_the_program(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A server that is running when the loop ends leaves nothing open, and no warning."""

    async def main() -> socket.socket:
        server = await start_server(never, HOST, 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        while not server._clients:
            await asyncio.sleep(0)
        return client

    with asyncio.Runner(loop_factory=factory) as runner:
        client = runner.run(main())
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


async def test_without_descriptors(ring: AsyncRing, caplog: pytest.LogCaptureFixture) -> None:
    """A process without a free descriptor pauses, says so once, and serves again when there is one."""
    async with await start_server(echo, HOST, 0, ring=ring, start_serving=False) as server:
        await ring.nop()
        waiting = socket.socket()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        numbers = set(range(max(open_files()) + 2)) - set(open_files())
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(numbers), before[1]))
        try:
            waiting.setblocking(False)
            waiting.connect_ex(server.sockets[0].getsockname())
            await server.start_serving()  # now: the kernel remembers the limit from when the accept was armed
            with caplog.at_level(logging.WARNING, "aiouring"):
                while not caplog.records:
                    await asyncio.sleep(0)
                before_pauses = ring.statistics().submitted
                await asyncio.sleep(0.35)  # two more tries, after 0.1 and 0.3 s
                assert ring.statistics().submitted - before_pauses <= 8
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        waiting.send(b"hello")
        assert await asyncio.get_running_loop().sock_recv(waiting, 10) == b"hello"
        waiting.close()
    assert len(caplog.records) == 1
    assert "cannot accept" in caplog.text


async def test_a_listener_that_fails(ring: AsyncRing) -> None:
    """A listener that cannot accept any more is reported, and without any the server is closed."""
    problems = Problems()
    server = await start_server(echo, HOST, 0, ring=ring)
    await check_echo(await connect(ring, server))
    await ring.cancel(server.sockets[0])
    await server.wait_closed()
    assert [problem["exception"].errno for problem in problems] == [errno.ECANCELED]
    assert not server.is_serving()


async def test_idle_connections_cost_little(ring: AsyncRing) -> None:
    """One that has exchanged a message and says nothing more holds no buffer, and less than 3 KiB of memory."""
    group = ring.register_buffer_ring(count=16, size=512)
    with contextlib.ExitStack() as clients:
        sockets = [clients.enter_context(socket.socket()) for _ in range(220)]
        async with await start_server(echo, HOST, 0, ring=ring, group=group) as server:
            await exchange(server, sockets[:20])
            gc.collect()
            tracemalloc.start()
            try:
                await exchange(server, sockets[20:])
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] / 200 < 3 * 1024
            finally:
                tracemalloc.stop()
            assert group.statistics().in_use == 0
            clients.close()


async def exchange(server: Server, sockets: list[socket.socket]) -> None:
    """Connect, and have a message echoed, one after the other."""
    loop = asyncio.get_running_loop()
    for sock in sockets:
        sock.settimeout(0)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        await loop.sock_sendall(sock, b"hello")
        await loop.sock_recv(sock, 5)
