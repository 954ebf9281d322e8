"""Tests of RegisteredBuffers: lending in order, data that arrives where it should, and unregistering under load."""

import asyncio
import gc
import os
import random
from pathlib import Path

import pytest
from conftest import RingFactory, settle

import aiouring

# ---- lending -----------------------------------------------------------------------------------


async def test_lend_and_return(ring: aiouring.AsyncRing) -> None:
    """Each buffer is lent to one caller at a time, and the last returned is lent first."""
    with ring.register_buffers(count=3, size=100) as table:
        assert (len(table), table.size, table.registered) == (3, 100, True)
        assert repr(table) == "<RegisteredBuffers 3 x 100 bytes, 3 free>"
        leases = [await table.acquire() for _ in range(3)]
        assert sorted(lease.index for lease in leases) == [0, 1, 2]
        assert [bytes(lease.view) for lease in leases] == [bytes(100)] * 3
        assert table.try_acquire() is None
        leases[1].release()
        with await table.acquire() as again:
            assert again.index == leases[1].index
        leases[0].release()
        leases[2].release()
    assert repr(table) == "<RegisteredBuffers 3 x 100 bytes, unregistered>"


async def test_statistics(ring: aiouring.AsyncRing) -> None:
    """The high water mark stays, the rest follows."""
    with ring.register_buffers(count=4, size=10) as table:
        assert table.statistics() == aiouring.RegisteredBuffersStatistics(4, 10, in_use=0, high_water=0, waiting=0)
        for most in (1, 3, 2):
            for lease in [await table.acquire() for _ in range(most)]:
                lease.release()
        assert table.statistics() == aiouring.RegisteredBuffersStatistics(4, 10, in_use=0, high_water=3, waiting=0)
        leases = [await table.acquire() for _ in range(4)]
        waiter = asyncio.create_task(table.acquire())
        await asyncio.sleep(0)
        assert table.statistics() == aiouring.RegisteredBuffersStatistics(4, 10, in_use=4, high_water=4, waiting=1)
        for lease in leases:
            lease.release()
        (await waiter).release()


async def test_acquire_is_first_come_first_served(ring: aiouring.AsyncRing) -> None:
    """When all are lent, those who wait are served in the order in which they came."""
    order: list[int] = []

    async def use(number: int) -> None:
        with await table.acquire():
            order.append(number)
            await asyncio.sleep(0)

    with ring.register_buffers(count=2, size=10) as table:
        first, second = await table.acquire(), await table.acquire()
        tasks = [asyncio.create_task(use(number)) for number in range(8)]
        await asyncio.sleep(0)
        assert table.statistics().waiting == 8
        first.release()
        second.release()
        await asyncio.gather(*tasks)
    assert order == list(range(8))


async def test_newcomers_do_not_overtake(ring: aiouring.AsyncRing) -> None:
    """A buffer that comes back belongs to the first in line, whoever asks in the same turn."""
    with ring.register_buffers(count=1, size=10) as table:
        lease = await table.acquire()
        first = asyncio.create_task(table.acquire())
        await asyncio.sleep(0)
        newcomer = asyncio.create_task(table.acquire())
        lease.release()
        assert table.try_acquire() is None
        (await first).release()
        (await newcomer).release()


