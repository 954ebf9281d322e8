"""Tests of FixedBuffer, Slots and Vector: lending by index, keys that change, and ranges inside a buffer."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

import aiouring
from aiouring._fixed_buffer import Slots, Vector
from aiouring._uring import lib


class Memory(bytearray):
    """A bytearray that can be watched going away."""


async def test_lending_by_index(ring: aiouring.AsyncRing) -> None:
    """table[index] lends that very buffer, once; acquire() goes on with the others."""
    with ring.register_buffers(count=3, size=10) as table:
        with table[1] as buffer:
            assert (buffer.index, len(buffer)) == (1, 10)
            with pytest.raises(aiouring.ResourceBusyError, match="buffer 1 is lent already"):
                table[1]
            others = [await table.acquire(), await table.acquire()]
            assert sorted(other.index for other in others) == [0, 2]
            assert table.try_acquire() is None
            for other in others:
                other.release()
        assert table.statistics().in_use == 0
        with table[1] as buffer:
            assert buffer.index == 1


async def test_index_that_is_not_there(ring: aiouring.AsyncRing) -> None:
    """An index outside is an IndexError with the numbers, an empty slot a ValueError; after the end all is closed."""
    with ring.register_buffers_sparse(3) as table:
        for index in (3, -1, 1 << 40):
            with pytest.raises(IndexError, match=f"index={index} is outside the table's slots, 0 to 2"):
                table[index]
        with pytest.raises(ValueError, match="slot 1 is empty"):
            table[1]
    with pytest.raises(aiouring.RingClosedError):
        table[1]


async def test_a_table_is_not_iterated(ring: aiouring.AsyncRing) -> None:
    """A loop over the table would lend all of it: refused."""
    with ring.register_buffers(count=3, size=10) as table:
        with pytest.raises(TypeError):
            iter(table)
        assert table.statistics().high_water == 0


async def test_a_slice_holds_one_slot_up(ring: aiouring.AsyncRing) -> None:
    """A buffer whose lease ended in an exception while a slice was alive is lent again when the slice is gone."""
    memory = bytearray(b"0123456789")
    with ring.register_buffers([bytearray(1), memory]) as table:
        parts = []
        with pytest.raises(KeyError):
            with table[1] as buffer:
                parts.append(buffer.view[2:4])
                raise KeyError
        with pytest.raises(aiouring.ResourceBusyError, match="a slice of its view is still alive"):
            table[1]
        assert bytes(parts.pop()) == b"23"
        table[1].release()


async def test_a_released_lease_holds_no_memory(ring: aiouring.AsyncRing) -> None:
    """An old name for a lease does not keep the caller's memory."""
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = ring.register_buffers([memory])
    with table[0] as lease:
        lease.view[0] = 1
    await table.unregister().wait()
    del memory
    gc.collect()
    assert gone() is None
    for use in (lambda: lease.view, lease.memory, lease.release):
        with pytest.raises(ValueError, match="buffer 0 has been released already"):
            use()
    assert repr(lease) == "<FixedBuffer 0 released>"


async def test_keys_change_with_the_buffer(ring: aiouring.AsyncRing) -> None:
    """A slot's key names one buffer only; texts and `index` show the slot."""
    with ring.register_buffers([bytearray(10)]) as table:
        keys = set()
        for _ in range(5):
            with table[0] as lease:
                keys.add(lease.number)
                assert lease.index == 0
                assert repr(lease) == "<FixedBuffer 0 10 bytes>"
            table.update(0, [bytearray(10)])
        assert len(keys) == 5
        assert {key & lib.AU_SLOT_MASK for key in keys} == {0}


async def test_core_refuses_an_old_key(ring: aiouring.AsyncRing) -> None:
    """The C core lends, takes back and fills nothing under a key whose buffer was replaced."""
    with ring.register_buffers([bytearray(10)]) as table:
        old = lib.au_buffers_key(table.raw, 0)
        table.update(0, [bytearray(10)])
        with table[0] as lease:
            assert lease.number != old
            raw = ring._ring.raw
            assert lib.au_prepare_fixed(raw, 1, lib.AU_OP_READ_FIXED, 0, table.raw, old, 0, 1, 0, 0) == lib.AU_REPLACED
            assert lib.au_buffers_lend(table.raw, old) == lib.AU_REPLACED
            assert lib.au_buffers_give_back(table.raw, old) == lib.AU_REPLACED
            assert lib.au_buffers_lend(table.raw, lease.number) == lib.AU_NOT_LENT
            assert lib.au_buffers_lend(table.raw, 1) == lib.AU_BAD_INDEX
            assert lib.au_buffers_key(table.raw, 1) == 2**64 - 1
            assert lib.au_buffers_size(table.raw, 1) == 0
            assert lib.au_buffers_size(table.raw, lease.number) == 10


