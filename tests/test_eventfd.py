"""Tests of a Ring's eventfd: registering, re-registering, the caller's own, and silence that loses nothing."""

import contextlib
import errno
import gc
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import open_files
from injected_faults import real_register, replaced

import aiouring
from aiouring import Opcode, Ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of 8 submissions and 16 completions, of the profile under test."""
    with Ring(8, cq_entries=16, task_run=profile) as made:
        yield made


@pytest.fixture
def theirs() -> Iterator[int]:
    """An eventfd of the caller's, which blocks."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def readable(fd: int, seconds: float = 0) -> bool:
    """Whether the eventfd has been counted up."""
    return bool(select.select([fd], [], [], seconds)[0])


def nop(ring: Ring, user_data: int = 1) -> None:
    """Prepare a nop."""
    ring.prepare(Opcode.NOP, user_data=user_data)


# ---- registering -----------------------------------------------------------------------------------


def test_register_and_unregister_in_a_loop(ring: Ring) -> None:
    """The eventfd can be registered again after it was unregistered, as often as one likes; nothing is left."""
    files = open_files()
    for number in range(100):
        fd = ring.register_eventfd()
        assert fd == ring.raw.event_fd
        nop(ring, number)
        assert len(ring.submit()) == 1
        ring.unregister_eventfd()
        assert open_files() == files


def test_a_second_eventfd_is_refused(ring: Ring, theirs: int) -> None:
    """A ring has one eventfd, and the refusal leaves it in force."""
    mine = ring.register_eventfd()
    for again in (None, theirs):
        with pytest.raises(aiouring.ResourceBusyError, match="unregister it first"):
            ring.register_eventfd(again)
    assert ring.raw.signal_fd == mine


def test_the_callers_eventfd(ring: Ring, theirs: int) -> None:
    """The caller's eventfd is counted up, is not read by the ring, and is not closed by it."""
    assert ring.register_eventfd(theirs) == theirs
    nop(ring)
    assert len(ring.submit()) == 1
    assert readable(theirs)
    assert os.eventfd_read(theirs) == 1
    ring.submit()  # a turn that reads a blocking eventfd at 0 would hang here
    ring.unregister_eventfd()
    nop(ring)
    ring.submit()
    assert not readable(theirs)


def test_the_callers_eventfd_may_be_closed(ring: Ring) -> None:
    """The kernel has a reference of its own: a number that was closed and reused is not touched."""
    fd = os.eventfd(0)
    duplicate = os.dup(fd)
    ring.register_eventfd(fd)
    os.close(fd)
    reused = os.dup2(os.eventfd(0), fd)
    nop(ring)
    ring.submit()
    assert readable(duplicate)
    assert not readable(reused)
    ring.unregister_eventfd()
    assert os.fstat(reused)
    os.close(reused)
    os.close(duplicate)
    gc.collect()
    for number, what in open_files().items():
        if "eventfd" in what and number > fd:
            os.close(number)  # dup2's source


def test_what_is_no_eventfd(ring: Ring) -> None:
    """A file that is no eventfd is EINVAL, a closed number EBADF; both name the number and leave nothing."""
    files = open_files()
    reader, writer = os.pipe()
    for fd, number in ((reader, errno.EINVAL), (10**6, errno.EBADF), (-1, errno.EBADF)):
        with pytest.raises(OSError, match=f"registering descriptor {fd} as the eventfd") as caught:
            ring.register_eventfd(fd)
        assert caught.value.errno == number
    os.close(reader)
    os.close(writer)
    assert open_files() == files
    ring.register_eventfd()


def test_nothing_to_unregister(ring: Ring) -> None:
    """Without an eventfd, unregistering says ENXIO."""
    with pytest.raises(OSError) as caught:
        ring.unregister_eventfd()
    assert caught.value.errno == errno.ENXIO


def test_a_disabled_ring_takes_an_eventfd(profile: TaskRun, theirs: int) -> None:
    """An eventfd can be registered before the ring is enabled, and works after it."""
    with Ring(8, cq_entries=16, task_run=profile, disabled=True) as ring:
        ring.register_eventfd(theirs)
        ring.enable()
        nop(ring)
        assert len(ring.submit()) == 1
        assert readable(theirs)


