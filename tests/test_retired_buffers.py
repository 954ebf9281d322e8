"""Tests of RetiredBuffers: the kernel's tags, what they keep alive, and that they are never taken for requests."""

import asyncio
import errno
import gc
import os
import weakref
from collections.abc import Iterator

import pytest
from conftest import RingFactory, settle
from injected_faults import replaced

import aiouring
from aiouring import Opcode, Ring, _synchronous_ring
from aiouring._driver import GRAVEYARD
from aiouring._retired_buffers import KEPT
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


class Memory(bytearray):
    """A bytearray that can be watched going away."""


# ---- on a loop ---------------------------------------------------------------------------------


async def test_tag_of_an_idle_buffer(ring: aiouring.AsyncRing) -> None:
    """Replaced, removed and unregistered buffers that nobody uses are let go of at once."""
    table = ring.register_buffers([bytearray(10) for _ in range(4)])
    retired = [*table.update(0, [bytearray(5), None]), table.remove(2), table.unregister()]
    assert [list(each.indexes) for each in retired] == [[0], [1], [2], [0, 3]]
    assert [each.done for each in retired] == [False] * 4
    async with asyncio.timeout(5):
        for each in retired:
            await each.wait()
    assert [each.done for each in retired] == [True] * 4
    assert repr(retired[3]) == "<RetiredBuffers of 2 slots, done>"
    assert ring.statistics().strays == 0


async def test_tag_comes_behind_the_last_request(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """A replaced buffer is let go of when the last of the requests that use it has ended, not before."""
    table = ring.register_buffers([bytearray(10)])
    buffer = table[0]
    tasks = [asyncio.create_task(ring.read_fixed(pipe[0], buffer, length=4)) for _ in range(2)]
    await settle(ring)
    (retired,) = table.update(0, [bytearray(10)])
    waiting = asyncio.create_task(retired.wait())
    for written in range(2):
        await settle(ring)
        assert (retired.done, waiting.done()) == (False, False)
        os.write(pipe[1], b"data")
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED if not written else asyncio.ALL_COMPLETED)
    async with asyncio.timeout(5):
        await waiting
    assert [task.result() for task in tasks] == [4, 4]
    assert bytes(buffer.view[:4]) == b"data"
    buffer.release()
    table.unregister()


@pytest.mark.parametrize("how", ["update", "remove", "unregister"])
async def test_m8_memory_lives_until_its_tag(ring: aiouring.AsyncRing, pipe: tuple[int, int], how: str) -> None:
    """The memory of a buffer that left the table lives while a request uses it, and no longer than that."""
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = ring.register_buffers([memory])
    buffer = table[0]
    task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
    await settle(ring)
    retired = {
        "update": lambda: table.update(0, [bytearray(1)])[0],
        "remove": lambda: table.remove(0),
        "unregister": table.unregister,
    }[how]()
    with pytest.raises(BufferError):
        memory.extend(b"x")
    del memory
    gc.collect()
    assert gone() is not None
    os.write(pipe[1], b"data")
    assert await task == 4
    assert bytes(buffer.view[:4]) == b"data"
    await retired.wait()
    assert gone() is not None  # the lease still shows it
    buffer.release()
    del task
    gc.collect()
    assert gone() is None
    table.unregister()


async def test_m8_memory_without_a_lease(ring: aiouring.AsyncRing) -> None:
    """A table that is dropped after unregistering leaves its memory to the tags, which let it go when they come."""
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = ring.register_buffers([memory])
    table.unregister()
    del memory, table
    assert ring._driver is not None
    ring._driver.registry.buffers = None
    gc.collect()
    assert gone() is not None
    await settle(ring)
    gc.collect()
    assert gone() is None


async def test_memory_can_be_resized_again(ring: aiouring.AsyncRing) -> None:
    """The export of the caller's memory ends with the tag, although table and lease are still there."""
    memory = bytearray(10)
    table = ring.register_buffers([memory])
    with table[0] as lease:
        pass
    with pytest.raises(BufferError):
        memory.append(1)
    await table.unregister().wait()
    memory.append(1)
    assert lease.ended


