"""Tests of bundles: several buffers by one completion, in the order of the ring (fault D16)."""

import asyncio
import errno
import os
import socket
from random import Random

import pytest
from conftest import RingFactory

import aiouring
from aiouring import Connection, ProvidedBundle
from aiouring._provided_buffer import private_copy
from aiouring._uring import ffi, lib

Pair = tuple[socket.socket, socket.socket]


async def test_several_buffers_are_one_chunk(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A message larger than a buffer is one chunk with several views, by one completion; the last is cut."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        await ring.nop()
        before = ring.statistics().completed
        pair[1].send(bytes(range(70)))
        async with asyncio.timeout(5):
            with await anext(stream) as bundle:
                assert len(bundle) == 70
                assert [len(view) for view in bundle.views] == [16, 16, 16, 16, 6]
                assert bytes(bundle) == bytes(range(70))
                assert [buffer.buffer_id for buffer in bundle] == [0, 1, 2, 3, 4]
                assert "5 buffers, 70 bytes" in repr(bundle)
                assert group.statistics().in_use == 5
                assert ring.statistics().completed == before + 1
            assert group.statistics().in_use == 0


async def test_d16_ring_order_is_not_the_order_of_numbers(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Buffers that come back in any order are walked in that order, lap after lap; every byte is compared."""
    random = Random(1)
    group = ring.register_buffer_ring(count=8, size=8)
    held: list[tuple[aiouring.ProvidedBuffer, bytes]] = []
    orders = set()
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        for _ in range(300):
            message = random.randbytes(random.randrange(1, 30))
            pair[1].send(message)
            got = b""
            while len(got) < len(message):
                bundle = await anext(stream)
                got += bytes(bundle)
                orders.add(tuple(buffer.buffer_id for buffer in bundle))
                held += [(buffer, bytes(buffer.view)) for buffer in bundle]
                while len(held) > random.randrange(5):
                    buffer, content = held.pop(random.randrange(len(held)))
                    assert bytes(buffer.view) == content
                    buffer.release()
            assert got == message
        while held:
            held.pop()[0].release()
    assert any(list(order) != sorted(order) for order in orders)  # type: ignore[type-var]


async def test_d16_bundles_of_parts(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Of a group that gives out parts, a bundle begins where the last ended, and may end within a buffer."""
    random = Random(2)
    group = ring.register_buffer_ring(count=4, size=32, incremental=True)
    async with ring.recv_multishot(pair[0], group, bundle=True) as stream:
        pair[1].send(b"x" * 20)
        first = await anext(stream)
        pair[1].send(b"y" * 60)
        second = [await anext(stream)]
        while sum(map(len, second)) < 60:
            second.append(await anext(stream))
        parts = [(part.buffer_id, part.offset, len(part)) for bundle in (first, *second) for part in bundle]
        assert parts == [(0, 0, 20), (0, 20, 12), (1, 0, 32), (2, 0, 16)]
        assert b"".join(map(bytes, second)) == b"y" * 60
        for bundle in (first, *second):
            bundle.release()
        assert group.statistics().parts == 0
        for _ in range(200):
            message = random.randbytes(random.randrange(1, 100))
            pair[1].send(message)
            got = b""
            while len(got) < len(message):
                with await anext(stream) as bundle:
                    got += bytes(bundle)
            assert got == message


@pytest.mark.parametrize("incremental", [False, True])
async def test_d16_a_short_bundle_keeps_the_order(new_ring: RingFactory, incremental: bool) -> None:
    """A megabyte through four small buffers: short transfers, ENOBUFS and re-arming disturb no byte's place."""
    ring = await new_ring()
    data = Random(3).randbytes(1 << 20)
    group = ring.register_buffer_ring(count=4, size=1024, incremental=incremental)
    server = socket.create_server(("127.0.0.1", 0))
    sending = socket.create_connection(server.getsockname())
    receiving, _ = server.accept()
    server.close()
    receiving.setblocking(False)
    sending.setblocking(False)
    loop = asyncio.get_running_loop()
    with sending, receiving:
        feeding = asyncio.ensure_future(loop.sock_sendall(sending, data))
        at = 0
        async with asyncio.timeout(30), ring.recv_multishot(receiving, group, bundle=True, max_pending=4) as stream:
            while at < len(data):
                with await anext(stream) as bundle:
                    assert bytes(bundle) == data[at : at + len(bundle)], at
                    at += len(bundle)
        await feeding


async def test_d16_a_bundle_that_waits_leaves_the_length_of_buffers(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A bundle that found no data, or was cut, changes nothing for the next receive in the same group."""
    group = ring.register_buffer_ring(count=2, size=64)
    other = socket.socketpair()
    with other[0], other[1]:
        async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=1) as stream:
            await ring.nop()
            other[1].send(b"x" * 64)
            with await ring.recv(other[0], group) as chunk:
                assert len(chunk) == 64
            pair[1].send(b"y" * 64)
            with await anext(stream) as bundle:
                assert bytes(bundle) == b"y" * 64
            other[1].send(b"z" * 64)
            with await ring.recv(other[0], group) as chunk:
                assert bytes(chunk.view) == b"z" * 64


async def test_d16_streams_with_and_without_bundles(ring: aiouring.AsyncRing) -> None:
    """Bundles, single receives and single buffers share a group, with messages all at once."""
    random = Random(4)
    group = ring.register_buffer_ring(count=16, size=8)

    async def feed(sock: socket.socket, data: bytes) -> None:
        loop, at = asyncio.get_running_loop(), 0
        while at < len(data):
            size = random.randrange(1, 60)
            await loop.sock_sendall(sock, data[at : at + size])
            at += size
            await asyncio.sleep(0)

    async def read(sock: socket.socket, data: bytes, way: int) -> None:
        at = 0
        if way == 0:
            while at < len(data):
                with await ring.recv(sock, group) as chunk:
                    assert bytes(chunk.view) == data[at : at + len(chunk)]
                    at += len(chunk)
        elif way == 1:
            async with ring.recv_multishot(sock, group) as stream:
                while at < len(data):
                    with await anext(stream) as chunk:
                        assert bytes(chunk.view) == data[at : at + len(chunk)]
                        at += len(chunk)
        else:
            async with ring.recv_multishot(sock, group, bundle=True) as bundles:
                while at < len(data):
                    with await anext(bundles) as bundle:
                        assert bytes(bundle) == data[at : at + len(bundle)]
                        at += len(bundle)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        ends = [socket.socketpair() for _ in range(6)]
        for number, (left, right) in enumerate(ends):
            right.setblocking(False)
            data = random.randbytes(3000)
            tasks.create_task(feed(right, data))
            tasks.create_task(read(left, data, number % 3))
    for pair in ends:
        for end in pair:
            end.close()


async def test_back_pressure(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A stream of bundles that nobody reads leaves buffers for others, and the rest in its socket."""
    data = Random(5).randbytes(4000)
    group = ring.register_buffer_ring(count=64, size=16)
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        pair[1].send(data)
        for _ in range(10):
            await ring.nop()
        assert 1 <= stream.pending <= 24
        got = b""
        while len(got) < len(data):
            with await anext(stream) as bundle:
                got += bytes(bundle)
        assert got == data


async def test_leaving_a_stream_of_bundles(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What it brought and nobody took is the next receive's, in order, also where that is a bundle."""
    group = ring.register_buffer_ring(count=8, size=4)
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        pair[1].send(b"0123456789")
        await ring.nop()
        await ring.nop()
    assert group.statistics().in_use == 0
    pair[1].send(b"abcdef")
    got = b""
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        await ring.nop()
        await ring.nop()
        while len(got) < 16:
            with await anext(stream) as bundle:
                got += bytes(bundle)
    assert got == b"0123456789abcdef"


async def test_the_end_of_a_stream(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """It ends the async for, after all bundles."""
    group = ring.register_buffer_ring(count=4, size=4)
    pair[1].send(b"0123456789")
    pair[1].close()
    got = b""
    async with ring.recv_multishot(pair[0], group, bundle=True) as stream:
        async for bundle in stream:
            with bundle:
                got += bytes(bundle)
    assert got == b"0123456789"


async def test_d16_a_bundle_found_after_unregistering(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """One that had completed when the group was unregistered is taken whole, and its buffers stay readable."""
    group = ring.register_buffer_ring(count=8, size=16)
    async with ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        await ring.nop()
        pair[1].send(bytes(range(40)))
        assert ring._driver is not None
        lib.au_ring_wait(ring._driver.ring.raw, 1, -1, 0, 0)  # completed, and not drained
        group.unregister()
        got = b""
        with pytest.raises(aiouring.RingClosedError):
            while True:
                with await anext(stream) as bundle:
                    assert all(len(view) <= 16 for view in bundle.views)
                    got += bytes(bundle)
        assert got == bytes(range(40))
    assert group.statistics().in_use == 0


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("way", ["fallback", "growth"])
async def test_a_group_that_is_too_small(ring: aiouring.AsyncRing, pair: Pair, way: str, incremental: bool) -> None:
    """Bundles go on in private buffers, or in those that the group grew by; each byte comes once, in order."""
    data = bytes(range(100))
    if way == "fallback":
        group = ring.register_buffer_ring(count=2, size=8, on_empty="fallback", incremental=incremental)
    else:
        group = ring.register_buffer_ring(count=1, size=8, max_count=16, incremental=incremental)
    async with asyncio.timeout(5), ring.recv_multishot(pair[0], group, bundle=True, max_pending=8) as stream:
        got, held = b"", list[ProvidedBundle]()
        for start in range(0, 100, 50):
            pair[1].send(data[start : start + 50])
            while len(got) < start + 50:
                held.append(await anext(stream))
                got += bytes(held[-1])
                if way == "fallback" and len(held) > 2:
                    held.pop(0).release()
        for bundle in held:
            bundle.release()
    assert got == data
    assert group.statistics().fallbacks if way == "fallback" else group.statistics().growths


async def test_a_connection_that_receives_bundles(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Its chunks are what they are without, and can be written as they are."""
    group = ring.register_buffer_ring(count=16, size=32)
    data = Random(6).randbytes(20_000)
    loop = asyncio.get_running_loop()

    async def echo(connection: Connection) -> None:
        async for chunk in connection:
            assert len(chunk) <= 32
            connection.write(chunk)
            await connection.drain()

    async with Connection(ring, pair[0], group, bundle=True) as connection:
        echoing = asyncio.ensure_future(echo(connection))
        feeding = asyncio.ensure_future(loop.sock_sendall(pair[1], data))
        got = b""
        while len(got) < len(data):
            got += await loop.sock_recv(pair[1], 10_000)
        assert got == data
        await feeding
        pair[1].shutdown(socket.SHUT_WR)
        await echoing


async def test_more_events_than_a_turn_has_room_for(new_ring: RingFactory) -> None:
    """Bundles of hundreds of buffers: the last of a turn has room for all of its own; the rest waits for the next."""
    ring = await new_ring()
    group = ring.register_buffer_ring(count=4096, size=1)
    pairs = [socket.socketpair() for _ in range(4)]
    streams = [ring.recv_multishot(left, group, bundle=True, max_pending=1000) for left, _ in pairs]
    await ring.nop()
    for number, (_, right) in enumerate(pairs):
        right.send(bytes([number]) * 700)
    for number, stream in enumerate(streams):
        got = b""
        async with asyncio.timeout(10), stream:
            while len(got) < 700:
                with await anext(stream) as bundle:
                    got += bytes(bundle)
        assert got == bytes([number]) * 700
    for pair in pairs:
        for end in pair:
            end.close()


# ---- the object ----------------------------------------------------------------------------------


def test_release_gives_all_back() -> None:
    """Those given back by themselves are left out; twice is an error; one that cannot go does not keep the others."""
    buffers = tuple(private_copy(data) for data in (b"one", b"two", b"three"))
    bundle = ProvidedBundle(buffers)
    assert (bytes(bundle), len(bundle), list(bundle)) == (b"onetwothree", 11, list(buffers))
    buffers[0].release()
    kept = buffers[1].view[1:]
    with pytest.raises(BufferError, match="a slice"):
        bundle.release()
    assert [buffer.ended for buffer in buffers] == [True, False, True]
    assert bytes(kept) == b"wo"
    kept.release()
    bundle.release()
    with pytest.raises(ValueError, match="released already"):
        bundle.release()
    with pytest.raises(ValueError, match="released already"):
        bytes(bundle)


def test_the_block_gives_all_back() -> None:
    """However it ends."""
    with ProvidedBundle((private_copy(b"a"), private_copy(b"b"))) as bundle:
        bundle.buffers[0].release()
    assert all(buffer.ended for buffer in bundle)
    with pytest.raises(KeyError), ProvidedBundle((private_copy(b"a"), private_copy(b"b"))) as bundle:
        raise KeyError
    assert all(buffer.ended for buffer in bundle)
    buffer = private_copy(b"abc")
    with pytest.raises(BufferError), ProvidedBundle((buffer, private_copy(b"b"))) as bundle:
        kept = buffer.view[1:]
    assert [buffer.ended for buffer in bundle] == [False, True]
    kept.release()
    buffer.release()


# ---- what is refused, and what a kernel may do ---------------------------------------------------


async def test_bundles_of_datagrams_are_refused(ring: aiouring.AsyncRing) -> None:
    """They would not say where a message ends."""
    group = ring.register_buffer_ring(count=4, size=8)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="stream sockets"):
        ring.recv_multishot(sock, group, bundle=True)


async def test_an_older_kernel(ring: aiouring.AsyncRing, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no bundles, the error says which has; nothing is armed, no socket is taken over."""
    group = ring.register_buffer_ring(count=4, size=8)
    monkeypatch.setattr("aiouring._features._here", frozenset({"multishot receive"}))
    for attempt in (
        lambda: ring.recv_multishot(pair[0], group, bundle=True),
        lambda: Connection(ring, pair[0], group, bundle=True),
    ):
        with pytest.raises(aiouring.UnsupportedKernelError, match=r"bundles.*6\.10"):
            attempt()
    assert pair[0].fileno() >= 0


@pytest.mark.parametrize("lie", ["another owner", "beyond the tail", "no such buffer"])
async def test_d16_a_bundle_that_cannot_be(ring: aiouring.AsyncRing, pair: Pair, lie: str) -> None:
    """A completion that says more than the ring holds is an error, and never a view of memory that is not there."""
    group = ring.register_buffer_ring(count=4, size=8)
    raw = group.raw
    stream = ring.recv_multishot(pair[0], group, bundle=True, max_pending=4)
    await ring.nop()
    if lie == "another owner":
        raw.owner[0] = 1
    elif lie == "beyond the tail":
        group._shares[0].place = (raw.tail - 1) % 65536
    else:
        raw.count = 0
    pair[1].send(b"x" * 20)
    await ring.nop()
    if lie == "another owner":
        raw.owner[0] = 0
    raw.count = 4
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        while True:
            (await anext(stream)).release()
    await stream.aclose()
    group.unregister()
    pair[1].close()
    await ring.nop()
    await ring.nop()
    assert ring._driver is not None
    ring._driver.strays = 0  # the kernel's request went on to the end, although we had done with it
    assert ffi.sizeof("struct au_share") == 12
    assert lib.AU_RECVSEND_BUNDLE == 16
