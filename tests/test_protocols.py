"""Tests of create_server() and create_connection(): protocols on connections that the ring makes."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import aiouring
from aiouring import AsyncRing

HOST = "127.0.0.1"


class Echo(asyncio.Protocol):
    """Sends back what it gets; remembers what became of it."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Asks(Echo):
    """Waits for an answer of a certain length."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.got = count, b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.got += data
        if len(self.got) == self.count:
            self.answer.set_result(self.got)


async def test_both_ends(ring: AsyncRing) -> None:
    """A server and clients, each with a protocol, and no task for any of them."""
    tasks = len(asyncio.all_tasks())
    async with await aiouring.create_server(Echo, HOST, 0, ring=ring) as server:
        address = server.sockets[0].getsockname()
        clients = [await aiouring.create_connection(lambda: Asks(100_000), *address, ring=ring) for _ in range(10)]
        for number, (transport, _) in enumerate(clients):
            transport.write(bytes([number]) * 100_000)
        for number, (transport, protocol) in enumerate(clients):
            assert protocol.transport is transport
            assert await protocol.answer == bytes([number]) * 100_000
        assert len(asyncio.all_tasks()) == tasks + 1  # which accepts
        assert "10 connections" in repr(server)
        for transport, _ in clients:
            transport.close()
        for _, protocol in clients:
            assert await protocol.lost is None


async def test_a_unix_path(ring: AsyncRing, tmp_path: Path) -> None:
    """create_unix_connection() and create_server(path=)."""
    path = tmp_path / "socket"
    async with await aiouring.create_server(Echo, path=path, ring=ring):
        transport, protocol = await aiouring.create_unix_connection(lambda: Asks(5), path, ring=ring)
        transport.write(b"hello")
        assert await protocol.answer == b"hello"
        transport.abort()
        assert await protocol.lost is None
    assert not path.exists()


async def test_the_default_ring() -> None:
    """Nobody needs to bring a ring, and the loop's own is closed with it."""
    async with await aiouring.create_server(Echo, HOST, 0) as server:
        transport, protocol = await aiouring.create_connection(lambda: Asks(5), *server.sockets[0].getsockname())
        transport.write(b"hello")
        assert await protocol.answer == b"hello"
        transport.close()
    await aiouring.default_ring().aclose()


@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_closing_waits_for_the_connections(ring: AsyncRing, how: str) -> None:
    """close() stops accepting only; wait_closed() returns when every protocol was told, and its socket is closed."""
    made: list[Echo] = []

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    server = await aiouring.create_server(make, HOST, 0, ring=ring)
    client, protocol = await aiouring.create_connection(lambda: Asks(5), *server.sockets[0].getsockname(), ring=ring)
    client.write(b"he")
    while not made:
        await asyncio.sleep(0)
    server.close()
    client.write(b"llo")
    assert await protocol.answer == b"hello"
    waiting = asyncio.ensure_future(server.wait_closed())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    getattr(server, how)()
    await waiting
    assert made[0].lost.done()
    assert made[0].transport.get_extra_info("socket").fileno() == -1
    assert await protocol.lost is None


async def test_a_factory_that_raises_costs_one_connection(ring: AsyncRing) -> None:
    """The exception handler is told, the peer sees the end, and the next is served."""
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    kinds: list[Any] = [lambda: 1 / 0, Echo]
    async with await aiouring.create_server(lambda: kinds.pop(0)(), HOST, 0, ring=ring) as server:
        address = server.sockets[0].getsockname()
        _, protocol = await aiouring.create_connection(lambda: Asks(5), *address, ring=ring)
        assert await protocol.lost is None
        transport, protocol = await aiouring.create_connection(lambda: Asks(5), *address, ring=ring)
        transport.write(b"hello")
        assert await protocol.answer == b"hello"
        transport.close()
    loop.set_exception_handler(before)
    assert [type(each["exception"]) for each in told] == [ZeroDivisionError]


async def test_a_client_whose_protocol_cannot_be_made(ring: AsyncRing) -> None:
    """The connection is closed, and the caller is told."""
    with socket.create_server((HOST, 0)) as listener:
        with pytest.raises(ZeroDivisionError):
            await aiouring.create_connection(lambda: 1 / 0, *listener.getsockname(), ring=ring)  # type: ignore[type-var]
        with listener.accept()[0] as sock:
            sock.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""


async def test_cancelled_before_the_protocol_was_told(ring: AsyncRing) -> None:
    """Cancelled at any moment, create_connection() leaves no connection behind; a protocol that was told is told so."""
    made: list[Echo] = []

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    async with await aiouring.create_server(Echo, HOST, 0, ring=ring) as server:
        address = server.sockets[0].getsockname()
        for steps in range(30):
            task = asyncio.ensure_future(aiouring.create_connection(make, *address, ring=ring))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task])
            if not done.pop().cancelled():
                task.result()[0].abort()
        assert made, "this was never far enough"
        for protocol in made:
            await protocol.lost


async def test_bad_arguments(ring: AsyncRing) -> None:
    """They are refused before anything is opened."""
    with pytest.raises(TypeError, match="protocol factory"):
        await aiouring.create_server(Echo(), HOST, 0, ring=ring)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exactly one"):
        await aiouring.create_server(Echo, ring=ring)
    raises = ring.register_buffer_ring(count=4, size=64, on_empty="raise")
    with pytest.raises(ValueError, match="on_empty"):
        await aiouring.create_server(Echo, HOST, 0, ring=ring, group=raises)
