"""Tests of registrations that the kernel refuses, does by halves, or that come from where they must not."""

import asyncio
import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import RingFactory, settle

import aiouring
from aiouring._uring import ffi, lib

Answer = Callable[[int, int, Any, int], int | None]


@pytest.fixture
def answers() -> Iterator[list[Answer]]:
    """Functions that are asked, first to last, before the kernel is: opcode first; None leaves it to the next."""
    asked: list[Answer] = []
    real = lib.au_kernel.do_register

    def answer(fd: int, opcode: int, argument: Any, count: int) -> int:
        for ask in asked:
            code = ask(opcode, fd, argument, count)
            if code is not None:
                return code
        return int(real(fd, opcode, argument, count))

    callback = ffi.callback("int(int, unsigned, void *, unsigned)", answer)
    lib.au_kernel.do_register = callback
    yield asked
    lib.au_kernel.do_register = real


def refusing(opcode: int, code: int) -> Answer:
    """A kernel that refuses one kind of registration."""
    return lambda asked, *_: code if asked == opcode else None


@pytest.mark.parametrize("code", [-errno.EPERM, -errno.ENOMEM, -errno.EFAULT, -errno.EINVAL])
async def test_e9_registering_is_refused(ring: aiouring.AsyncRing, answers: list[Answer], code: int) -> None:
    """Nothing is registered and no memory is held; when the kernel allows it, all is as ever."""
    memory = bytearray(10)
    answers.append(refusing(lib.AU_REGISTER_BUFFERS2, code))
    arguments: list[dict[str, Any]] = [{"buffers": [memory]}, {"count": 2, "size": 5}]
    for given in arguments:
        with pytest.raises(OSError) as caught:
            ring.register_buffers(**given)
        assert caught.value.errno == -code
    with pytest.raises(aiouring.UnsupportedKernelError if code == -errno.EINVAL else OSError):
        ring.register_buffers_sparse(3)
    memory.append(1)
    answers.clear()
    await settle(ring)
    assert ring.statistics().strays == 0
    with ring.register_buffers([memory]) as table:
        assert table.sizes == [11]


@pytest.mark.parametrize("code", [-errno.EPERM, -errno.ENOMEM, -errno.EFAULT])
async def test_e9_updating_is_refused(ring: aiouring.AsyncRing, answers: list[Answer], code: int) -> None:
    """The table is as it was, no tag is expected, and the new memory is not held."""
    new = bytearray(5)
    with ring.register_buffers([bytearray(b"old")]) as table:
        answers.append(refusing(lib.AU_REGISTER_BUFFERS_UPDATE, code))
        with pytest.raises(OSError) as caught:
            table.update(0, [new])
        assert caught.value.errno == -code
        new.append(1)  # although the exception is still here
        with pytest.raises(OSError):
            table.remove(0)
        answers.clear()
        with table[0] as buffer:
            assert bytes(buffer.view) == b"old"
        assert table.statistics().in_use == 0
    await settle(ring)


async def test_a_kernel_that_does_one_at_a_time(ring: aiouring.AsyncRing, answers: list[Answer]) -> None:
    """An update that the kernel does in parts is gone on with, and comes true as a whole."""
    nr = 6  # the place of the count in struct io_uring_rsrc_update2, in 32-bit words
    calls: list[int] = []

    def one(opcode: int, _fd: int, argument: Any, _count: int) -> None:
        if opcode == lib.AU_REGISTER_BUFFERS_UPDATE:
            words = ffi.cast("uint32_t *", argument)
            calls.append(words[nr])
            words[nr] = 1

    old = [bytearray(b"%d" % number) for number in range(4)]
    with ring.register_buffers(old) as table:
        answers.append(one)
        retired = table.update(0, [bytearray(5), bytearray(6), None, bytearray(7)])
        assert calls == [4, 3, 2, 1]
        assert table.sizes == [5, 6, 0, 7]
        assert [list(each.indexes) for each in retired] == [[0], [1], [2], [3]]
        for each in retired:
            await each.wait()
        for memory in old:
            memory.append(1)