def test_e12_saturated_counter(ring: Ring, theirs: int) -> None:
    """An eventfd that cannot count any further costs no completion, and does not block."""
    os.eventfd_write(theirs, 2**64 - 2)
    ring.register_eventfd(theirs)
    for number in range(5):
        nop(ring, number)
        assert [completion.user_data for completion in ring.submit()] == [number]
    ring.eventfd_enabled = False
    nop(ring)
    lib.au_ring_wait(ring.raw, 1, -1, 0, 0)
    ring.eventfd_enabled = True


def test_poll_and_read_of_the_rings_own_eventfd(ring: Ring, theirs: int) -> None:
    """Requests on the very eventfd that the ring signals complete, linked ones too: no loop, no hang."""
    ring.register_eventfd(theirs)
    memory = bytearray(8)
    ring.prepare(Opcode.POLL_ADD, user_data=1, fd=theirs, op_flags=select.POLLIN)
    ring.prepare_memory(Opcode.READ, memory, user_data=2, fd=theirs, offset=0)
    nop(ring, 3)
    found = {completion.user_data: completion.result for completion in ring.wait(3, timeout=5)}
    while len(found) < 3:
        found |= {completion.user_data: completion.result for completion in ring.wait(1, timeout=5)}
    assert found == {1: select.POLLIN, 2: 8, 3: 0}
    assert int.from_bytes(memory, "little") >= 1


# ---- silence ---------------------------------------------------------------------------------------


def test_silence_is_silent(ring: Ring, theirs: int) -> None:
    """A silenced eventfd is not counted up, and is afterwards."""
    ring.register_eventfd(theirs)
    assert ring.eventfd_enabled
    ring.eventfd_enabled = False
    assert not ring.eventfd_enabled
    nop(ring)
    assert len(ring.submit()) == 1
    ring.eventfd_enabled = True
    assert not readable(theirs), "all was handed over: there is nothing to tell"
    nop(ring)
    ring.submit()
    assert readable(theirs)


def test_c1_ending_the_silence_looks_again(ring: Ring, theirs: int) -> None:
    """What came in silence, posted or deferred, is signalled when the silence ends; the next event is too."""
    ring.register_eventfd(theirs)
    ours, peer = socket.socketpair()
    memory = bytearray(1)
    with ours, peer:
        for number in range(20):
            ring.prepare_memory(Opcode.RECV, memory, user_data=number, fd=ours.fileno(), offset=0)
            assert ring.submit() == []
            with ring.eventfd_silenced():
                peer.send(b"!")
                assert not readable(theirs)
            assert readable(theirs, 5), "the data that came in silence was slept upon"
            os.eventfd_read(theirs)
            assert [completion.result for completion in ring.submit()] == [1]
            os.set_blocking(theirs, False)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(theirs)  # DEFER signals the completion as well


def test_c1_overflow_in_silence(ring: Ring, theirs: int) -> None:
    """A completion queue that overflowed in silence is signalled when the silence ends."""
    ring.register_eventfd(theirs)
    ours, peer = socket.socketpair()
    memories = [bytearray(1) for _ in range(40)]
    with ours, peer:
        for first in range(0, 40, 8):
            for number in range(first, first + 8):
                ring.prepare_memory(Opcode.RECV, memories[number], user_data=number, fd=ours.fileno(), offset=0)
            assert ring.submit() == []
        ring.eventfd_enabled = False
        peer.send(bytes(40))
        assert not readable(theirs)
        ring.eventfd_enabled = True
        assert readable(theirs, 5)
        found: list[aiouring.Completion] = []
        while len(found) < 40:
            found += ring.wait(1, timeout=5)
        assert sorted(completion.user_data for completion in found) == list(range(40))


def test_a_turn_is_silent(ring: Ring) -> None:
    """What completes while the ring submits does not signal its own eventfd; what comes later does."""
    fd = ring.register_eventfd()
    ours, peer = socket.socketpair()
    memory = bytearray(1)
    with ours, peer:
        nop(ring, 1)
        ring.prepare_memory(Opcode.RECV, memory, user_data=2, fd=ours.fileno(), offset=0)
        assert [completion.user_data for completion in ring.submit()] == [1]
        assert not readable(fd)
        assert ring.eventfd_enabled
        peer.send(b"!")
        assert readable(fd, 5)
        assert [completion.user_data for completion in ring.submit()] == [2]
        ring.submit()
        assert not readable(fd)


