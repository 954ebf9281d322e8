"""Random models of streams and connections: whatever happens in whatever order, each byte comes once, and in order.

`check_stream()` is the contract of anything that yields chunks; the models break off, cancel, pause and hold.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from conftest import RingFactory

import aiouring
from aiouring import BufferRing, Connection, ProvidedBuffer

Next = Callable[[], Awaitable[ProvidedBuffer]]

SEEDS = range(int(os.environ.get("AIOURING_SEEDS", "8")))


async def check_stream(random: Random, following: Next, expected: bytes, held: list[ProvidedBuffer], most: int) -> int:
    """Take chunks until the end or, now and then, until we break off; returns how many bytes came.

    Cancels its own waiting, holds up to `most` chunks for a while, and compares every byte with `expected`.
    """
    count = 0
    while True:
        task = asyncio.ensure_future(following())
        for _ in range(random.choice((0, 0, 1, 5))):
            await asyncio.sleep(0)
        if not task.done() and random.random() < 0.3:
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            continue
        if isinstance(task.exception(), StopAsyncIteration):
            return count
        chunk = task.result()
        if not chunk:
            return count
        assert bytes(chunk.view) == expected[count : count + len(chunk)], f"at byte {count}"
        count += len(chunk)
        held.append(chunk)
        while held and (len(held) > most or random.random() < 0.6):
            held.pop(random.randrange(len(held))).release()
        if random.random() < 0.03:
            return count


async def feed(random: Random, sock: socket.socket, data: bytes) -> None:
    """Send `data` in pieces of any size, at any pace, then the end."""
    loop, at = asyncio.get_running_loop(), 0
    while at < len(data):
        size = random.choice((1, 3, 16, 100, 1000))
        await loop.sock_sendall(sock, data[at : at + size])
        at += size
        for _ in range(random.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


async def read_bundles(
    random: Random, ring: aiouring.AsyncRing, sock: socket.socket, group: BufferRing, most: int | None, expected: bytes
) -> int:
    """Take bundles until, now and then, we break off; returns how many bytes came."""
    count = 0
    async with ring.recv_multishot(sock, group, max_pending=most, bundle=True) as stream:
        async for bundle in stream:
            with bundle:
                assert bytes(bundle) == expected[count : count + len(bundle)], f"at byte {count}"
                count += len(bundle)
            if random.random() < 0.1:
                break
    return count


async def read_in_turns(random: Random, ring: aiouring.AsyncRing, group: BufferRing, data: bytes) -> None:
    """Read one socket by streams and single receives that follow one another, each of which is broken off."""
    left, right = socket.socketpair()
    right.setblocking(False)
    feeding = asyncio.ensure_future(feed(random, right, data))
    at, held = 0, list[ProvidedBuffer]()
    while at < len(data):
        if random.random() < 0.3:
            with await ring.recv(left, group) as chunk:
                assert bytes(chunk.view) == data[at : at + len(chunk)]
                at += len(chunk)
        else:
            pending = random.choice((None, 1, 2, 5, 1000))
            if random.random() < 0.5:
                at += await read_bundles(random, ring, left, group, pending, data[at:])
                continue
            async with ring.recv_multishot(left, group, max_pending=pending) as stream:
                at += await check_stream(random, stream.__anext__, data[at:], held, 1)
        while held:
            held.pop().release()
    await feeding
    left.close()
    right.close()


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_streams(new_ring: RingFactory, seed: int, incremental: bool) -> None:
    """Several sockets, few buffers, small queues; what one receive leaves is what the next one gets."""
    random = Random(seed)
    ring = await new_ring(entries=random.choice((4, 64)), cq_entries=random.choice((4, 16, 256)))
    count, size = random.choice((4, 8, 32)), random.choice((4, 16, 64))
    group = ring.register_buffer_ring(count=count, size=size, incremental=incremental)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for number in range(3):
            data = random.randbytes(random.choice((1, 500, 3000)))
            tasks.create_task(read_in_turns(Random(f"{seed}.{number}"), ring, group, data))


async def answer(random: Random, connection: Connection, other: BufferRing) -> bytes:
    """Write back all that comes, as chunks, bytes, bytearrays that change, and buffers of another group."""
    got = b""
    while chunk := await connection.receive():
        with chunk:
            data = bytes(chunk.view)
            got += data
            way = random.randrange(4)
            if way == 0:
                connection.write(chunk)
            else:
                copy = bytearray(data)
                connection.write(copy if way == 1 else memoryview(copy)[: len(copy)] if way == 2 else data)
                copy[:] = b"!" * len(copy)
        if random.random() < 0.3:
            waiting = asyncio.ensure_future(random.choice((connection.drain, connection.send))())
            await asyncio.sleep(0)
            if random.random() < 0.3:
                waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        elif random.random() < 0.2:
            await asyncio.sleep(0)
    return got


async def converse(random: Random, ring: aiouring.AsyncRing, group: BufferRing, other: BufferRing) -> None:
    """One connection that echoes; its peer sends, half-closes, compares; or goes away in the middle."""
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, random.choice((4096, 200_000)))
    right.setblocking(False)
    data = random.randbytes(random.choice((1, 2000, 20_000)))
    rude = random.random() < 0.3
    loop = asyncio.get_running_loop()
    pending, bundle = random.choice((None, 1, 3, 100)), random.random() < 0.5
    connection = Connection(ring, left, group, max_pending=pending, bundle=bundle)
    echoing = asyncio.ensure_future(answer(random, connection, other))
    feeding = asyncio.ensure_future(feed(random, right, data))
    if rude:
        for _ in range(random.randrange(40)):
            await asyncio.sleep(0)
        if random.random() < 0.5:
            connection.abort()
        feeding.cancel()
        await asyncio.wait([feeding])
        right.close()
        await asyncio.wait([echoing])
        if echoing.exception() is None:
            assert data.startswith(echoing.result())
        else:
            assert isinstance(echoing.exception(), ConnectionError), echoing
    else:
        back = b""
        while len(back) < len(data):
            back += await loop.sock_recv(right, 10_000)
        assert back == data
        await feeding
        assert await echoing == data
        await connection.send_eof()
        assert await loop.sock_recv(right, 1) == b""
    await connection.aclose()
    assert not connection.statistics().pending
    right.close()


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_connections(new_ring: RingFactory, seed: int, incremental: bool) -> None:
    """Connections that come and go on few buffers; after all of them nothing is in flight, lent or remembered."""
    random = Random(seed)
    ring = await new_ring(entries=random.choice((4, 64)), cq_entries=random.choice((4, 16, 256)))
    count = random.choice((4, 16))
    group = ring.register_buffer_ring(count=count, size=64, incremental=incremental)
    other = ring.register_buffer_ring(count=2, size=64)
    async with asyncio.timeout(30):
        for batch in range(3):
            async with asyncio.TaskGroup() as tasks:
                for number in range(5):
                    tasks.create_task(converse(Random(f"{seed}.{batch}.{number}"), ring, group, other))
    assert ring._driver is not None
    assert not ring._driver.senders
    assert ring.statistics().in_flight == 0
    assert group.statistics().in_use == group.statistics().parts == 0


# ---- protocols, and groups of every kind ------------------------------------------------------------


class Moody(asyncio.Protocol):
    """Compares what it is given, writes some of it back, pauses and goes on as it likes."""

    def __init__(self, random: Random, expected: bytes) -> None:
        self.random = random
        self.expected = expected
        self.count = 0
        self.paused = self.ended = False
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, aiouring.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert not self.ended
        assert not self.paused
        assert data == self.expected[self.count : self.count + len(data)], f"at byte {self.count}"
        self.count += len(data)
        self.transport.write(data)
        if self.random.random() < 0.2:
            self.paused = True
            self.transport.pause_reading()
            asyncio.ensure_future(self.go_on())  # noqa: RUF006 - the loop keeps it while it sleeps

    async def go_on(self) -> None:
        for _ in range(self.random.choice((0, 1, 3, 20))):
            await asyncio.sleep(0)
        self.paused = False
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def talk(random: Random, ring: aiouring.AsyncRing, group: BufferRing) -> None:
    """One protocol that echoes to a peer that compares; or that is closed, or aborted, somewhere in the middle."""
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, random.choice((4096, 200_000)))
    right.setblocking(False)
    data = random.randbytes(random.choice((1, 2000, 20_000)))
    loop = asyncio.get_running_loop()
    bundle = random.random() < 0.5
    connection = Connection(ring, left, group, max_pending=random.choice((None, 1, 3, 100)), bundle=bundle)
    protocol = Moody(random, data)
    feeding = asyncio.ensure_future(feed(random, right, data))
    for _ in range(random.choice((0, 5))):
        await asyncio.sleep(0)
    transport = aiouring.Transport(connection, protocol)
    back, rude = b"", random.random() < 0.4
    stays = random.randrange(len(data) + 1) if rude else len(data)
    while len(back) < stays:
        back += await loop.sock_recv(right, 10_000)
    assert data.startswith(back)
    if rude and random.random() < 0.5:
        transport.abort()
        assert await protocol.lost is None
        feeding.cancel()
    else:
        transport.close()
        for _ in range(random.choice((0, 30))):
            await asyncio.sleep(0)
        feeding.cancel()
        while not protocol.lost.done():  # what was written is sent before
            try:
                back += (more := await loop.sock_recv(right, 10_000))
            except ConnectionResetError:
                break
            if not more:
                break
        assert data.startswith(back)
        await protocol.lost
    await asyncio.wait([feeding])
    await connection.wait_closed()
    right.close()


OPTIONS: list[dict[str, object]] = [
    {},
    {"on_empty": "fallback"},
    {"max_count": 64},
    {"max_count": 64, "on_empty": "fallback"},
]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
async def test_everything_on_one_group(new_ring: RingFactory, seed: int, incremental: bool) -> None:
    """Protocols, connections, streams and single receives, on groups that wait, fall back and grow, watched or not."""
    random = Random(f"all {seed}")
    ring = await new_ring(entries=random.choice((4, 64)), cq_entries=random.choice((4, 16, 256)))
    count, options = random.choice((2, 4, 16)), random.choice(OPTIONS)
    group = ring.register_buffer_ring(count=count, size=random.choice((16, 64)), incremental=incremental, **options)
    other = ring.register_buffer_ring(count=2, size=64)
    if random.random() < 0.3:
        group.held_too_long = 60.0
    async with asyncio.timeout(30):
        for batch in range(2):
            async with asyncio.TaskGroup() as tasks:
                for number in range(3):
                    one = Random(f"{seed}.{batch}.{number}")
                    tasks.create_task(talk(one, ring, group))
                    tasks.create_task(converse(Random(f"c{seed}.{batch}.{number}"), ring, group, other))
                data = Random(seed).randbytes(2000)
                tasks.create_task(read_in_turns(Random(f"r{seed}.{batch}"), ring, group, data))
    assert ring._driver is not None
    assert not ring._driver.senders
    assert ring.statistics().in_flight == 0
    found = group.statistics()
    assert (found.in_use, found.parts, found.private, found.waiting) == (0, 0, 0, 0)
