"""Tests of PeekingRing: completions are looked at without being consumed, and only what was seen is consumed."""

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


def nops(ring: Ring, first: int, count: int) -> None:
    """Fill `count` requests that complete at once."""
    for number in range(first, first + count):
        ring.prepare(Opcode.NOP, user_data=number)


def test_peek_consumes_nothing(ring: Ring) -> None:
    """What was peeked at is seen again, and only what was advanced over is gone."""
    nops(ring, 1, 5)
    completions = ring.peek()
    assert [completion.user_data for completion in completions] == [1, 2, 3, 4, 5]
    assert ring.peek() == completions
    ring.advance(2)
    assert ring.peek() == completions[2:]
    ring.advance(0)
    ring.advance(1)
    nops(ring, 6, 1)
    assert [completion.user_data for completion in ring.peek()] == [4, 5, 6]
    assert ring.raw.completed == 3
    assert [completion.user_data for completion in ring.submit()] == [4, 5, 6]
    assert ring.peek() == []
    assert ring.raw.completed == 6


def test_only_what_was_seen_is_consumed(ring: Ring) -> None:
    """An advance over more than was peeked at is refused: a completion nobody saw would be lost, with its buffer."""
    nops(ring, 1, 3)
    with pytest.raises(ValueError, match="cannot advance over 1 completions: there are only 0 peeked at"):
        ring.advance(1)
    assert len(ring.peek()) == 3
    ring.prepare(Opcode.NOP, user_data=4)
    with pytest.raises(ValueError, match="4 completions: there are only 3 peeked at"):
        ring.advance(4)
    ring.submit()
    with pytest.raises(ValueError, match="only 0 peeked at"):
        ring.advance(1)
    for wrong, kind in ((-1, ValueError), (2**32, ValueError), ("1", TypeError)):
        with pytest.raises(kind, match="count"):
            ring.advance(wrong)  # type: ignore[arg-type]


def test_e2_peek_of_an_overflowed_queue(ring: Ring) -> None:
    """What did not fit the queue comes after what is advanced over, in order."""
    for first in range(0, 40, 8):
        nops(ring, first, 8)
        ring.peek()
    seen: list[int] = []
    while completions := ring.peek():
        assert len(completions) <= 16
        seen += [completion.user_data for completion in completions[:5]]
        ring.advance(min(5, len(completions)))
    assert seen == list(range(40))


def test_peek_of_more_than_fits_at_once(profile: TaskRun) -> None:
    """At most 512 completions are shown at once, the oldest, and the rest after them."""
    with Ring(1024, cq_entries=2048, task_run=profile) as ring:
        nops(ring, 0, 600)
        completions = ring.peek()
        assert [completion.user_data for completion in completions] == list(range(512))
        ring.advance(512)
        assert [completion.user_data for completion in ring.peek()] == list(range(512, 600))


def test_peek_blocks_when_asked_to(ring: Ring) -> None:
    """With a count it waits for as many, with a timeout not for longer, and it consumes nothing either way."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=16) as group:
        ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
        assert ring.peek() == []
        assert ring.peek(1, timeout=0) == []
        assert ring.peek(1, timeout=0.01) == []
        timer = threading.Timer(0.01, theirs.send, (b"data",))
        timer.start()
        (completion,) = ring.peek(1)
        timer.join()
        assert ring.peek(1) == [completion]
        group.take(completion.flags, completion.result).release()
        ring.advance(1)
        assert ring.peek() == []
    for count, timeout in ((17, None), (-1, None), (1, -1.0)):
        with pytest.raises(ValueError, match="count|timeout"):
            ring.peek(count, timeout)


def test_blocking_ends_at_its_time_with_fewer_there(ring: Ring) -> None:
    """The timeout holds when some of the completions have come: the kernel does not say ETIME then."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=16) as group:
        ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
        nops(ring, 2, 1)
        for timeout in (0, 0.01):
            assert ring.peek(2, timeout=timeout) == [(2, 0, 0)]
        assert ring.wait(2, timeout=0.01) == [(2, 0, 0)]
        assert ring.wait(1, timeout=0.01) == []
        ring.prepare(Opcode.ASYNC_CANCEL, user_data=3, address=1)
        assert len(ring.wait(2)) == 2