async def test_requests_and_tags_share_numbers(ring: aiouring.AsyncRing) -> None:
    """Requests that are started between registrations never get a tag's number, nor tags a request's."""
    driver = ring._driver
    assert driver is not None
    seen: set[int] = set()
    for _ in range(20):
        await asyncio.gather(*(ring.nop() for _ in range(5)))
        table = ring.register_buffers(count=7, size=10)
        tags = set(table._tags)
        assert len(tags) == 7
        assert not tags & seen
        seen |= tags | {driver.draw_number()}
        await asyncio.gather(*(ring.nop() for _ in range(5)), table.unregister().wait())
    assert driver.strays == 0
    assert not driver.registry.retiring


async def test_idle_tags_are_not_in_flight(ring: aiouring.AsyncRing) -> None:
    """A registered table counts as nothing in flight, before and after its end."""
    with ring.register_buffers(count=3, size=10) as table:
        assert ring.statistics().in_flight == 0
    assert table.unregister().done is False
    assert ring.statistics().in_flight == 0
    assert await ring.cancel(0) == 0
    await settle(ring)
    assert table.unregister().done is True


async def test_more_tags_than_completions_fit(new_ring: RingFactory) -> None:
    """A table of more buffers than the completion queue has room for loses no tag."""
    ring = await new_ring(entries=4, cq_entries=8)
    table = ring.register_buffers(count=1500, size=1)
    async with asyncio.timeout(20):
        await table.unregister().wait()
    assert ring.statistics().strays == 0


async def test_no_tags_after_a_failed_registration(ring: aiouring.AsyncRing) -> None:
    """A registration that the kernel refuses posts no tag, and draws none twice."""
    hole = memoryview(bytearray(10))
    table = ring.register_buffers_sparse(2)
    with pytest.raises(ValueError):
        table.update(0, [hole, bytearray(0)])
    await settle(ring)
    assert ring.statistics().strays == 0
    assert table.sizes == [0, 0]
    await table.unregister().wait()


async def test_waiters_that_are_cancelled(ring: aiouring.AsyncRing, pipe: tuple[int, int]) -> None:
    """Several may wait; one that is cancelled disturbs no other."""
    table = ring.register_buffers(count=1, size=10)
    with await table.acquire() as buffer:
        task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
        await settle(ring)
        retired = table.unregister()
        waiters = [asyncio.create_task(retired.wait()) for _ in range(3)]
        await settle(ring)
        waiters[1].cancel()
        os.write(pipe[1], b"data")
        async with asyncio.timeout(5):
            await waiters[0]
            await waiters[2]
        assert waiters[1].cancelled()
        assert await task == 4


async def test_close_ends_the_wait(new_ring: RingFactory, pipe: tuple[int, int]) -> None:
    """Closing the ring cancels the request; who waits for its buffer gets an error or the end, at once."""
    ring = await new_ring()
    table = ring.register_buffers(count=1, size=10)
    buffer = await table.acquire()
    task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
    await settle(ring)
    retired = table.unregister()
    waiter = asyncio.create_task(retired.wait())
    await settle(ring)
    async with asyncio.timeout(5):
        await ring.aclose()
        for ended in (task, waiter):
            with pytest.raises(aiouring.RingClosedError):
                await ended
    assert retired.done is True
    await retired.wait()
    buffer.release()


async def test_close_unregisters_and_finishes(new_ring: RingFactory) -> None:
    """A table that is registered when its ring is closed has been let go of afterwards."""
    ring = await new_ring()
    memory = bytearray(10)
    table = ring.register_buffers([memory])
    await ring.aclose()
    assert not table.registered
    assert table.unregister().done is True
    memory.append(1)


