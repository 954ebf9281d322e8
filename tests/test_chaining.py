"""Tests of the way of a chain into one submission: full queues, strangers in between, submissions that are cut."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory
from injected_faults import real_enter, replaced
from registered_slots import opened

import aiouring
from aiouring import AsyncRing, Link
from aiouring._uring import lib


@pytest.fixture
def number(tmp_path: Path) -> Iterator[int]:
    """An empty file, open for reading and writing."""
    made = opened(tmp_path / "file", b"")
    yield made
    os.close(made)


async def run(ring: AsyncRing, number: int, start: int, count: int) -> list[Link]:
    """A chain of `count` writes of one byte each, from `start` on."""
    async with ring.chain() as chain:
        for at in range(start, start + count):
            chain.write(number, bytes([at % 256]), at)
    return list(chain)


async def test_e1_chains_through_a_small_queue(new_ring: RingFactory, number: int) -> None:
    """Chains among many other requests go whole through a queue of eight entries; one of nine does not fit."""
    ring = await new_ring(8)
    chains = [run(ring, number, 8 * at, at % 8 + 1) for at in range(60)]
    others = [ring.nop() for _ in range(300)]
    mixed: list[Any] = [each for pair in zip(chains, others, strict=False) for each in pair] + others[60:]
    done = await asyncio.gather(*mixed)
    assert all(link.result == 1 for each in done if each for link in each)
    with pytest.raises(ValueError, match="a chain of 9 requests does not fit a submission queue of 8 entries"):
        await run(ring, number, 0, 9)
    assert ring.statistics().in_flight == 0


async def test_every_chain_is_in_one_submission(new_ring: RingFactory, number: int) -> None:
    """No submission ends within a chain, however full the queue was: its last entry is never linked to a next."""
    ring = await new_ring(8)
    ends: list[int] = []
    raw = ring._ring.raw

    def enter(fd: int, to_submit: int, *rest: Any) -> int:
        if to_submit and fd == raw.fd:
            assert lib.au_ring_unsubmitted(raw) == to_submit
            ends.append(to_submit)
        return real_enter(fd, to_submit, *rest)

    with replaced(enter=enter):
        await asyncio.gather(*(run(ring, number, 0, 3) for _ in range(20)))
    assert ends
    assert all(count % 3 == 0 for count in ends), ends


async def test_strangers_in_between(ring: AsyncRing, number: int) -> None:
    """What is queued while a chain is being filled, by the garbage collector say, does not get into it."""
    reader, writer = os.pipe()
    waiting = asyncio.create_task(ring.poll(reader))
    await ring.nop()
    driver = ring._driver
    assert driver is not None
    fill = Link.fill

    def filled(link: Link, into: Any) -> int:
        code = fill(link, into)
        assert lib.au_prepare(driver._raw, 0, lib.AU_OP_ASYNC_CANCEL, -1, 0, 12345, 0, 0, 0) == 0
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "fill", filled)
        assert [link.result for link in await run(ring, number, 0, 4)] == [1] * 4
        with pytest.raises(OSError) as caught:
            async with ring.chain() as chain:
                chain.write(number, b"x", 0)
                chain.read(number, bytearray(1), 99)
                last = chain.write(number, b"never", 0)
        assert caught.value.errno == errno.ECANCELED
        assert last.error is not None
    assert os.pread(number, 9, 0) == b"x\x01\x02\x03"
    os.write(writer, b"x")
    await waiting
    os.close(reader)
    os.close(writer)


async def test_a_chain_that_cannot_be_filled_is_taken_back(ring: AsyncRing, number: int) -> None:
    """The entries before the bad one leave the queue; what was queued before and after is untouched and unlinked."""
    with ring.register_buffers(count=1, size=8) as buffers, buffers[0] as buffer:
        before = asyncio.create_task(ring.write(number, b"before", 0))
        await asyncio.sleep(0)
        for at in range(3):
            with pytest.raises(ValueError, match="beyond the memory"):
                async with ring.chain() as chain:
                    for _ in range(at):
                        chain.write(number, b"chain", 10)
                    chain.write_fixed(number, buffer, 10, start=9)
                    chain.write(number, b"chain", 10)
        after = asyncio.create_task(ring.write(number, b"after", 6))
        assert (await before, await after) == (6, 5)
        assert os.pread(number, 99, 0) == b"beforeafter"
        assert ring.statistics().in_flight == 0


@pytest.mark.parametrize("taken", [1, 2])
async def test_a_submission_that_is_cut(ring: AsyncRing, number: int, taken: int) -> None:
    """Where the kernel takes only the beginning of a chain the rest fails, and what is behind the chain goes on."""
    cuts = 0

    def enter(fd: int, to_submit: int, *rest: Any) -> int:
        nonlocal cuts
        if to_submit > taken and not cuts:
            cuts += 1
            return real_enter(fd, taken, *rest)
        return real_enter(fd, to_submit, *rest)

    with replaced(enter=enter):
        chain = asyncio.create_task(run(ring, number, 0, 3))
        await asyncio.sleep(0)
        other = asyncio.create_task(ring.write(number, b"other", 10))
        with pytest.raises(OSError) as caught:
            await chain
        assert caught.value.errno == errno.EINVAL
        assert await other == 5
    assert cuts == 1
    assert os.pread(number, 99, 0)[:10] == bytes(range(taken)).ljust(10, b"\0")


async def test_e4_a_kernel_that_takes_nothing(new_ring: RingFactory, number: int) -> None:
    """While enter() fails a chain waits for room with the others, can be cancelled, and goes whole afterwards."""
    ring = await new_ring(4)
    failures = 6

    def enter(fd: int, to_submit: int, *rest: Any) -> int:
        nonlocal failures
        if to_submit and failures:
            failures -= 1
            return -errno.EBUSY
        return real_enter(fd, to_submit, *rest)

    with replaced(enter=enter):
        tasks = [asyncio.create_task(run(ring, number, 4 * at, 3)) for at in range(6)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found.pop(4), asyncio.CancelledError)
    for links in found:
        assert [link.result for link in links] == [1, 1, 1]  # type: ignore[union-attr]
    assert ring.statistics().in_flight == 0


async def test_i4_nothing_is_left_behind(ring: AsyncRing, number: int) -> None:
    """Chains that went well, failed or were cancelled leave no cycles."""
    gc.collect()
    gc.disable()
    try:
        for fd in (number, 9999):
            with contextlib.suppress(OSError):
                await run(ring, fd, 0, 3)
        task = asyncio.create_task(run(ring, number, 0, 3))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        del task
        assert not [each for each in gc.get_objects() if isinstance(each, aiouring.Chain | Link)]
    finally:
        gc.enable()


async def test_more_files_by_number_than_one_turn_guards(ring: AsyncRing) -> None:
    """A chain cannot be divided, so one that names too many is refused, and the loop goes on; by objects it is none."""
    files = [os.fdopen(os.memfd_create("file"), "r+b", buffering=0) for _ in range(lib.AU_SLOTS_AT_ONCE + 1)]
    try:
        async with asyncio.timeout(5):
            with pytest.raises(ValueError, match=r"a chain of 65 requests names more than 64 files by their numbers"):
                async with ring.chain() as chain:
                    for file in files:
                        chain.write(file.fileno(), b"number", 0)
            await asyncio.gather(*(ring.write(file.fileno(), b"single", 0) for file in files))
            async with ring.chain() as chain:
                for file in files:
                    chain.write(file, b"object", 0)
        assert [os.pread(file.fileno(), 9, 0) for file in files] == [b"object"] * len(files)
    finally:
        for file in files:
            file.close()


async def test_h2_a_number_that_was_taken_back_may_be_another_files(ring: AsyncRing, number: int) -> None:
    """What a chain that came to nothing noted of a descriptor is not held against the next file with its number."""
    first = os.memfd_create("first")
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        async with ring.chain() as chain:
            chain.write(first, b"x", 0)
            chain.write(9999, b"x", 0)
    os.close(first)
    with socket.socket() as listener:
        assert listener.fileno() == first
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            with await ring.accept(first):
                pass
