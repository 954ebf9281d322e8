"""Tests of reads that stay armed on pipes and terminals: nothing lost, nothing twice, back-pressure, the end."""

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory

import aiouring
from aiouring import AsyncRing

pytestmark = pytest.mark.needs("multishot read")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe."""
    reader, writer = os.pipe()
    yield reader, writer
    for number in (reader, writer):
        try:
            os.close(number)
        except OSError:
            assert number == writer


async def test_chunks_until_the_end(ring: AsyncRing, pipe: tuple[int, int]) -> None:
    """What is written comes as it was written, in order; the closed writing end is the end."""
    reader, writer = pipe
    got = []
    with ring.register_buffer_ring(count=4, size=16) as group:
        async with ring.read_multishot(reader, group) as stream:
            for text in (b"one", b"two", b"exactly sixteen.", b"more than sixteen bytes"):
                os.write(writer, text)
                chunk = await anext(stream)
                with chunk:
                    got.append(bytes(chunk.view))
            os.close(writer)
            async for chunk in stream:
                with chunk:
                    got.append(bytes(chunk.view))
    assert got == [b"one", b"two", b"exactly sixteen.", b"more than sixtee", b"n bytes"]


async def test_d5_more_than_the_group_holds(ring: AsyncRing, pipe: tuple[int, int]) -> None:
    """A slow reader sees back-pressure only: every byte comes, in order, whatever the group and the pipe hold."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    data = random.Random(7).randbytes(300_000)

    async def write() -> None:
        sent = 0
        while sent < len(data):
            sent += await ring.write(writer, data[sent : sent + 5000])
        os.close(writer)

    task = asyncio.create_task(write())
    got = bytearray()
    with ring.register_buffer_ring(count=4, size=512) as group:
        async for chunk in ring.read_multishot(reader, group, max_pending=2):
            with chunk:
                got += chunk.view
                if len(got) % 7 == 0:
                    await asyncio.sleep(0)
        await task
        assert group.statistics().in_use == 0
    assert got == data


async def test_h9_a_pipe_that_does_not_block(ring: AsyncRing, pipe: tuple[int, int]) -> None:
    """O_NONBLOCK makes no difference: the read waits, and what comes is read."""
    reader, writer = pipe
    os.set_blocking(reader, False)
    with ring.register_buffer_ring(count=2, size=16) as group:
        async with ring.read_multishot(reader, group) as stream:
            for text in (b"one", b"two", b"three"):
                task = asyncio.ensure_future(anext(stream))
                for _ in range(3):
                    await ring.nop()
                os.write(writer, text)
                with await task as chunk:
                    assert bytes(chunk.view) == text


async def test_d6_two_pipes_share_a_group(ring: AsyncRing) -> None:
    """While one reader holds every buffer the other waits in line, and gets its bytes when one comes back."""
    ends = [os.pipe() for _ in range(2)]
    with ring.register_buffer_ring(count=2, size=8) as group:
        first, second = (ring.read_multishot(reader, group) for reader, _ in ends)
        os.write(ends[0][1], bytes(16))
        held = [await anext(first), await anext(first)]
        os.write(ends[1][1], b"second")
        waiting = asyncio.ensure_future(anext(second))
        for _ in range(3):
            await ring.nop()
        assert not waiting.done()
        held[0].release()
        with await waiting as chunk:
            assert bytes(chunk.view) == b"second"
        held[1].release()
        await first.aclose()
        await second.aclose()
    for pair in ends:
        for number in pair:
            os.close(number)