async def test_waiters_get_what_is_given_back(ring: aiouring.AsyncRing) -> None:
    """A buffer that was lent by index goes to who waits in line when it comes back."""
    with ring.register_buffers([bytearray(1)]) as table:
        lease = table[0]
        waiter = asyncio.create_task(table.acquire())
        await asyncio.sleep(0)
        assert table.statistics().waiting == 1
        lease.release()
        with pytest.raises(aiouring.ResourceBusyError):
            table[0]
        (await waiter).release()


def test_slots_of_no_ring() -> None:
    """Slots start empty, with nothing to lend and nothing pinned."""
    with aiouring.Ring(2, cq_entries=4) as ring:
        slots = Slots(ring, ring._unattended, {}, 4)
        assert (len(slots), slots.sizes, slots.size, slots.pinned_bytes, slots.registered) == (4, [0] * 4, 0, 0, False)
        assert slots.statistics().in_use == 0
        with pytest.raises(aiouring.RingClosedError):
            slots.try_acquire()


# ---- ranges ------------------------------------------------------------------------------------

RANGES: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "0 ranges are given, outside 1 to 1024"),
    ([(0, 1)] * 1025, ValueError, "1025 ranges"),
    ([(0, 1), (5, 0)], ValueError, "start=5 and length=0"),
    ([(0, 101)], ValueError, "start=0 and length=101: .* inside the buffer's 100"),
    ([(99, 2)], ValueError, "start=99 and length=2"),
    ([(100, 1)], ValueError, "start=100"),
    ([(-1, 2)], ValueError, "start=-1"),
    ([(0, -1)], ValueError, "length=-1"),
    ([(0, 1 << 70)], ValueError, "length=1180591620717411303424"),
    ([("0", 1)], TypeError, "not supported between"),
    ([0, 1], TypeError, "cannot unpack"),
]


@pytest.mark.parametrize(("ranges", "kind", "text"), RANGES)
async def test_ranges_that_will_not_do(ring: aiouring.AsyncRing, ranges: Any, kind: type[Exception], text: str) -> None:
    """Ranges that are empty, too many or not inside the buffer are refused with their numbers, in both verbs."""
    with ring.register_buffers(count=1, size=100) as table, await table.acquire() as buffer:
        before = ring.statistics().submitted
        for make in (lambda: Vector(buffer, ranges), lambda: ring.readv_fixed(0, buffer, ranges, 0).send(None)):
            with pytest.raises(kind, match=text):
                make()
        assert buffer.pins == 0
        assert ring.statistics().submitted == before


async def test_ranges_together_have_a_limit(ring: aiouring.AsyncRing) -> None:
    """What one request may move bounds the ranges together; so does the C core, for each and for all."""
    size = 1 << 30
    with ring.register_buffers_sparse(1) as table:
        assert table.sizes == [0]
    with ring.register_buffers(count=1, size=1 << 21) as table, await table.acquire() as buffer:
        with pytest.raises(ValueError, match=f"{1024 << 21} bytes together, over {lib.AU_MAX_TRANSFER}"):
            Vector(buffer, [(0, 1 << 21)] * 1024)
        good = Vector(buffer, [(0, 1), (5, 6)])
        assert (good.total, good.ranges) == (7, [(0, 1), (5, 6)])
        vectors, numbers, count = good.arguments
        fill = (ring._ring.raw, 1, lib.AU_OP_READV_FIXED, 0, table.raw)
        for bad in ((0, 0), (1 << 21, 1), (-1, 1), (0, size)):
            numbers[0], numbers[1] = bad
            code = lib.au_prepare_fixed_vector(*fill, buffer.number, vectors, numbers, count, 0, 0)
            assert code == lib.AU_BAD_LENGTH
        numbers[0], numbers[1] = 0, 1
        for wrong, rule in ((0, lib.AU_BAD_LENGTH), (1025, lib.AU_BAD_LENGTH)):
            assert lib.au_prepare_fixed_vector(*fill, buffer.number, vectors, numbers, wrong, 0, 0) == rule
        assert lib.au_prepare_fixed_vector(*fill, 1, vectors, numbers, 2, 0, 0) == lib.AU_BAD_INDEX
        assert lib.au_prepare_fixed_vector(*fill, buffer.number, vectors, numbers, 2, -2, 0) == lib.AU_BAD_OFFSET
        assert lib.au_ring_unsubmitted(ring._ring.raw) == 0
