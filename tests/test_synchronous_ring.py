"""Tests of Ring without an event loop: registered buffers and buffer rings by hand."""

import errno
import gc
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from injected_faults import run_python

import aiouring
from aiouring import Opcode, Ring, SubmissionFlags, _synchronous_ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of 8 submissions and 16 completions, of the profile under test."""
    with Ring(8, cq_entries=16, task_run=profile) as made:
        yield made


def test_fixed_write_and_read(ring: Ring) -> None:
    """What one registered buffer writes to a file another reads from it."""
    file = os.memfd_create("file")
    with ring.register_buffers(count=2, size=64) as buffers:
        first, second = buffers.try_acquire(), buffers.try_acquire()
        assert first is not None
        assert second is not None
        with first, second:
            first.view[:5] = b"hello"
            ring.prepare_fixed(Opcode.WRITE_FIXED, first, user_data=1, fd=file, offset=3, length=5)
            assert ring.wait() == [(1, 5, 0)]
            ring.prepare_fixed(Opcode.READ_FIXED, second, user_data=2, fd=file, offset=4, start=10)
            assert ring.wait() == [(2, 4, 0)]
            assert bytes(second.view[10:14]) == b"ello"
    os.close(file)


def test_fixed_outside(ring: Ring) -> None:
    """A range outside the buffer is refused with the numbers, and nothing is queued."""
    with ring.register_buffers(count=1, size=64) as buffers:
        buffer = buffers.try_acquire()
        assert buffer is not None
        with buffer, pytest.raises(ValueError, match="60"):
            ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=0, start=60, length=5)
    assert ring.submit() == []


def test_receive_into_a_buffer_ring(ring: Ring) -> None:
    """The kernel picks a buffer; released, it goes back with the next submission."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=2, size=16) as group:
        for number in range(5):
            theirs.send(b"message %d" % number)
            ring.prepare_select(Opcode.RECV, group, user_data=number, fd=ours.fileno())
            (completion,) = ring.wait()
            assert completion.user_data == number
            with group.take(completion.flags, completion.result) as chunk:
                assert bytes(chunk.view) == b"message %d" % number
                assert group.statistics().in_use == 1
            ring.submit()
            assert group.statistics().with_kernel == 2


def test_an_empty_group_is_an_errno(ring: Ring) -> None:
    """Without a loop there is nobody to wait in line: the kernel's ENOBUFS is the result."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=16) as group:
        theirs.send(b"x" * 32)
        ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
        (first,) = ring.wait()
        with group.take(first.flags, first.result):
            ring.prepare_select(Opcode.RECV, group, user_data=2, fd=ours.fileno())
            assert ring.wait() == [(2, -errno.ENOBUFS, 0)]


def test_nobody_waits_for_a_buffer(ring: Ring) -> None:
    """acquire() of a table that is all lent says that there is no loop to wait on."""
    with ring.register_buffers(count=1, size=16) as buffers:
        buffer = buffers.try_acquire()
        assert buffer is not None
        with buffer, pytest.raises(RuntimeError, match="try_acquire"):
            buffers.acquire().send(None)


def test_a_buffer_dropped_in_another_thread(ring: Ring) -> None:
    """A lease that another thread's garbage collector ends comes back with the next submission."""
    with ring.register_buffers(count=1, size=16) as buffers:
        leases = [buffers.try_acquire()]

        def drop() -> None:
            with pytest.warns(ResourceWarning, match="never released"):
                leases.clear()

        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
        assert buffers.try_acquire() is None
        ring.submit()
        again = buffers.try_acquire()
        assert again is not None
        again.release()


def test_closing_unregisters(ring: Ring) -> None:
    """What a closed ring had registered says so."""
    group = ring.register_buffer_ring(count=1, size=16)
    buffers = ring.register_buffers(count=1, size=16)
    ring.close()
    with pytest.raises(aiouring.RingClosedError):
        buffers.try_acquire()
    group.unregister()
    assert not group.registered


# ---- what the ring holds, hands over, and closes ---------------------------------------------------


def test_python_buffers(ring: Ring, pipe: tuple[int, int]) -> None:
    """Any buffer of Python's will do: bytes to write, a bytearray or a slice of one to read into."""
    memory = bytearray(8)
    ring.prepare_memory(Opcode.WRITE, b"hello", user_data=1, fd=pipe[1])
    ring.prepare_memory(Opcode.READ, memoryview(memory)[1:7], user_data=2, fd=pipe[0])
    assert sorted(ring.wait(2)) == [(1, 5, 0), (2, 5, 0)]
    assert memory == b"\0hello\0\0"


