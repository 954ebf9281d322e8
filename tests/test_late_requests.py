"""Tests of requests whose file the kernel looks up late: their slots stay, and a close of the file waits for them."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from registered_slots import agrees

import aiouring
from aiouring import AsyncRing


@pytest.fixture
def number(tmp_path: Path) -> int:
    """A file of 100 bytes, which the test closes."""
    made = os.open(tmp_path / "mine", os.O_CREAT | os.O_RDWR)
    os.write(made, bytes(100))
    return made


async def test_e12_a_slot_stays_until_its_request_has_ended(ring: AsyncRing, number: int, tmp_path: Path) -> None:
    """A slot that a request in flight will look up cannot be given another file, which it would cut off."""
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    os.write(other, bytes(100))
    with ring.register_files([number, None]) as files:
        mine = files[0]
        for verb in (
            ring.ftruncate(mine, 5),
            ring.fsync(mine),
            ring.fallocate(mine, 0, 7),
            ring.fgetxattr(mine, "user.a"),
        ):
            task = asyncio.create_task(verb)
            await asyncio.sleep(0)
            ring._driver.submit_queued()  # type: ignore[union-attr]
            for change in (lambda: files.update(0, [other]), mine.release):
                with pytest.raises(aiouring.ResourceBusyError, match=r"1 request.* will look slot 0 up"):
                    change()
            with pytest.raises(aiouring.ResourceBusyError, match="will look slot 0 up"):
                await ring.files_update(0, [other])
            files.update(1, [other])
            await asyncio.gather(task, return_exceptions=True)
            assert not files.changing
        assert files.update(0, [other]) == 1
        agrees(ring, files)
    assert os.fstat(number).st_size == 7
    assert os.fstat(other).st_size == 100
    os.close(number)
    os.close(other)


async def test_requests_share_a_slot(ring: AsyncRing, number: int) -> None:
    """Several on one slot: it can be changed when the last has ended; cancelled and failed ones count as ended."""
    with ring.register_files([number]) as files:
        tasks = [asyncio.create_task(ring.fsync(files[0])) for _ in range(5)]
        tasks.append(asyncio.create_task(ring.fallocate(files[0], 0, 1, 1 << 30)))
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert not files.changing
        with pytest.raises(OSError, match="not supported"):
            tasks[-1].result()
        files[0].release()
        with pytest.raises(ValueError, match="length=-1"):
            await ring.ftruncate(number, -1)
    os.close(number)


async def test_closing_awaits_late_requests(ring: AsyncRing, number: int, tmp_path: Path) -> None:
    """`close()` of a descriptor or slot ends what is in flight on it first, so its number can be given away."""
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    os.write(other, bytes(100))
    for _ in range(20):
        mine = os.dup(number)
        task = asyncio.create_task(ring.ftruncate(mine, 5))
        await asyncio.sleep(0)
        await ring.close(mine)
        assert os.dup(other) == mine
        await asyncio.gather(task, return_exceptions=True)
        os.close(mine)
        assert os.fstat(other).st_size == 100
    with ring.register_files([number]) as files:
        task = asyncio.create_task(ring.fsync(files[0]))
        await asyncio.sleep(0)
        await ring.close(files[0])
        await asyncio.gather(task, return_exceptions=True)
        assert files.slots() == [None]
    os.close(number)
    os.close(other)


async def test_no_new_table_while_a_slot_of_the_old_one_is_used(ring: AsyncRing, number: int) -> None:
    """A late request of the old table must not meet the file that the new one has in its slot."""
    files = ring.register_files([number])
    task = asyncio.create_task(ring.fsync(files[0]))
    await asyncio.sleep(0)
    ring._driver.submit_queued()  # type: ignore[union-attr]
    files.unregister()
    with pytest.raises(aiouring.ResourceBusyError):
        ring.register_files([0])
    await asyncio.gather(task, return_exceptions=True)
    assert task.exception() is None or task.exception().errno == errno.EBADF  # type: ignore[union-attr]
    ring.register_files([0]).unregister()
    os.close(number)


async def test_a_refused_request_uses_nothing(number: int) -> None:
    """Where the ring takes no request the slot is free."""
    ring = AsyncRing()
    files = ring.register_files([number])
    slot = files[0]
    await ring.aclose()
    with pytest.raises(aiouring.RingClosedError):
        await ring.fsync(slot)
    assert not files._used
    os.close(number)