def test_peek_publishes_what_was_released(ring: Ring) -> None:
    """A peek is a turn: the kernel sees released buffers, also those whose lease ended elsewhere."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=16) as group:
        for _ in range(3):
            theirs.send(b"data")
            ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
            (completion,) = ring.peek(1)
            group.take(completion.flags, completion.result).release()
            ring.advance(1)
            assert group.available() == 0
            ring.peek()
            assert group.available() == 1


def test_peek_and_advance_follow_the_rules(profile: TaskRun) -> None:
    """A ring that is disabled, closed, or another thread's is refused."""
    ring = Ring(2, cq_entries=4, task_run=profile, disabled=True)
    with pytest.raises(aiouring.WrongContextError, match="enable"):
        ring.peek()
    ring.enable()
    nops(ring, 1, 1)
    assert len(ring.peek()) == 1
    errors: list[BaseException] = []

    def work() -> None:
        for attempt in (ring.peek, lambda: ring.advance(1)):
            try:
                attempt()
            except aiouring.WrongContextError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 2
    ring.advance(1)
    ring.close()
    for attempt in (ring.peek, lambda: ring.advance(0)):
        with pytest.raises(aiouring.RingClosedError):
            attempt()


def test_m2_offset_of_a_select(ring: Ring) -> None:
    """An offset below -1 is refused before anything is queued."""
    with ring.register_buffer_ring(count=1, size=16) as group:
        with pytest.raises(ValueError, match="offset=-2"):
            ring.prepare_select(Opcode.READ, group, user_data=1, fd=0, offset=-2)
        assert ring.submit() == []


def test_b5_held_until_consumed(ring: Ring) -> None:
    """What a request uses is held until its completion is consumed: by an advance, or with whatever takes it."""
    file = os.memfd_create("file")
    with ring.register_buffers(count=1, size=16) as buffers:
        for consume in (lambda: ring.advance(1), lambda: ring.submit()):
            buffer = buffers.try_acquire()
            assert buffer is not None
            ring.prepare_fixed(Opcode.READ_FIXED, buffer, user_data=1, fd=file, offset=0)
            assert ring.peek(1) == [(1, 0, 0)]
            assert ring.in_flight == 1
            with pytest.raises(aiouring.ResourceBusyError):
                buffer.release()
            with pytest.raises(aiouring.ResourceBusyError, match="user_data=1 is in flight"):
                ring.prepare(Opcode.NOP, user_data=1)
            consume()
            assert ring.in_flight == 0
            buffer.release()
    os.close(file)


def test_b5_cq_advance_lets_go(ring: Ring) -> None:
    """Consuming by way of a buffer ring lets go as well."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ring.register_buffer_ring(count=1, size=16) as group:
        for _ in range(3):
            theirs.send(b"data")
            ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
            (completion,) = ring.peek(1)
            group.add(group.take(completion.flags, completion.result))
            assert ring.in_flight == 1
            group.cq_advance(1, 1)
            assert ring.in_flight == 0


def test_b1_closed_with_completions_peeked_at(profile: TaskRun) -> None:
    """Completions that were not consumed keep no ring from closing."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        nops(ring, 1, 5)
        assert len(ring.peek(5)) == 5
        ring.advance(2)
    assert ring.in_flight == 0


def test_d11_number_of_a_request_in_flight(ring: Ring) -> None:
    """The number of a group that was unregistered is not given again while a request names it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        group = ring.register_buffer_ring(count=1, size=16, group_id=4)
        ring.prepare_select(Opcode.RECV, group, user_data=1, fd=ours.fileno())
        ring.submit()
        group.unregister()
        with pytest.raises(aiouring.ResourceBusyError, match="group_id=4 is still named by a request in flight"):
            ring.register_buffer_ring(count=1, size=16, group_id=4)
        ring.prepare_cancel(1, user_data=2)
        assert len(ring.wait(2)) == 2
        with ring.register_buffer_ring(count=1, size=16, group_id=4) as again:
            assert again.registered