@pytest.mark.leaves_things
async def test_b2_tags_in_the_graveyard(new_ring: RingFactory, pipe: tuple[int, int]) -> None:
    """When the ring is closed although a request would not stop, the memory of its buffer is kept for ever."""
    ring = await new_ring(close_timeout=0)
    driver = ring._driver
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = ring.register_buffers([memory])
    buffer = table[0]
    task = asyncio.create_task(ring.read_fixed(pipe[0], buffer))
    await settle(ring)
    retired = table.unregister()
    assert driver is not None
    buried = len(GRAVEYARD)
    with pytest.warns(ResourceWarning, match="would not stop"):
        driver.let_go()  # as after the deadline
    assert len(GRAVEYARD) == buried + 1
    with pytest.raises(aiouring.RingClosedError):
        await task
    with pytest.raises(aiouring.RingClosedError, match="let go"):
        await retired.wait()
    assert retired.done is False
    buffer.__exit__(KeyError)
    del memory, table, retired, buffer, task
    gc.collect()
    assert gone() is not None
    GRAVEYARD.clear()
    ring._closed = True


# ---- on a ring without a loop ------------------------------------------------------------------


@pytest.fixture
def plain(profile: TaskRun) -> Iterator[Ring]:
    """A ring without a loop."""
    with Ring(8, cq_entries=16, task_run=profile) as made:
        yield made


def test_tags_that_the_caller_chose(plain: Ring, pipe: tuple[int, int]) -> None:
    """On a Ring a tag is a completion with the caller's user_data, behind that of the last request."""
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = plain.register_buffers([memory, bytearray(5)], tags=[77, 0])
    del memory
    buffer = table[0]
    plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
    assert plain.submit() == []
    retired = table.unregister()
    assert retired.done is False
    assert plain.submit() == []
    os.write(pipe[1], b"data")
    found = plain.wait(2)
    assert found == [(1, 4, 0), (77, 0, 0)]
    assert retired.done is None  # the second buffer had no tag
    buffer.release()
    gc.collect()
    assert gone() is None


def test_order_of_many_tags(plain: Ring) -> None:
    """Tags of idle buffers come in the order of the slots, at once."""
    table = plain.register_buffers([bytearray(1) for _ in range(5)], tags=[10, 20, 0, 40, 50])
    assert table.remove(3).done is False
    assert plain.submit() == [(40, 0, 0)]
    table.update(1, [bytearray(1)], tags=[21])
    assert plain.submit() == [(20, 0, 0)]
    table.unregister()
    assert sorted(completion.user_data for completion in plain.submit()) == [10, 21, 50]


def test_a_request_is_not_a_tag(plain: Ring, pipe: tuple[int, int]) -> None:
    """A completion with a tag's number but a result of its own does not end what waits for the tag."""
    table = plain.register_buffers([bytearray(4)], tags=[7])
    buffer = table[0]
    plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=7, fd=pipe[0])
    plain.submit()
    retired = table.unregister()
    os.write(pipe[1], b"data")
    assert plain.wait(2) == [(7, 4, 0), (7, 0, 0)]
    assert retired.done is True
    buffer.release()


@pytest.mark.parametrize(
    ("tags", "text"),
    [([1], "1 tags are given for 2"), ([5, 5], "tag=5"), ([-1, 0], "tag=-1"), ([1 << 63, 0], "outside 0 to")],
)
def test_tags_that_cannot_be(plain: Ring, tags: list[int], text: str) -> None:
    """Tags that could not be told apart, or that are too many or too few, are refused; nothing is registered."""
    with pytest.raises(ValueError, match=text):
        plain.register_buffers([bytearray(1), bytearray(1)], tags=tags)
    with plain.register_buffers(count=1, size=1) as table:
        assert table.registered


def test_tags_in_use(plain: Ring, pipe: tuple[int, int]) -> None:
    """A tag that has not come yet, or that another slot has, is not given again; nor one to an empty slot."""
    table = plain.register_buffers([bytearray(4), bytearray(4)], tags=[7, 8])
    with table[0] as buffer:
        plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
        plain.submit()
        table.remove(0)
        for memory, tag in ((bytearray(1), 7), (bytearray(1), 8), (None, 9)):
            with pytest.raises(ValueError, match=f"tag={tag} "):
                table.update(0, [memory], tags=[tag])
        assert table.sizes == [0, 4]
        os.write(pipe[1], b"data")
        assert plain.wait(2) == [(1, 4, 0), (7, 0, 0)]
    assert table.update(0, [bytearray(1)], tags=[7]) == []


