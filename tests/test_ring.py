"""Tests of Ring: its setup, its arguments, its thread, and its queues; on the real kernel, without asyncio."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from injected_faults import real_enter, real_register, replaced
from simulated_kernel import SimulatedKernel

import aiouring
from aiouring import Completion, Opcode, Ring
from aiouring._setup import TaskRun
from aiouring._uring import ffi, lib


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of 8 submissions and 16 completions, of the profile under test."""
    with Ring(8, cq_entries=16, task_run=profile) as made:
        yield made


def nops(ring: Ring, *numbers: int) -> None:
    """Prepare one nop for each number."""
    for number in numbers:
        ring.prepare(Opcode.NOP, user_data=number)


def numbers(completions: list[Completion]) -> list[int]:
    """The user_data of each completion."""
    return [completion.user_data for completion in completions]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0,), {}, "entries=0 is outside 1 to 32768"),
        ((32769,), {}, "entries=32769 is outside 1 to 32768"),
        ((-1,), {}, "entries=-1"),
        ((8,), {"cq_entries": 0}, "cq_entries=0 is outside 1 to 65536"),
        ((8,), {"cq_entries": 65537}, "cq_entries=65537"),
        ((8,), {"cq_entries": 7}, "cq_entries=7 is less than entries=8"),
        ((8,), {"task_run": "eager"}, "task_run='eager' is neither"),
    ],
)
def test_m1_sizes_that_are_refused(arguments: tuple[int], options: dict[str, Any], error: str) -> None:
    """A size outside its range, or an unknown profile, is the caller's mistake and says the numbers."""
    with pytest.raises(ValueError, match=error):
        Ring(*arguments, **options)


@pytest.mark.parametrize("entries", ["8", 8.0, None])
def test_m1_size_that_is_no_int(entries: Any) -> None:
    """A size must be an int."""
    with pytest.raises(TypeError, match="entries must be an int"):
        Ring(entries)


def test_sizes_are_rounded_up(profile: TaskRun) -> None:
    """The kernel rounds both sizes up to powers of two, and the ring says what it got."""
    with Ring(5, cq_entries=9, task_run=profile) as ring:
        assert (ring.entries, ring.cq_entries) == (8, 16)
        assert repr(ring) == f"<Ring 8/16 fd={ring.fd}>"
    assert ring.closed
    assert ring.fd == -1
    assert repr(ring) == "<Ring 8/16 closed>"


# ---- the queues ------------------------------------------------------------------------------------


def test_e1_full_queue_is_refused(ring: Ring) -> None:
    """The entry after the last is refused, by name, and can be filled after a submission."""
    nops(ring, *range(8))
    with pytest.raises(aiouring.ResourceBusyError, match="submission queue is full"):
        nops(ring, 8)
    found = numbers(ring.wait(8))
    nops(ring, 8)
    assert found + numbers(ring.wait()) == list(range(9))


def test_e2_overflow_loses_nothing(ring: Ring, pipe: tuple[int, int]) -> None:
    """Four times as many completions as the queue holds arrive, each once."""
    memories = [ffi.new("char[1]") for _ in range(64)]
    for first in range(0, 64, 8):
        for number in range(first, first + 8):
            ring.prepare_memory(Opcode.READ, memories[number], user_data=number, fd=pipe[0])
        assert ring.submit() == []
    os.write(pipe[1], bytes(64))
    found: list[Completion] = []
    while len(found) < 64:
        found += ring.wait(1, timeout=5)
    assert sorted(numbers(found)) == list(range(64))
    assert {completion.result for completion in found} == {1}


def test_e14_submit_finds_what_is_deferred(ring: Ring, pipe: tuple[int, int]) -> None:
    """submit() alone brings a completion that happened meanwhile, on both profiles."""
    memory = ffi.new("char[]", 8)
    ring.prepare_memory(Opcode.READ, memory, user_data=7, fd=pipe[0])
    assert ring.submit() == []
    os.write(pipe[1], b"hello")
    assert ring.submit() == [Completion(7, 5, 0)]
    assert ffi.buffer(memory)[:5] == b"hello"


