"""Tests of AsyncRing's life, and of how it shares the loop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RingFactory, open_files

from aiouring._async_ring import AsyncRing


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a small file, open for both ways."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


async def test_nop(ring: AsyncRing) -> None:
    """A nop goes through the kernel and comes back."""
    before = ring.statistics()
    await ring.nop()
    after = ring.statistics()
    assert after.submitted == before.submitted + 1
    assert after.completed == before.completed + 1
    assert after.in_flight == 0


async def test_one_submission_per_turn(ring: AsyncRing) -> None:
    """Everything queued in one turn of the loop goes to the kernel in one system call."""
    await ring.nop()
    before = ring.statistics()
    await asyncio.gather(*(ring.nop() for _ in range(200)))
    after = ring.statistics()
    assert after.submitted - before.submitted == 200
    assert after.enters - before.enters == 1


async def test_statistics_are_frozen(ring: AsyncRing) -> None:
    """The statistics are a record of one moment."""
    found = ring.statistics()
    with pytest.raises(AttributeError):
        found.submitted = 0  # type: ignore[misc]
    await ring.nop()
    assert ring.statistics().completed == found.completed + 1


async def test_representation(new_ring: RingFactory) -> None:
    """repr() tells the state of a ring."""
    ring = await new_ring()
    assert "in_flight=0" in repr(ring)
    assert "not used yet" in repr(unused := AsyncRing())
    await unused.aclose()
    assert "closed" in repr(unused)


def test_a_running_loop_is_needed() -> None:
    """Without a running loop the first use is a RuntimeError, and nothing is left behind."""
    ring = AsyncRing()
    coroutine = ring.nop()
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)
    del ring


def test_a_loop_without_add_reader() -> None:
    """A loop that cannot watch descriptors gets an error that says so, and what to use."""

    class Blind(asyncio.SelectorEventLoop):
        def add_reader(self, *_: object) -> None:
            raise NotImplementedError

    async def use() -> None:
        files = open_files()
        ring = AsyncRing()
        with pytest.raises(RuntimeError, match="uvloop"):
            await ring.nop()
        await ring.aclose()
        assert open_files() == files

    with asyncio.Runner(loop_factory=Blind) as runner:
        runner.run(use())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"entries": 0}, ValueError),
        ({"entries": 32769}, ValueError),
        ({"entries": "8"}, TypeError),
        ({"cq_entries": 65537}, ValueError),
        ({"task_run": "sqpoll"}, ValueError),
    ],
)
def test_bad_sizes_of_a_ring(options: dict[str, int], error: type[Exception]) -> None:
    """A size that cannot be is refused before any system call, with the numbers."""
    files = open_files()
    with pytest.raises(error, match=next(iter(options))):
        AsyncRing(**options)  # type: ignore[arg-type]
    assert open_files() == files


async def test_debug_mode(new_ring: RingFactory, file: int) -> None:
    """I3: nothing complains in asyncio's debug mode."""
    asyncio.get_running_loop().set_debug(True)
    ring = await new_ring()
    memory = bytearray(4)
    await asyncio.gather(*(ring.read(file, memory, offset) for offset in range(5)))
    with ring.register_buffer_ring(count=2, size=64) as group:
        left, right = socket.socketpair()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ring.recv(left, group)
        await ring.send_all(right, b"data")
        (await ring.recv(left, group)).release()
        await ring.close(left)
        await ring.close(right)


async def test_many_turns_free_by_reference_count(ring: AsyncRing, file: int) -> None:
    """I4: requests, buffers and futures are freed without the cycle collector."""
    import gc
    import sys

    memory = bytearray(8)

    async def work(count: int) -> None:
        for _ in range(count):
            await ring.read(file, memory, 0)
            task = asyncio.create_task(ring.timeout(50))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            with contextlib.suppress(IsADirectoryError):
                await ring.read(directory, memory, 0)

    directory = os.open(".", os.O_RDONLY)
    await work(50)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        await work(300)
        assert sys.getallocatedblocks() - before < 300
    finally:
        gc.enable()
        os.close(directory)