def test_a_tag_that_is_to_come_is_no_requests_number(plain: Ring, pipe: tuple[int, int]) -> None:
    """A request cannot have the number of a tag that the kernel has yet to post: the two could not be told apart."""
    table = plain.register_buffers([bytearray(4)], tags=[7])
    with table[0] as buffer:
        plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
        plain.submit()
        retired = table.unregister()
        with pytest.raises(aiouring.ResourceBusyError, match="user_data=7 is the tag"):
            plain.prepare(Opcode.NOP, user_data=7)
        os.write(pipe[1], b"data")
        assert plain.wait(2) == [(1, 4, 0), (7, 0, 0)]
    assert retired.done is True
    plain.prepare(Opcode.NOP, user_data=7)
    assert plain.wait() == [(7, 0, 0)]


async def test_an_async_ring_draws_its_own(ring: aiouring.AsyncRing) -> None:
    """On an AsyncRing nobody can choose a tag that might be a request's number."""
    with ring.register_buffers_sparse(1) as table:
        with pytest.raises(ValueError, match="draws its tags itself"):
            table.update(0, [bytearray(1)], tags=[1])


def test_nobody_waits_without_a_loop(plain: Ring) -> None:
    """wait() says that there is no loop to wait on, or that there is no tag to wait for."""
    with plain.register_buffers([bytearray(1)], tags=[3]) as table:
        retired = table.remove(0)
        with pytest.raises(RuntimeError, match="no event loop"):
            retired.wait().send(None)
    plain.submit()
    with plain.register_buffers([bytearray(1)]) as table:
        silent = table.remove(0)
        assert silent.done is None
        assert "not tagged" in repr(silent)
        with pytest.raises(ValueError, match="without a tag"):
            silent.wait().send(None)


@pytest.mark.leaves_things
def test_b2_closing_a_ring_before_its_tags(plain: Ring, pipe: tuple[int, int]) -> None:
    """A Ring whose kernel stops nothing any more keeps a retired buffer's memory for ever, and says so."""
    memory = Memory(10)
    gone = weakref.ref(memory)
    table = plain.register_buffers([memory], tags=[7])
    buffer = table[0]
    plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
    plain.submit()
    retired = table.unregister()
    with pytest.warns(ResourceWarning, match="kept until the process ends") as said:
        with replaced(enter=lambda *_: -errno.EIO):
            plain.close()
    assert len(said) == 2  # for the request, and for the buffer that had left its table
    assert retired.done is False
    with pytest.raises(aiouring.RingClosedError):
        retired.wait().send(None)
    buffer.__exit__(KeyError)
    del memory, table, retired, buffer
    gc.collect()
    assert gone() is not None
    KEPT.clear()
    _synchronous_ring.GRAVEYARD.clear()
    gc.collect()
    assert gone() is None


def test_b2_closing_a_ring_ends_what_uses_its_buffers(plain: Ring, pipe: tuple[int, int]) -> None:
    """Closing cancels the request, so the kernel lets go of the buffer, and nothing is kept."""
    memory = bytearray(10)
    table = plain.register_buffers([memory], tags=[7])
    with table[0] as buffer:
        plain.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
        plain.submit()
        retired = table.unregister()
        plain.close()
        assert retired.done is True
    assert not KEPT
    memory.append(1)


def test_closing_a_ring_with_tags_to_drain(plain: Ring) -> None:
    """Tags that have come and were not looked at are no reason to keep anything."""
    memory = bytearray(10)
    retired = plain.register_buffers([memory], tags=[7]).unregister()
    assert retired.done is False
    plain.close()
    assert retired.done is True
    assert not KEPT
    memory.append(1)


def test_unregistering_twice(plain: Ring) -> None:
    """The second time says what the first said, and the kernel is not asked: it would answer ENXIO."""
    table = plain.register_buffers([bytearray(1)], tags=[3])
    first = table.unregister()
    assert table.unregister() is first
    assert lib.au_ring_register(plain.raw, lib.AU_UNREGISTER_BUFFERS, ffi.NULL, 0) == -errno.ENXIO
    assert plain.submit() == [(3, 0, 0)]
