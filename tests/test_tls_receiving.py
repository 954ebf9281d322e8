"""Tests of TLSReceiving: what waits for a reader, whose buffers those are, and cancelled receives."""

import asyncio
import gc
import socket
import ssl
from random import Random
from typing import Any

import pytest
from conftest import RingFactory
from tls_certificates import NAME, client_context, server_context

import aiouring
from aiouring import AsyncRing, BufferRing, Connection
from aiouring._tls import RECORD
from aiouring._tls_receiving import TLSReceiving


async def secure_pair(
    ring: AsyncRing, group: BufferRing, other: BufferRing | None = None, max_pending: int | None = None
) -> tuple[Connection, Connection]:
    """A server's connection in `group`, and a client's in `other`."""
    ours, theirs = socket.socketpair()
    left = Connection(ring, ours, group, max_pending=max_pending)
    right = Connection(ring, theirs, other or group)
    await asyncio.gather(
        left.start_tls(server_context(), server_side=True), right.start_tls(client_context(), server_hostname=NAME)
    )
    return left, right


async def test_a_reader_that_does_not_read(ring: AsyncRing) -> None:
    """What waits here is bounded, ciphertext and plaintext; the sender waits, and later everything comes."""
    group, other = (ring.register_buffer_ring(count=64, size=1024) for _ in range(2))
    left, right = await secure_pair(ring, group, other, max_pending=4)
    data = bytes(range(256)) * 20_000
    async with left, right:
        sending = asyncio.ensure_future(right.send(data))
        for _ in range(300):
            await ring.nop()
        assert not sending.done()
        assert left.statistics().pending == 4
        assert not left.statistics().receiving
        assert group.statistics().in_use <= 9  # four that wait, and what comes until the kernel stops
        assert await left.receive_exactly(len(data)) == data
        await sending
        assert group.statistics().in_use == 0


async def test_chunks_are_not_the_groups(ring: AsyncRing) -> None:
    """A chunk is leased like any other, but takes no buffer of the group, and can be kept."""
    group = ring.register_buffer_ring(count=4, size=512)
    left, right = await secure_pair(ring, group)
    async with left, right:
        kept = []
        for number in range(50):
            await right.send(b"%d" % number)
            kept.append(await left.receive())
            assert group.statistics().in_use == 0
        assert [bytes(chunk.view) for chunk in kept] == [b"%d" % number for number in range(50)]
        kept[0].view[:] = b"!"  # it is ours
        assert bytes(kept[0].view) == b"!"
        for chunk in kept:
            chunk.release()
            with pytest.raises(ValueError, match="released"):
                chunk.release()
        await right.send(b"dropped")
        with pytest.warns(ResourceWarning, match="never released"):
            await left.receive()
            gc.collect()


async def test_a_buffers_worth_is_one_chunk(ring: AsyncRing) -> None:
    """A message as large as a buffer, and what TLS adds to it, are one chunk; a stream of them is not one."""
    group = ring.register_buffer_ring(count=64, size=65536)
    left, right = await secure_pair(ring, group)
    message = bytes(range(256)) * 256
    async with left, right:
        for _ in range(3):
            await right.send(message)
            while not left.statistics().pending:
                await ring.nop()
            with await left.receive() as chunk:
                assert bytes(chunk.view) == message
        sending = asyncio.ensure_future(right.send(message * 10))
        got = 0
        while got < 10 * len(message):
            with await left.receive() as chunk:
                assert len(chunk) <= group.size + 2 * RECORD
                got += len(chunk)
        await sending