async def test_a_kernel_that_stops(ring: aiouring.AsyncRing, answers: list[Answer]) -> None:
    """After a part was done the reason for stopping is asked for; ENOMEM keeps its explanation."""
    seen: list[int] = []

    def one_then_none(opcode: int, _fd: int, argument: Any, _count: int) -> int | None:
        if opcode != lib.AU_REGISTER_BUFFERS_UPDATE:
            return None
        seen.append(opcode)
        if len(seen) > 1:
            return -errno.ENOMEM
        ffi.cast("uint32_t *", argument)[6] = 1
        return None

    with ring.register_buffers_sparse(3) as table:
        answers.append(one_then_none)
        with pytest.raises(aiouring.PartlyUpdatedError, match="slot 2: .* RLIMIT_MEMLOCK") as caught:
            table.update(1, [bytearray(5), bytearray(6)])
        assert (caught.value.errno, caught.value.changed, caught.value.retired) == (errno.ENOMEM, range(1, 2), [])
        assert table.sizes == [0, 5, 0]
        answers.clear()


async def test_e9_cloning_is_refused(new_ring: RingFactory, answers: list[Answer]) -> None:
    """Neither a new table nor one that was to be replaced or grown has changed."""
    first, second = await new_ring(), await new_ring()
    with first.register_buffers(count=3, size=4) as source:
        answers.append(refusing(lib.AU_REGISTER_CLONE_BUFFERS, -errno.ENOMEM))
        with pytest.raises(OSError) as caught:
            second.clone_buffers(source)
        assert caught.value.errno == errno.ENOMEM
        with second.register_buffers([bytearray(b"mine")]) as table:
            with pytest.raises(OSError):
                second.clone_buffers(source, replace=True)
            assert (len(table), table.sizes) == (1, [4])
            answers.clear()
            with table[0] as buffer:
                assert bytes(buffer.view) == b"mine"
            second.clone_buffers(source, replace=True)
            assert table.sizes == [4, 4, 4]


async def test_e9_unregistering_is_refused(ring: aiouring.AsyncRing, answers: list[Answer]) -> None:
    """The table is still registered, and can be unregistered later."""
    table = ring.register_buffers(count=1, size=4)
    answers.append(refusing(lib.AU_UNREGISTER_BUFFERS, -errno.EPERM))
    with pytest.raises(PermissionError):
        table.unregister()
    assert table.registered
    with table[0] as buffer:
        assert len(buffer) == 4
    answers.clear()
    await table.unregister().wait()


async def test_under_the_default_restrictions(new_ring: RingFactory) -> None:
    """A ring that allows only what an AsyncRing needs can do all of this."""
    ring, other = await new_ring(restrictions=True), await new_ring(restrictions=True)
    with ring.register_buffers_sparse(2) as table, open("/dev/zero", "rb") as zeros:
        table.update(0, [bytearray(b"data"), bytearray(1)])
        await table.remove(1).wait()
        with other.clone_buffers(table) as clone, clone[0] as buffer:
            assert await other.readv_fixed(zeros, buffer, [(1, 2)], 0) == 2
            assert bytes(buffer.view) == b"d\0\0a"
    await table.unregister().wait()


# ---- wrong places ------------------------------------------------------------------------------


async def test_c1_another_thread(ring: aiouring.AsyncRing) -> None:
    """Every registration is refused in another thread, before anything has changed."""
    table = ring.register_buffers([bytearray(4)])
    errors: list[BaseException] = []

    def use() -> None:
        for attempt in (
            lambda: ring.register_buffers([bytearray(1)]),
            lambda: ring.register_buffers_sparse(1),
            lambda: ring.clone_buffers(table, replace=True),
            lambda: table.update(0, [bytearray(1)]),
            lambda: table.remove(0),
            lambda: table[0],
            table.unregister,
        ):
            try:
                attempt()
            except aiouring.WrongContextError as error:
                errors.append(error.with_traceback(None))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 7
    assert (table.registered, table.sizes) == (True, [4])
    await table.unregister().wait()