def test_m3_what_cannot_be_read_into(ring: Ring, pipe: tuple[int, int]) -> None:
    """Memory that cannot be written is refused, and nothing is in flight."""
    for memory, kind in ((b"bytes", BufferError), ("text", TypeError), (5, TypeError)):
        with pytest.raises(kind):
            ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    with pytest.raises(TypeError, match="must be an array"):
        ring.prepare_memory(Opcode.READ, ffi.cast("char *", 4096), user_data=1, fd=pipe[0])
    assert ring.in_flight == 0
    assert ring.submit() == []


@pytest.mark.parametrize(
    "prepare",
    [
        lambda ring: ring.prepare(Opcode.READ, user_data=1, fd=0, address=4096, length=8),
        lambda ring: ring.prepare(Opcode.CONNECT, user_data=1, fd=0, address=4096),
        lambda ring: ring.prepare(Opcode.STATX, user_data=1, fd=0, offset=4096),
        lambda ring: ring.prepare(Opcode.WAITID, user_data=1, offset=4096),
        lambda ring: ring.prepare(200, user_data=1, address=1),
        lambda ring: ring.prepare_memory(Opcode.READV, bytearray(16), user_data=1, fd=0),
        lambda ring: ring.prepare_memory(Opcode.TIMEOUT, bytearray(1), user_data=1, fd=-1),
        lambda ring: ring.prepare(Opcode.NOP, user_data=1, flags=SubmissionFlags.BUFFER_SELECT),
        lambda ring: ring.prepare(Opcode.NOP, user_data=1, op_flags=2**32),
    ],
)
def test_no_wild_address(ring: Ring, prepare: Callable[[Ring], None]) -> None:
    """A number that the kernel would take for an address is refused before anything is filled."""
    with pytest.raises(ValueError):
        prepare(ring)
    assert (ring.in_flight, lib.au_ring_unsubmitted(ring.raw)) == (0, 0)


def test_b5_the_ring_holds_the_memory(ring: Ring, pipe: tuple[int, int]) -> None:
    """Memory is held from prepare until the final completion is handed over, and not longer."""
    memory = bytearray(8)
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    for _ in range(2):
        with pytest.raises(BufferError):
            memory.append(0)
        ring.submit()
    os.write(pipe[1], b"!")
    assert ring.wait() == [(1, 1, 0)]
    memory.append(0)
    assert ring.in_flight == 0


def test_d4_a_fixed_buffer_in_flight_is_not_released(ring: Ring, pipe: tuple[int, int]) -> None:
    """A registered buffer that the kernel fills cannot be released, nor lent again, before it is done."""
    with ring.register_buffers(count=1, size=64) as buffers:
        buffer = buffers.try_acquire()
        assert buffer is not None
        with pytest.raises(ValueError):
            ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0], length=65)
        assert buffer.pins == 0
        ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0])
        ring.submit()
        with pytest.raises(aiouring.ResourceBusyError, match="in flight"):
            buffer.release()
        with pytest.raises(LookupError), buffer:
            raise LookupError  # the lease ends quietly ...
        assert buffers.try_acquire() is None
        os.write(pipe[1], b"!")
        assert ring.wait() == [(1, 1, 0)]
        again = buffers.try_acquire()  # ... and the buffer comes back with the completion
        assert again is not None
        again.release()


def test_a9_numbers_in_flight_are_not_given_twice(ring: Ring, pipe: tuple[int, int]) -> None:
    """Two requests in flight cannot have one number; after the completion it is free again."""
    memory = bytearray(1)
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    with pytest.raises(aiouring.ResourceBusyError, match="user_data=1 is in flight"):
        ring.prepare(Opcode.NOP, user_data=1)
    with pytest.raises(aiouring.ResourceBusyError, match="user_data=1 is in flight"):
        ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    assert ring.in_flight == 1
    os.write(pipe[1], b"!")
    assert ring.wait() == [(1, 1, 0)]
    ring.prepare(Opcode.NOP, user_data=1)
    assert ring.wait() == [(1, 0, 0)]


def test_drain_yields_everything(profile: TaskRun) -> None:
    """drain() yields all that has completed, beyond what one submit() hands over, and ends."""
    with Ring(2048, cq_entries=2048, task_run=profile) as ring:
        for number in range(1500):
            ring.prepare(Opcode.NOP, user_data=number)
        assert [completion.user_data for completion in ring.drain()] == list(range(1500))
        assert list(ring.drain()) == []