async def test_what_is_written_on_is_what_was_received(ring: AsyncRing) -> None:
    """A chunk can be written as it is, or after its bytes were changed in its view."""
    group = ring.register_buffer_ring(count=16, size=4096)
    left, right = await secure_pair(ring, group)
    async with left, right:
        for changed in (False, True):
            await right.send(b"hello" * 1000)
            while left.statistics().pending < 1:
                await ring.nop()
            chunk = await left.receive()
            if changed:
                chunk.view[:5] = b"HELLO"
            left.write(chunk)
            with pytest.raises(ValueError, match="released"):
                chunk.release()
            got = await right.receive_exactly(len(chunk))
            assert got == (b"HELLO" if changed else b"hello") + b"hello" * (len(chunk) // 5 - 1)


@pytest.mark.parametrize(
    ("options", "bundle"),
    [
        ({"on_empty": "fallback"}, False),
        pytest.param({"incremental": True}, False, marks=pytest.mark.needs("incremental buffer rings")),
        pytest.param({}, True, marks=pytest.mark.needs("bundles")),
    ],
    ids=["fallback", "incremental", "bundle"],
)
async def test_every_kind_of_group(ring: AsyncRing, options: dict[str, Any], bundle: bool) -> None:
    """Groups that fall back or give out parts, and bundles, bring ciphertext as others do."""
    group = ring.register_buffer_ring(count=2, size=4096, **options)
    left, right = (Connection(ring, sock, group, bundle=bundle) for sock in socket.socketpair())
    await asyncio.gather(
        left.start_tls(server_context(), server_side=True), right.start_tls(client_context(), server_hostname=NAME)
    )
    data = bytes(range(256)) * 4000
    async with left, right:
        sending = asyncio.gather(left.send(data), right.send(data))
        for received in await asyncio.gather(left.receive_exactly(len(data)), right.receive_exactly(len(data))):
            assert received == data
        await sending


async def test_an_async_for(ring: AsyncRing) -> None:
    """The loop over the chunks ends at the close-notify, and what comes after that is nobody's."""
    group = ring.register_buffer_ring(count=4, size=512)
    left, right = await secure_pair(ring, group)
    async with left, right:
        feeding = asyncio.ensure_future(right.send(b"x" * 100_000))
        got = 0
        async for chunk in left:
            with chunk:
                got += len(chunk)
            if got == 100_000:
                await right.send_eof()
                right._socket.send(b"nonsense" * 100)
        await feeding
        assert got == 100_000
        assert not await left.receive()
        await left.send(b"still")
        assert await right.receive_exactly(5) == b"still"
        for _ in range(10):
            await ring.nop()
        assert group.statistics().in_use == 0


async def test_an_iterator_from_before(ring: AsyncRing) -> None:
    """A loop that was begun before start_tls() would get ciphertext: it is refused."""
    group = ring.register_buffer_ring(count=4, size=512)
    ours, theirs = socket.socketpair()
    left, right = Connection(ring, ours, group), Connection(ring, theirs, group)
    before = aiter(left)
    await asyncio.gather(
        left.start_tls(server_context(), server_side=True), right.start_tls(client_context(), server_hostname=NAME)
    )
    async with left, right:
        with pytest.raises(aiouring.ResourceBusyError):
            await anext(before)
        await right.send(b"hello")
        with await anext(aiter(left)) as chunk:
            assert bytes(chunk.view) == b"hello"


async def test_a_group_that_raises(ring: AsyncRing) -> None:
    """Want of a buffer is raised, and when one has come back the next receive has the data."""
    group, other = (
        ring.register_buffer_ring(count=1, size=64, on_empty="raise"),
        ring.register_buffer_ring(count=16, size=1024),
    )
    left, right = await secure_pair(ring, group, other)
    one, two = socket.socketpair()
    async with left, right, Connection(ring, one, group) as holder:
        two.send(b"x")
        held = await holder.receive()
        await right.send(b"hello" * 20)
        for _ in range(2):
            with pytest.raises(aiouring.BuffersExhaustedError):
                await left.receive_exactly(100)
        held.release()
        async with asyncio.timeout(10):
            assert await left.receive_exactly(100) == b"hello" * 20
    two.close()


async def test_many_share_one_buffer(ring: AsyncRing) -> None:
    """TLS connections wait in the group's line as others do, and everybody is served."""
    group, other = ring.register_buffer_ring(count=2, size=256), ring.register_buffer_ring(count=64, size=1024)
    pairs = [await secure_pair(ring, group, other, max_pending=1) for _ in range(10)]

    async def talk(left: Connection, right: Connection, message: bytes) -> None:
        async with left, right:
            sending = asyncio.ensure_future(right.send(message))
            assert await left.receive_exactly(len(message)) == message
            await sending

    async with asyncio.TaskGroup() as tasks:
        for number, (left, right) in enumerate(pairs):
            tasks.create_task(talk(left, right, bytes([number]) * 20_000))


async def test_a_cancelled_receive_leaves_the_handshake_alone(ring: AsyncRing) -> None:
    """Receives that wait while the other side shakes hands are refused, and do it no harm."""
    group = ring.register_buffer_ring(count=16, size=512)
    ours, theirs = socket.socketpair()
    left, right = Connection(ring, ours, group), Connection(ring, theirs, group)
    async with left, right:
        starting = asyncio.ensure_future(left.start_tls(server_context(), server_side=True))
        await asyncio.sleep(0)
        with pytest.raises(aiouring.ResourceBusyError):
            await left.receive()
        await right.start_tls(client_context(), server_hostname=NAME)
        await starting


async def test_dropped_without_closing(ring: AsyncRing) -> None:
    """A TLS connection that nobody holds any more says so, and is aborted: its peer hears that it was cut."""
    group = ring.register_buffer_ring(count=16, size=512)
    left, right = await secure_pair(ring, group)
    await right.send(b"never read")
    await ring.nop()
    with pytest.warns(ResourceWarning, match="never closed"):
        del left
        gc.collect()
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        await right.receive()
    await right.aclose()


async def test_statistics_and_texts(ring: AsyncRing) -> None:
    """Chunks that wait are counted, and said."""
    group = ring.register_buffer_ring(count=16, size=512)
    left, right = await secure_pair(ring, group)
    async with left, right:
        assert isinstance(left._receiving, TLSReceiving)
        await right.send(b"hello")
        while not left.statistics().pending:
            await ring.nop()
        assert repr(left._receiving) == "<TLSReceiving open, 1 queued>"
        assert await left.receive_exactly(2) == b"he"
        assert left.statistics().pending == 1  # the rest of it
        await right.send_eof()
        while not left._receiving.over:
            await ring.nop()
        assert "over" in repr(left._receiving)
        assert await left.receive_exactly(3) == b"llo"


@pytest.mark.parametrize("seed", range(6))
async def test_any_order(new_ring: RingFactory, seed: int) -> None:
    """Both ends send and receive in any way, cancel anything, and lose nothing, through few small buffers."""
    random = Random(seed)
    ring = await new_ring(entries=random.choice((4, 64)))
    group = ring.register_buffer_ring(count=random.choice((2, 8, 32)), size=random.choice((16, 100, 5000)))
    other = ring.register_buffer_ring(count=random.choice((2, 8, 32)), size=random.choice((16, 100, 5000)))
    left, right = await secure_pair(ring, group, other, max_pending=random.choice((None, 1, 2)))

    async def cancelled(task: "asyncio.Future[object]") -> bool:
        """Perhaps cancel it; whether it was."""
        for _ in range(random.choice((0, 1, 1, 4, 20))):
            await asyncio.sleep(0)
        if random.random() < 0.3:
            task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    async def feed(connection: Connection, data: bytes) -> None:
        at = 0
        while at < len(data):
            part = data[at : at + random.choice((1, 10, 300, 20_000, 100_000))]
            connection.write(random.choice((bytes, bytearray, memoryview))(part))
            at += len(part)
            if random.random() < 0.5:
                await cancelled(asyncio.ensure_future(random.choice((connection.drain, connection.send))()))
        while await cancelled(asyncio.ensure_future(connection.send_eof())):
            pass

    async def take(connection: Connection, data: bytes) -> None:
        at = 0
        while True:
            kind = random.randrange(3)
            receive = (
                connection.receive(),
                connection.receive_exactly(random.choice((1, 50, 3000))),
                connection.receive_until(b"\n", limit=random.choice((5, 10_000))),
            )
            for number, coroutine in enumerate(receive):
                if number != kind:
                    coroutine.close()
            task: asyncio.Future[object] = asyncio.ensure_future(receive[kind])
            if await cancelled(task):
                continue
            error = task.exception()
            if isinstance(error, asyncio.IncompleteReadError):
                got = error.partial
            elif isinstance(error, asyncio.LimitOverrunError):
                continue
            else:
                result = task.result()
                got = result if isinstance(result, bytes) else bytes(result.view)  # type: ignore[attr-defined]
                if got and not isinstance(result, bytes):
                    result.release()  # type: ignore[attr-defined]
            assert got == data[at : at + len(got)], f"at byte {at}"
            at += len(got)
            if not got:
                assert at == len(data)
                return

    one, two = (bytes(random.choices(b"abc\n", k=random.choice((1, 5000, 200_000)))) for _ in range(2))
    async with asyncio.timeout(40), left, right, asyncio.TaskGroup() as tasks:
        for connection, sent, expected in ((left, one, two), (right, two, one)):
            tasks.create_task(feed(connection, sent))
            tasks.create_task(take(connection, expected))