def test_a_turn_keeps_the_callers_silence(ring: Ring) -> None:
    """A silence that was asked for outlasts turns."""
    ring.register_eventfd()
    ring.eventfd_enabled = False
    nop(ring)
    ring.submit()
    assert not ring.eventfd_enabled


def test_e4_a_refused_turn_ends_its_silence(ring: Ring) -> None:
    """When enter() fails the eventfd is heard again."""
    ring.register_eventfd()
    nop(ring)
    with replaced(enter=lambda *_: -errno.EBUSY), pytest.raises(OSError):
        ring.submit()
    assert ring.eventfd_enabled
    assert len(ring.submit()) == 1


def test_silence_against_a_thread(ring: Ring) -> None:
    """However the end of a silence and an event meet, one of the two sides signals: 2000 rounds, no sleep too long."""
    fd = ring.register_eventfd()
    ours, peer = socket.socketpair()
    memory = bytearray(1)
    rounds = 2000
    go = threading.Semaphore(0)

    def speak() -> None:
        for _ in range(rounds):
            go.acquire()
            peer.send(b"!")

    thread = threading.Thread(target=speak)
    thread.start()
    with ours, peer:
        for number in range(rounds):
            ring.prepare_memory(Opcode.RECV, memory, user_data=number, fd=ours.fileno(), offset=0)
            ring.eventfd_enabled = False
            found = ring.submit()
            go.release()
            ring.eventfd_enabled = True
            while not found:
                assert readable(fd, 10), f"round {number}: asleep although data is there"
                found = ring.submit()
        thread.join()


def test_silence_where_the_kernel_has_none(ring: Ring) -> None:
    """Unregistering in silence and registering again leaves the silence as it is; it belongs to the ring."""
    ring.eventfd_enabled = False
    fd = ring.register_eventfd()
    nop(ring)
    lib.au_ring_wait(ring.raw, 1, -1, 0, 0)
    assert not readable(fd)
    ring.eventfd_enabled = True
    assert readable(fd)
    ring.submit()


# ---- refusals --------------------------------------------------------------------------------------


def test_b7_after_close(ring: Ring, theirs: int) -> None:
    """A closed ring refuses all of it, and the caller's eventfd is the caller's."""
    ring.register_eventfd(theirs)
    ring.close()
    assert os.fstat(theirs)
    with pytest.raises(aiouring.RingClosedError):
        ring.register_eventfd(theirs)
    with pytest.raises(aiouring.RingClosedError):
        ring.eventfd_enabled = False
    with pytest.raises(aiouring.RingClosedError):
        assert ring.eventfd_enabled


def test_c5_a_child_has_no_copy(ring: Ring, theirs: int) -> None:
    """The ring's duplicate of the caller's eventfd is closed in a fork's child."""
    ring.register_eventfd(theirs)
    duplicate = ring.raw.signal_fd
    assert duplicate != theirs
    child = os.fork()
    if child == 0:
        os._exit(Path(f"/proc/self/fd/{duplicate}").exists())
    assert os.waitpid(child, 0)[1] == 0
    assert Path(f"/proc/self/fd/{duplicate}").exists()


def test_e9_registration_refused_by_the_kernel(ring: Ring, theirs: int) -> None:
    """A refused registration leaves no duplicate, and no eventfd in force."""
    files = open_files()

    def refuse(fd: int, opcode: int, *rest: object) -> int:
        return -errno.EPERM if opcode == lib.AU_REGISTER_EVENTFD else real_register(fd, opcode, *rest)  # type: ignore[arg-type]

    with replaced(do_register=refuse):
        for fd in (None, theirs):
            with pytest.raises(PermissionError):
                ring.register_eventfd(fd)
    assert open_files() == files
    assert ring.raw.signal_fd == ring.raw.event_fd == -1
    assert ring.raw.region == ffi.NULL