def test_drain_after_an_overflow(ring: Ring, pipe: tuple[int, int]) -> None:
    """What overflowed the completion queue is drained, too."""
    for first in range(0, 64, 8):
        for number in range(first, first + 8):
            ring.prepare_memory(Opcode.READ, bytearray(1), user_data=number, fd=pipe[0])
        assert ring.submit() == []
    os.write(pipe[1], bytes(64))
    found = list(ring.drain())
    while len(found) < 64:
        found += ring.wait(1, timeout=5)
        found += ring.drain()
    assert sorted(completion.user_data for completion in found) == list(range(64))


def test_cancel(ring: Ring, pipe: tuple[int, int]) -> None:
    """A cancelled request and its cancel both complete; there is nothing to cancel afterwards."""
    ring.prepare_memory(Opcode.READ, bytearray(1), user_data=1, fd=pipe[0])
    ring.prepare_cancel(1, user_data=2)
    found = {completion.user_data: completion.result for completion in ring.wait(2, timeout=5)}
    assert found == {1: -errno.ECANCELED, 2: 0}
    ring.prepare_cancel(1, user_data=3)
    assert ring.wait() == [(3, -errno.ENOENT, 0)]


def test_chains(ring: Ring) -> None:
    """A linked request whose predecessor fails is cancelled; one without a link runs."""
    ring.prepare(Opcode.FSYNC, user_data=1, fd=-1, flags=SubmissionFlags.IO_LINK)
    ring.prepare(Opcode.NOP, user_data=2)
    ring.prepare(Opcode.NOP, user_data=3)
    found = {completion.user_data: completion.result for completion in ring.wait(3)}
    assert found == {1: -errno.EBADF, 2: -errno.ECANCELED, 3: 0}


