"""Tests of Ring without an event loop: registered buffers and buffer rings by hand."""

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

import aiouring
from aiouring import Opcode, Ring
from aiouring._setup import TaskRun


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