async def test_cancelled_waiter(ring: aiouring.AsyncRing) -> None:
    """A waiter that is cancelled, even in the turn in which it was handed a buffer, loses none."""
    with ring.register_buffers(count=1, size=10) as table:
        lease = await table.acquire()
        waiters = [asyncio.create_task(table.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        lease.release()
        waiters[1].cancel()
        (await waiters[2]).release()
        await asyncio.wait(waiters)
        assert [waiter.cancelled() for waiter in waiters] == [True, True, False]
        assert table.statistics().in_use == 0


async def test_waiter_is_served_when_the_last_slice_goes(ring: aiouring.AsyncRing) -> None:
    """A buffer that was held up by a slice (of a traceback, say) reaches who waits for it."""
    parts: list[memoryview] = []

    async def fail() -> None:
        with await table.acquire() as buffer:
            parts.append(buffer.view[:4])
            raise KeyError

    with ring.register_buffers(count=1, size=10) as table:
        with pytest.raises(KeyError):
            await fail()
        waiter = asyncio.create_task(table.acquire())
        await settle(ring)
        assert not waiter.done()
        parts.clear()
        async with asyncio.timeout(1):
            (await waiter).release()


async def test_c1_acquire_in_another_thread(ring: aiouring.AsyncRing) -> None:
    """Buffers are lent in the ring's thread only; elsewhere the rule is named and nothing changes."""
    with ring.register_buffers(count=1, size=10) as table:
        raised = None
        try:
            lent = await asyncio.to_thread(table.try_acquire)
            assert lent is not None
            lent.release()
        except aiouring.WrongContextError as error:
            raised = error
        await asyncio.get_running_loop().shutdown_default_executor()
        assert raised is not None
        assert table.statistics().high_water == 0


# ---- data --------------------------------------------------------------------------------------


async def test_g10_data_identity(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Random writes and reads at random starts, lengths and offsets agree with a model of the file."""
    choose = random.Random(7)
    size, file_size = 5000, 40_000
    model = bytearray(file_size)
    with (tmp_path / "file").open("w+b", buffering=0) as file, ring.register_buffers(count=3, size=size) as table:
        file.truncate(file_size)
        for _ in range(200):
            start = choose.randrange(size)
            length = choose.randrange(size - start + 1)
            offset = choose.randrange(file_size - length)
            async with await table.acquire() as buffer:
                before = choose.randbytes(size)
                buffer.view[:] = before
                if choose.random() < 0.5:
                    assert await ring.write_fixed(file, buffer, offset, start=start, length=length) == length
                    model[offset : offset + length] = before[start : start + length]
                    expected = before
                else:
                    assert await ring.read_fixed(file, buffer, offset, start=start, length=length) == length
                    expected = before[:start] + model[offset : offset + length] + before[start + length :]
                assert bytes(buffer.view) == expected
        assert Path(file.name).read_bytes() == model


async def test_g10_concurrent_data_identity(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Many requests at once, over few buffers, each get their own data."""
    size, pieces = 4096, 100
    contents = random.Random(3).randbytes(size * pieces)
    (tmp_path / "from").write_bytes(contents)

    async def copy(piece: int) -> None:
        async with await table.acquire() as buffer:
            assert await ring.read_fixed(source, buffer, piece * size) == size
            assert await ring.write_fixed(target, buffer, piece * size) == size

    with (
        (tmp_path / "from").open("rb", buffering=0) as source,
        (tmp_path / "to").open("wb", buffering=0) as target,
        ring.register_buffers(count=8, size=size) as table,
    ):
        await asyncio.gather(*(copy(piece) for piece in random.Random(4).sample(range(pieces), pieces)))
        assert table.statistics().high_water == 8
    assert (tmp_path / "to").read_bytes() == contents


async def test_file_position_and_end(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Without an offset the file's own position is used and moved; at the end come fewer bytes, then none."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb", buffering=0) as file, ring.register_buffers(count=1, size=4) as table:
        async with await table.acquire() as buffer:
            counts = [await ring.read_fixed(file, buffer) for _ in range(4)]
            assert (counts, bytes(buffer.view), file.tell()) == ([4, 4, 2, 0], b"8967", 10)
            assert await ring.read_fixed(file, buffer, 3, start=4) == 0
            assert await ring.read_fixed(file, buffer, 3, length=0) == 0
            assert await ring.read_fixed(file, buffer, 3, start=1, length=2) == 2
            assert bytes(buffer.view) == b"8347"


# ---- requests in flight ------------------------------------------------------------------------


async def test_pinned_while_in_flight(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A buffer that the kernel is going to fill cannot be released."""
    with ring.register_buffers(count=1, size=10) as table, await table.acquire() as buffer:
        task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
        await settle(ring)
        with pytest.raises(aiouring.ResourceBusyError, match=r"buffer 0 is in use by 1 request\(s\)"):
            buffer.release()
        os.write(pipe[1], b"data")
        assert await task == 4
        assert bytes(buffer.view[:4]) == b"data"


async def test_cancelled_read_unpins(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """When a cancelled read_fixed has raised, the kernel is done with the buffer."""
    with ring.register_buffers(count=1, size=10) as table:
        async with await table.acquire() as buffer:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await ring.read_fixed(pipe[0], buffer)
            assert buffer.pins == 0
        os.write(pipe[1], b"late")
        async with await table.acquire() as buffer:
            assert bytes(buffer.view) == bytes(10)
            assert await ring.read_fixed(pipe[0], buffer) == 4


@pytest.mark.parametrize("viewed", [False, True])
async def test_exception_with_a_read_in_flight(ring: aiouring.AsyncRing, pipe: tuple[int, int], viewed: bool) -> None:
    """A block left by an exception while its buffer is being filled gives it back at the completion."""
    tasks: list[asyncio.Task[int]] = []

    async def fail() -> None:
        with await table.acquire() as buffer:
            if viewed:
                buffer.view[:] = bytes(10)
            tasks.append(asyncio.create_task(ring.read_fixed(pipe[0], buffer)))
            await settle(ring)
            raise KeyError

    with ring.register_buffers(count=1, size=10) as table:
        with pytest.raises(KeyError):
            await fail()
        assert table.try_acquire() is None
        waiter = asyncio.create_task(table.acquire())
        os.write(pipe[1], b"data")
        assert await tasks[0] == 4
        async with asyncio.timeout(1):
            (await waiter).release()


async def test_a2_bytes_of_a_cancelled_read(pipe: tuple[int, int]) -> None:
    """Bytes that a cancelled read_fixed had already taken out of a pipe are the next read_fixed's."""
    async with aiouring.AsyncRing(task_run="coop") as ring:
        with ring.register_buffers(count=1, size=10) as table, await table.acquire() as buffer:
            task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
            await settle(ring)
            os.write(pipe[1], b"data")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            buffer.view[:] = bytes(10)
            async with asyncio.timeout(1):
                assert await ring.read_fixed(pipe[0], buffer) == 4
            assert bytes(buffer.view[:4]) == b"data"


# ---- unregistering -----------------------------------------------------------------------------


async def test_m8_unregister_with_a_read_in_flight(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """The request completes into the same memory, which is alive although nobody else holds it."""
    table = ring.register_buffers(count=2, size=10)
    buffer = await table.acquire()
    task = asyncio.create_task(ring.read_fixed(pipe[0], buffer, start=3))
    await settle(ring)
    table.unregister()
    assert not table.registered
    with ring.register_buffers(count=2, size=10) as second:
        del table
        gc.collect()
        os.write(pipe[1], b"data")
        assert await task == 4
        assert bytes(buffer.view) == b"\0\0\0data\0\0\0"
        buffer.release()
        async with await second.acquire() as other:
            assert bytes(other.view) == bytes(10)


async def test_unregister_is_idempotent(ring: aiouring.AsyncRing) -> None:
    """Doing it again does nothing, also inside and at the end of the `with` block."""
    with ring.register_buffers(count=1, size=10) as table:
        table.unregister()
        table.unregister()
    table.unregister()
    assert not table.registered


async def test_second_table(ring: aiouring.AsyncRing) -> None:
    """A ring has one table of buffers at a time; after it was unregistered there may be another."""
    with ring.register_buffers(count=1, size=10):
        with pytest.raises(aiouring.ResourceBusyError, match="one table"):
            ring.register_buffers(count=1, size=10)
    with ring.register_buffers(count=3, size=20) as table:
        async with await table.acquire() as buffer:
            assert len(buffer) == 20


async def test_lease_of_an_unregistered_table(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """It is plain memory: good for `read` and `write`, refused by the fixed verbs, even with a new table."""
    (tmp_path / "file").write_bytes(b"0123456789")
    table = ring.register_buffers(count=1, size=4)
    with (tmp_path / "file").open("rb") as file, await table.acquire() as buffer:
        table.unregister()
        assert await ring.read(file, buffer, 3) == 4
        assert bytes(buffer.view) == b"3456"
        with pytest.raises(aiouring.RingClosedError):
            await ring.read_fixed(file, buffer, 0)
        with ring.register_buffers(count=1, size=4):
            with pytest.raises(aiouring.RingClosedError):
                await ring.read_fixed(file, buffer, 0)
    with pytest.raises(aiouring.RingClosedError, match="unregistered"):
        await table.acquire()
    with pytest.raises(aiouring.RingClosedError, match="unregistered"):
        table.try_acquire()


async def test_unregister_dismisses_who_waits(ring: aiouring.AsyncRing) -> None:
    """Whoever waits for a buffer is told that there will be none; leases stay good."""
    table = ring.register_buffers(count=1, size=10)
    with await table.acquire() as lease:
        waiters = [asyncio.create_task(table.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        table.unregister()
        for waiter in waiters:
            with pytest.raises(aiouring.RingClosedError, match="unregistered while this waited"):
                await waiter
        assert bytes(lease.view) == bytes(10)
    assert table.statistics().in_use == 0


async def test_close_dismisses_who_waits(new_ring: RingFactory) -> None:
    """Closing the ring does the same."""
    ring = await new_ring()
    table = ring.register_buffers(count=1, size=10)
    with await table.acquire():
        waiter = asyncio.create_task(table.acquire())
        await asyncio.sleep(0)
        await ring.aclose()
        with pytest.raises(aiouring.RingClosedError, match="closed while this waited"):
            await waiter
        with pytest.raises(aiouring.RingClosedError):
            await table.acquire()