async def test_c5_in_a_forks_child(ring: aiouring.AsyncRing) -> None:
    """The child is told that the ring is its parent's; the parent's table is untouched."""
    with ring.register_buffers([bytearray(4)]) as table:
        child = os.fork()
        if child == 0:
            refused = 0
            for attempt in (lambda: table.update(0, [bytearray(1)]), lambda: table[0], table.unregister):
                try:
                    attempt()
                except aiouring.WrongContextError:
                    refused += 1
            os._exit(refused)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        with table[0] as buffer, open("/dev/zero", "rb") as zeros:
            assert await ring.read_fixed(zeros, buffer, 0) == 4


async def test_d4_lease_after_the_ring_was_closed(new_ring: RingFactory) -> None:
    """A lease that outlives its ring is plain memory, and ends without an error."""
    ring = await new_ring()
    memory = bytearray(b"data")
    table = ring.register_buffers([memory])
    lease = table[0]
    await ring.aclose()
    assert bytes(lease.view) == b"data"
    with pytest.raises(BufferError):
        memory.append(1)
    lease.release()
    memory.append(1)
    for use in (table.try_acquire, lambda: table[0], lambda: table.update(0, [bytearray(1)]), lambda: table.remove(0)):
        with pytest.raises(aiouring.RingClosedError):
            use()
    assert table.unregister().done is True


async def test_closing_in_the_middle_of_everything(new_ring: RingFactory) -> None:
    """A ring with retired buffers, reads in flight on old and new memory and a clone closes, and lets go of all."""
    ring, other = await new_ring(), await new_ring()
    memories = [bytearray(8) for _ in range(3)]
    ends = os.pipe()
    table = ring.register_buffers(memories[:2])
    clone = other.clone_buffers(table)
    leases = [table[0], table[1]]
    tasks = [asyncio.create_task(ring.read_fixed(ends[0], lease)) for lease in leases]
    await settle(ring)
    (retired,) = table.update(0, [memories[2]])
    leases.append(table[0])
    tasks.append(asyncio.create_task(ring.read_fixed(ends[0], leases[2])))
    await settle(ring)
    await ring.aclose()
    for task in tasks:
        with pytest.raises(aiouring.RingClosedError):
            await task
    for lease in leases:
        lease.release()
    assert retired.done is True
    del tasks, task
    gc.collect()  # the tracebacks of the errors hold what the requests held
    memories[2].append(1)
    with clone[1] as buffer, open("/dev/zero", "rb") as zeros:
        buffer.view[:] = b"x" * 8
        assert await other.read_fixed(zeros, buffer, 0) == 8
    clone.unregister()
    del buffer
    for memory in memories[:2]:
        memory.append(1)
    for end in ends:
        os.close(end)


# ---- who is charged ----------------------------------------------------------------------------

# One ring is made with CAP_IPC_LOCK, one without; what counts is the making, not the time of registering.
EXEMPT = """
import os, resource
import aiouring

resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 17, 1 << 17))
with aiouring.Ring(4, cq_entries=8) as early:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(61_000 + os.getpid() % 3000)
    with early.register_buffers(count=1, size=1 << 20) as table:
        print("early", table.pinned_bytes)
    with aiouring.Ring(4, cq_entries=8) as late:
        try:
            late.register_buffers(count=1, size=1 << 20)
        except OSError as error:
            print("late", error.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has CAP_IPC_LOCK to lose")
def test_m9_exempt_is_who_made_the_ring() -> None:
    """A ring made with CAP_IPC_LOCK stays exempt when the process has lost it; one made afterwards is not."""
    done = subprocess.run([sys.executable, "-c", EXEMPT], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"early {1 << 20}", f"late {errno.ENOMEM}"]