def test_wait_returns_at_its_time(ring: Ring) -> None:
    """wait() with nothing in flight returns nothing, once its time is over."""
    assert ring.wait(1, timeout=0.01) == []
    assert ring.wait(1, timeout=0) == []


def test_wait_for_several(ring: Ring, pipe: tuple[int, int]) -> None:
    """wait(2) does not return with one."""
    memory = ffi.new("char[1]")
    ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=pipe[0])
    nops(ring, 2)
    writer = threading.Thread(target=os.write, args=(pipe[1], b"."))
    writer.start()
    assert sorted(numbers(ring.wait(2, timeout=10))) == [1, 2]
    writer.join()


@pytest.mark.deadline(2)
def test_wait_for_more_than_can_be_there(profile: TaskRun) -> None:
    """wait() for more completions than the queue holds ends, at the latest when its time is over."""
    with Ring(16, cq_entries=16, task_run=profile) as ring:
        nops(ring, *range(16))
        try:
            found = ring.wait(17, timeout=0.05)
        except ValueError:
            found = ring.wait(16)
        assert numbers(found) == list(range(16))


def test_many_completions_at_once(profile: TaskRun) -> None:
    """One submit() hands over at most 512 completions, and the next ones the rest, in order."""
    with Ring(1024, cq_entries=2048, task_run=profile) as ring:
        nops(ring, *range(1000))
        found = numbers(ring.submit())
        assert len(found) == lib.AU_EVENTS_MAX
        assert found + numbers(ring.submit()) == list(range(1000))


# ---- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"length": 9},
        {"length": -1},
        {"length": 2**31},
        {"length": 2**32 - 1},
        {"start": 1, "length": 8},
        {"start": 9},
        {"start": -1},
        {"start": -1, "length": 1},
        {"start": 2**63 - 1, "length": 2**63 - 1},
        {"offset": -2},
        {"offset": -(2**63)},
    ],
)
def test_m1_m2_reaching_outside(ring: Ring, pipe: tuple[int, int], options: dict[str, int]) -> None:
    """A length, start or offset that reaches outside is refused, with the numbers, before anything is filled."""
    with pytest.raises(ValueError, match=r"reach beyond the memory of 8 bytes|offset=-\d+ is negative"):
        ring.prepare_memory(Opcode.READ, ffi.new("char[8]"), user_data=1, fd=pipe[0], **options)
    assert lib.au_ring_unsubmitted(ring.raw) == 0


@pytest.mark.parametrize("options", [{"length": -1}, {"length": 2**32}, {"offset": 2**63}, {"user_data": -1}])
def test_m1_numbers_that_do_not_fit(ring: Ring, options: dict[str, Any]) -> None:
    """A number that the kernel's field cannot hold is a ValueError."""
    with pytest.raises(ValueError):
        ring.prepare(Opcode.NOP, **({"user_data": 1} | options))


@pytest.mark.parametrize("opcode", [256, -1])
def test_m1_opcode_that_does_not_fit(ring: Ring, opcode: int) -> None:
    """An opcode beyond one byte is refused, and does not turn into another."""
    with pytest.raises(ValueError):
        ring.prepare(opcode, user_data=1)


def test_m1_negative_timeout(ring: Ring) -> None:
    """A negative timeout is refused: None is how to wait without one."""
    nops(ring, 1)
    with pytest.raises(ValueError):
        ring.wait(timeout=-1)


def test_m1_length_is_clamped() -> None:
    """More than the kernel moves at once is asked for as what it does move."""
    kernel = SimulatedKernel(Random(0))
    with kernel.running(), Ring(8, cq_entries=16) as ring:
        memory = ffi.cast("char(*)[3000000000]", 4096)[0]
        ring.prepare_memory(Opcode.READ, memory, user_data=1, fd=0)
        ring.submit()
        assert kernel.pending[0].length == lib.AU_MAX_TRANSFER == 0x7FFFF000