def test_b1_closing_stops_what_is_in_flight(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """Closing cancels and reaps: the memory is free, and what is written later stays in the pipe."""
    memory = bytearray(8)
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        for number in range(20):
            ring.prepare_memory(Opcode.READ, memory, user_data=number, fd=pipe[0])
            ring.submit()
    assert ring.in_flight == 0
    memory.append(0)
    os.write(pipe[1], b"late")
    assert memory == bytes(9)
    assert os.read(pipe[0], 8) == b"late"


def test_closing_takes_back_what_was_not_submitted(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """What was only prepared never happens, neither when the ring is closed nor after an exception."""
    with pytest.raises(LookupError), Ring(8, cq_entries=16, task_run=profile) as ring:
        ring.prepare_memory(Opcode.READ, bytearray(8), user_data=1, fd=pipe[0])
        ring.submit()
        ring.prepare_memory(Opcode.WRITE, b"never", user_data=2, fd=pipe[1])
        raise LookupError
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 8)


def test_closing_a_ring_that_was_never_enabled(profile: TaskRun) -> None:
    """A disabled ring with prepared requests closes: nothing was submitted."""
    with Ring(8, cq_entries=16, task_run=profile, disabled=True) as ring:
        ring.prepare(Opcode.NOP, user_data=1)
    assert ring.closed


def test_closing_with_a_full_queue(profile: TaskRun) -> None:
    """More requests in flight than the queue has entries are all cancelled."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Ring(2, cq_entries=4, task_run=profile) as ring:
        for number in range(30):
            ring.prepare_memory(Opcode.RECV, bytearray(1), user_data=number, fd=ours.fileno(), offset=0)
            ring.submit()
        assert ring.in_flight == 30
    assert ring.in_flight == 0


def test_b4_dropped_with_requests_in_flight(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """A ring that is dropped with requests in flight warns, and keeps their memory for ever."""
    ring = Ring(8, cq_entries=16, task_run=profile)
    memory = bytearray(8)
    ring.prepare_memory(Opcode.READ, memory, user_data=7, fd=pipe[0])
    ring.submit()
    before = len(_synchronous_ring.GRAVEYARD)
    with pytest.warns(ResourceWarning, match=r"1 request\(s\) in flight.*\[7\]"):
        del ring
        gc.collect()
    assert len(_synchronous_ring.GRAVEYARD) == before + 1
    with pytest.raises(BufferError):
        memory.append(0)
    _synchronous_ring.GRAVEYARD.clear()


def test_closing_in_another_thread(profile: TaskRun, pipe: tuple[int, int]) -> None:
    """Another thread cannot stop the requests: it closes the ring, warns, and keeps their memory."""
    ring = Ring(8, cq_entries=16, task_run=profile)
    ring.prepare_memory(Opcode.READ, bytearray(8), user_data=7, fd=pipe[0])
    ring.submit()
    with ThreadPoolExecutor(1) as elsewhere, pytest.warns(ResourceWarning, match="in flight"):
        elsewhere.submit(ring.close).result()
    assert ring.closed
    _synchronous_ring.GRAVEYARD.clear()


def test_c5_closing_in_a_child(ring: Ring, pipe: tuple[int, int]) -> None:
    """A child that closes its copy of the ring leaves the parent's requests alone."""
    memory = bytearray(8)
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    ring.submit()
    child = os.fork()
    if child == 0:
        ring.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.write(pipe[1], b"!")
    assert ring.wait() == [(1, 1, 0)]


def test_withdraw(ring: Ring) -> None:
    """Entries are taken back newest first, until the kernel has all the rest."""
    number = ffi.new("uint64_t *")
    assert lib.au_ring_withdraw(ring.raw, number) == 0
    for user_data in (1, 2, 3):
        assert lib.au_prepare(ring.raw, user_data, Opcode.NOP, -1, 0, 0, 0, 0, 0) == 0
    assert lib.au_ring_withdraw(ring.raw, number) == 1
    assert number[0] == 3
    assert [completion.user_data for completion in ring.submit()] == [1, 2]
    assert lib.au_ring_withdraw(ring.raw, number) == 0


def test_c6_fork_with_a_registered_buffer_in_flight(ring: Ring, pipe: tuple[int, int]) -> None:
    """The parent gets what arrives after a fork; the child keeps the content that the buffer had."""
    go_reader, go_writer = os.pipe()
    with ring.register_buffers(count=1, size=4096) as buffers:
        buffer = buffers.try_acquire()
        assert buffer is not None
        buffer.view[:5] = b"older"
        ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=pipe[0], length=5)
        ring.submit()
        child = os.fork()
        if child == 0:
            os.read(go_reader, 1)
            os._exit(0 if bytes(buffer.view[:5]) == b"older" else 1)
        os.write(pipe[1], b"newer")
        assert ring.wait() == [(1, 5, 0)]
        assert bytes(buffer.view[:5]) == b"newer"
        os.write(go_writer, b"!")
        assert os.waitpid(child, 0)[1] == 0
        buffer.release()
    os.close(go_reader)
    os.close(go_writer)


def test_m5_a_file_truncated_under_its_mapping(ring: Ring, pipe: tuple[int, int]) -> None:
    """A mapping whose file has become shorter is EFAULT, not a signal."""
    file = os.memfd_create("short")
    os.ftruncate(file, mmap.PAGESIZE)
    memory = mmap.mmap(file, mmap.PAGESIZE)
    os.ftruncate(file, 0)
    os.write(pipe[1], b"lost to nobody")
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    assert ring.wait() == [(1, -errno.EFAULT, 0)]
    os.close(file)


AT_EXIT = """
import os, sys, aiouring
ring = aiouring.Ring(8, cq_entries=16, task_run=sys.argv[1])
if 'memory regions' in aiouring.probe().supported:
    ring.register_region(4096)
ring.register_eventfd()
if sys.argv[2] == "busy":
    ring.prepare_memory(aiouring.Opcode.READ, bytearray(8), user_data=1, fd=os.pipe()[0])
    ring.submit()
sys.exit(3)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_b6_interpreter_exit(profile: TaskRun, state: str) -> None:
    """A ring that is open when the interpreter ends neither hangs nor crashes; a busy one warns."""
    done = run_python(AT_EXIT, profile, state)
    assert done.returncode == 3
    assert "Segmentation" not in done.stderr
    assert ("ResourceWarning: a Ring was closed with 1 request" in done.stderr) is (state == "busy"), done.stderr
    assert state == "busy" or not done.stderr


@pytest.mark.parametrize("number", [0, 2**63 - 1, 2**63, 2**64 - 2])
def test_every_user_data(ring: Ring, number: int) -> None:
    """A request's number comes back as it was given, whatever its sign would be, and its memory is let go of."""
    ring.prepare(Opcode.NOP, user_data=number)
    assert ring.wait() == [(number, 0, 0)]
    assert ring.in_flight == 0