async def test_a4_what_was_not_taken_is_the_next_reads(ring: AsyncRing, pipe: tuple[int, int]) -> None:
    """Cancelled, timed out or left at any moment, with any next read: the stream of bytes has no gap and no echo."""
    reader, writer = pipe
    choose = random.Random(3)
    sent, got = bytearray(), bytearray()
    with ring.register_buffer_ring(count=8, size=8) as group:
        for round_number in range(60):
            stream = ring.read_multishot(reader, group, max_pending=choose.choice([None, 1, 3]))
            more = bytes([round_number]) * choose.randrange(1, 30)
            os.write(writer, more)
            sent += more
            for _ in range(choose.randrange(3)):
                try:
                    async with asyncio.timeout(choose.choice([0, 0.001])):
                        with await anext(stream) as chunk:
                            got += chunk.view
                except TimeoutError:
                    pass
            if choose.random() < 0.5:
                await stream.aclose()
            else:
                del stream
            if choose.random() < 0.5 and len(got) < len(sent):
                memory = bytearray(choose.randrange(1, 20))
                got += memory[: await ring.read(reader, memory)]
            while ring._receiving:
                await ring.nop()  # a stream that was dropped is over when its cancel has come back
        while len(got) < len(sent):
            memory = bytearray(64)
            got += memory[: await ring.read(reader, memory)]
    assert got == sent


async def test_terminals(ring: AsyncRing) -> None:
    """A terminal gives a chunk per line; its hang-up ends it."""
    master, slave = os.openpty()
    with ring.register_buffer_ring(count=4, size=64) as group:
        async with ring.read_multishot(slave, group) as stream:
            for line in (b"first\n", b"second\n"):
                os.write(master, line)
                with await anext(stream) as chunk:
                    assert bytes(chunk.view) == line
            os.close(master)
            with pytest.raises((StopAsyncIteration, OSError)):
                await anext(stream)
    os.close(slave)


async def test_what_is_refused(ring: AsyncRing, new_ring: RingFactory, pipe: tuple[int, int], tmp_path: Path) -> None:
    """Regular files, two streams, a read beside a stream, groups that fall back, and what is no group."""
    reader, writer = pipe
    with ring.register_buffer_ring(count=2, size=8) as group:
        with (tmp_path / "file").open("w+b") as file:
            async with ring.read_multishot(file, group) as stream:
                with pytest.raises(OSError) as caught:
                    await anext(stream)
                assert caught.value.errno == errno.EBADFD
        async with ring.read_multishot(reader, group):
            with pytest.raises(aiouring.ResourceBusyError, match="already receiving"):
                ring.read_multishot(reader, group)
            with pytest.raises(aiouring.ResourceBusyError, match="already receiving"):
                await ring.read(reader, bytearray(1))
        os.write(writer, b"x")
        assert await ring.read(reader, bytearray(1)) == 1
        with pytest.raises(TypeError, match="BufferRing"):
            ring.read_multishot(reader, 5)  # type: ignore[arg-type]
    with ring.register_buffer_ring(count=2, size=8, on_empty="fallback") as group:
        with pytest.raises(ValueError, match="no private memory to fall back to"):
            ring.read_multishot(reader, group)


async def test_b1_close_with_a_stream(profile: str, pipe: tuple[int, int]) -> None:
    """The ring's close and `close()` of the pipe end a stream whose reader waits."""
    ring = AsyncRing(task_run=profile)  # type: ignore[arg-type]
    group = ring.register_buffer_ring(count=2, size=8)
    copy = os.dup(pipe[0])
    stream = ring.read_multishot(copy, group)
    task = asyncio.ensure_future(anext(stream))
    await ring.nop()
    await ring.close(copy)
    with pytest.raises(OSError, match="ancel"):
        await task
    await stream.aclose()
    stream = ring.read_multishot(pipe[0], group)
    task = asyncio.ensure_future(anext(stream))
    await ring.nop()
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await task
    del stream


async def test_e6_an_older_kernel(ring: AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no READ_MULTISHOT the error says since when there is one."""
    monkeypatch.setattr("aiouring._features._here", frozenset())
    with pytest.raises(aiouring.UnsupportedKernelError, match="multishot read: needs Linux 6.7"):
        ring.read_multishot(0, None)  # type: ignore[arg-type]