def test_e6_unknown_opcode(ring: Ring) -> None:
    """An operation that the kernel does not know completes with EINVAL."""
    ring.prepare(200, user_data=1)
    assert ring.wait() == [Completion(1, -errno.EINVAL, 0)]


def test_g7_another_rings_descriptor(ring: Ring, profile: TaskRun) -> None:
    """A request on an io_uring, which would never complete, is refused."""
    with Ring(8, cq_entries=16, task_run=profile) as other:
        for fd in (other.fd, ring.fd):
            with pytest.raises(ValueError, match=f"descriptor {fd} is an io_uring itself"):
                ring.prepare(Opcode.POLL_ADD, user_data=1, fd=fd)


def test_g7_closed_descriptor(ring: Ring) -> None:
    """A descriptor that is not open is refused at once."""
    with pytest.raises(OSError) as caught:
        ring.prepare(Opcode.FSYNC, user_data=1, fd=10**6)
    assert caught.value.errno == errno.EBADF


# ---- threads and states ----------------------------------------------------------------------------

USES: list[tuple[str, Callable[[Ring], object]]] = [
    ("submit", Ring.submit),
    ("wait", Ring.wait),
    ("enable", Ring.enable),
    ("register_eventfd", Ring.register_eventfd),
    ("unregister_eventfd", Ring.unregister_eventfd),
    ("probe_opcodes", Ring.probe_opcodes),
    ("prepare", lambda ring: nops(ring, 9)),
]


@pytest.mark.parametrize("use", [pytest.param(use, id=name) for name, use in USES])
def test_c1_wrong_thread(ring: Ring, use: Callable[[Ring], object]) -> None:
    """Any use from another thread is refused before it reaches the kernel, and changes nothing."""
    nops(ring, 1)
    calls: list[str] = []

    def enter(*arguments: Any) -> int:
        calls.append("enter")
        return real_enter(*arguments)

    def do_register(*arguments: Any) -> int:
        calls.append("register")
        return real_register(*arguments)

    with replaced(enter=enter, do_register=do_register), ThreadPoolExecutor(1) as elsewhere:
        with pytest.raises(aiouring.WrongContextError, match="belongs to the thread that first used it"):
            elsewhere.submit(use, ring).result()
    assert calls == []
    assert numbers(ring.wait()) == [1]


def test_c2_disabled_ring_from_a_dead_thread(profile: TaskRun) -> None:
    """A ring made disabled belongs to the thread that enables it, whatever became of its maker."""
    with ThreadPoolExecutor(1) as maker:
        ring = maker.submit(Ring, 8, cq_entries=16, task_run=profile, disabled=True).result()
    with ring:
        nops(ring, 1)
        for use in (ring.submit, ring.wait):
            with pytest.raises(aiouring.WrongContextError, match="call enable"):
                use()
        ring.enable()
        assert numbers(ring.wait()) == [1]


def test_c2_enabled_ring_of_a_dead_thread(profile: TaskRun) -> None:
    """A ring whose thread has died is nobody's; it can only be closed."""
    with ThreadPoolExecutor(1) as maker:
        ring = maker.submit(Ring, 8, cq_entries=16, task_run=profile).result()
    with ring, ThreadPoolExecutor(1) as other:
        for refused in (ring.submit, other.submit(ring.submit).result):
            with pytest.raises(aiouring.WrongContextError):
                refused()
    assert ring.closed


@pytest.mark.parametrize("use", [pytest.param(use, id=name) for name, use in USES])
def test_b7_use_after_close(ring: Ring, use: Callable[[Ring], object]) -> None:
    """A closed ring says that it is closed; closing it again does nothing."""
    ring.close()
    ring.close()
    with pytest.raises(aiouring.RingClosedError):
        use(ring)
