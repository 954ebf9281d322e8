"""Tests of buffer rings driven by hand: peek, take, add, advance, and both queues with counts of their own."""

import asyncio
import errno
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aiouring
from aiouring import CompletionFlags, Opcode, Ring
from aiouring._setup import TaskRun

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def ring(profile: TaskRun) -> Iterator[Ring]:
    """A ring of 64 submissions and 128 completions, of the profile under test."""
    with Ring(64, cq_entries=128, task_run=profile) as made:
        yield made


def receive(ring: Ring, group: aiouring.BufferRing, pair: Pair, data: bytes = b"data") -> aiouring.ProvidedBuffer:
    """Send one message, and receive what is there."""
    pair[1].send(data)
    ring.prepare_select(Opcode.RECV, group, user_data=1, fd=pair[0].fileno())
    (completion,) = ring.wait()
    assert completion.result > 0
    return group.take(completion.flags, completion.result)


def owners(group: aiouring.BufferRing) -> tuple[int, int, int]:
    """How many buffers are with the kernel, added, and in use; and that the kernel counts as we do."""
    found = group.statistics()
    assert found.with_kernel + found.added + found.in_use == found.count
    assert group.available() == group.raw.with_kernel
    return found.with_kernel, found.added, found.in_use


# ---- adding and advancing ----------------------------------------------------------------------


def test_added_is_seen_only_after_advance(ring: Ring, pair: Pair) -> None:
    """The kernel gives out an added buffer when it was advanced over, and no turn does that."""
    with ring.register_buffer_ring(count=1, size=16) as group:
        chunk = receive(ring, group, pair)
        group.add(chunk)
        pair[1].send(b"more")
        for _ in range(3):
            ring.prepare_select(Opcode.RECV, group, user_data=2, fd=pair[0].fileno())
            assert ring.wait() == [(2, -errno.ENOBUFS, 0)]
            assert owners(group) == (0, 1, 0)
        group.advance(1)
        assert owners(group) == (1, 0, 0)
        with receive(ring, group, pair, b"") as chunk:
            assert bytes(chunk.view) == b"more"


def test_d8_no_more_than_was_added(ring: Ring, pair: Pair) -> None:
    """An advance over more than was added is refused with the numbers, and the tail does not move."""
    with ring.register_buffer_ring(count=4, size=16) as group:
        chunks = [receive(ring, group, pair) for _ in range(3)]
        for chunk in chunks[:2]:
            group.add(chunk)
        tail = group.raw.tail
        for count in (3, 5, 65536, 2**32 - 1):
            with pytest.raises(ValueError, match=f"{count} buffers: there are only 0 peeked at and 2 added"):
                group.advance(count)
        for wrong, kind in ((-1, ValueError), (2**32, ValueError), ("1", TypeError), (1.0, TypeError)):
            with pytest.raises(kind, match="buffers"):
                group.advance(wrong)  # type: ignore[arg-type]
        assert group.raw.tail == tail
        assert owners(group) == (1, 2, 1)
        group.advance(1)
        group.advance(0)
        group.advance(1)
        with pytest.raises(ValueError, match="0 added"):
            group.advance(1)
        chunks[2].release()


def test_d1_added_twice(ring: Ring, pair: Pair) -> None:
    """A lease ends once, whichever way: what was added or released can be neither again."""
    with ring.register_buffer_ring(count=2, size=16) as group:
        added, released = receive(ring, group, pair), receive(ring, group, pair)
        group.add(added)
        released.release()
        for _ in range(3):
            for chunk in (added, released):
                with pytest.raises(ValueError, match="released already"):
                    group.add(chunk)
                with pytest.raises(ValueError, match="released already"):
                    chunk.release()
                with pytest.raises(ValueError, match="not lent"):
                    group._add(chunk.number)
                with pytest.raises(ValueError, match="released already"):
                    chunk.view
        with pytest.raises(ValueError, match="no such buffer"):
            group._add(2)
        group.advance(1)
        assert owners(group) == (2, 0, 0)


def test_d3_added_with_a_slice_alive(ring: Ring, pair: Pair) -> None:
    """A buffer that a slice still looks into stays lent, and can be added when the slice is gone."""
    with ring.register_buffer_ring(count=1, size=16) as group:
        chunk = receive(ring, group, pair)
        part = chunk.view[1:3]
        with pytest.raises(BufferError, match="slice"):
            group.add(chunk)
        assert owners(group) == (0, 0, 1)
        assert bytes(part) == b"at"
        del part
        group.add(chunk)
        assert owners(group) == (0, 1, 0)
        group.advance(1)


def test_d4_added_to_another_group(ring: Ring, pair: Pair) -> None:
    """A buffer goes back to its own group only, and is named by its lease, not by its number."""
    with ring.register_buffer_ring(count=2, size=16) as group, ring.register_buffer_ring(count=2, size=16) as other:
        with receive(ring, group, pair) as chunk:
            with pytest.raises(ValueError, match="is not a buffer of <BufferRing 1"):
                other.add(chunk)
            with pytest.raises(TypeError, match="ProvidedBuffer"):
                group.add(chunk.number)  # type: ignore[arg-type]
        ring.submit()
        assert owners(group) == owners(other) == (2, 0, 0)


def test_release_and_add_do_not_wait_for_each_other(ring: Ring, pair: Pair) -> None:
    """Released buffers go with the turn, added ones with the advance; each kind keeps its order."""
    with ring.register_buffer_ring(count=8, size=16) as group:
        chunks = [receive(ring, group, pair) for _ in range(8)]
        for chunk in chunks:
            if chunk.number % 2:
                chunk.release()
            else:
                group.add(chunk)
        assert group.available() == 0
        ring.submit()
        assert owners(group) == (4, 4, 0)
        chunks = [receive(ring, group, pair) for _ in range(4)]
        assert owners(group) == (0, 4, 4)
        group.advance(3)
        assert owners(group) == (3, 1, 4)
        chunks += [receive(ring, group, pair) for _ in range(3)]
        assert [chunk.buffer_id for chunk in chunks] == [1, 3, 5, 7, 0, 2, 4]
        for chunk in chunks:
            chunk.release()


def test_advance_publishes_what_was_released(ring: Ring, pair: Pair) -> None:
    """One store of the tail shows both kinds, so that a release is never later than an advance after it."""
    with ring.register_buffer_ring(count=2, size=16) as group:
        first, second = receive(ring, group, pair), receive(ring, group, pair)
        group.add(first)
        second.release()
        before = group.statistics()
        group.advance(1)
        after = group.statistics()
        assert (after.advances, after.published) == (before.advances + 1, before.published + 2)
        assert owners(group) == (2, 0, 0)
        ring.submit()
        assert group.statistics().advances == after.advances


def test_d11_unregistered_with_buffers_added(ring: Ring, pair: Pair) -> None:
    """After that nothing can be added; leases end by release(); another group under the number is left alone."""
    group = ring.register_buffer_ring(count=4, size=16, group_id=9)
    added, held = receive(ring, group, pair), receive(ring, group, pair)
    group.add(added)
    group.unregister()
    with ring.register_buffer_ring(count=4, size=16, group_id=9) as another:
        for attempt in (lambda: group.add(held), lambda: group.advance(1), group.head, group.available):
            with pytest.raises(aiouring.RingClosedError):
                attempt()
        assert bytes(held.view) == b"data"
        held.release()
        ring.submit()
        assert owners(another) == (4, 0, 0)


@pytest.mark.parametrize("use", [lambda group, chunk: group.add(chunk), lambda group, chunk: group.advance(0)])
def test_c1_wrong_thread(ring: Ring, pair: Pair, use: Callable[[Any, Any], object]) -> None:
    """Another thread is refused, and nothing changes."""
    with ring.register_buffer_ring(count=2, size=16) as group, receive(ring, group, pair) as chunk:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                use(group, chunk)
            except aiouring.WrongContextError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert owners(group) == (1, 0, 1)


# ---- both queues at once -----------------------------------------------------------------------


def three_ends(ring: Ring, group: aiouring.BufferRing) -> list[aiouring.Completion]:
    """Completions of a message, of the end of a stream and of an error: one of them took a buffer."""
    with_data, sending = socket.socketpair()
    ended, gone = socket.socketpair()
    with with_data, sending, ended, socket.socket() as unconnected:
        sending.send(b"data")
        gone.close()
        for number, sock in enumerate((with_data, ended, unconnected)):
            ring.prepare_select(Opcode.RECV, group, user_data=number, fd=sock.fileno())
        found = ring.peek(3)
    assert [completion.result for completion in found] == [4, 0, -errno.ENOTCONN]
    assert [bool(completion.flags & CompletionFlags.BUFFER) for completion in found] == [True, False, False]
    return found


def test_cq_advance_has_two_counts(ring: Ring) -> None:
    """Three completions took one buffer: with one count for both, two buffers would be published twice."""
    with ring.register_buffer_ring(count=4, size=16) as group:
        for _ in range(20):
            completions = three_ends(ring, group)
            group.add(group.take(completions[0].flags, completions[0].result))
            for wrong in ((3, 3), (4, 1), (3, 2), (4, 2), (2**32 - 1, 0)):
                with pytest.raises(ValueError, match="there are only 3 peeked at and 1 added"):
                    group.cq_advance(*wrong)
            assert ring.peek() == completions
            assert owners(group) == (3, 1, 0)
            group.cq_advance(3, 1)
            assert ring.peek() == []
            assert owners(group) == (4, 0, 0)
        assert group.head() == 20


def test_cq_advance_in_parts(ring: Ring) -> None:
    """Either count may be 0, and what was not consumed is seen again."""
    with ring.register_buffer_ring(count=4, size=16) as group:
        completions = three_ends(ring, group)
        group.cq_advance(1, 0)
        assert ring.peek() == completions[1:]
        group.add(group.take(completions[0].flags, completions[0].result))
        group.cq_advance(0, 1)
        assert ring.peek() == completions[1:]
        group.cq_advance(2, 0)
        assert ring.peek() == []
        group.cq_advance(0, 0)
        assert owners(group) == (4, 0, 0)


def test_a_completion_taken_twice(ring: Ring, pair: Pair) -> None:
    """A completion that is seen again names a buffer with another owner by then, and cannot be taken again."""
    with ring.register_buffer_ring(count=2, size=16) as group:
        pair[1].send(b"data")
        ring.prepare_select(Opcode.RECV, group, user_data=1, fd=pair[0].fileno())
        (completion,) = ring.peek(1)
        chunk = group.take(completion.flags, completion.result)
        with pytest.raises(AssertionError, match="taken before"):
            group.take(completion.flags, completion.result)
        group.add(chunk)
        assert ring.peek() == [completion]
        with pytest.raises(AssertionError, match="taken before"):
            group.take(completion.flags, completion.result)
        group.cq_advance(1, 1)
        assert owners(group) == (2, 0, 0)


def test_cq_advance_on_a_loop_consumes_nothing(profile: TaskRun) -> None:
    """The loop's driver takes every completion itself: there is nothing that could be consumed twice."""

    async def main() -> None:
        async with aiouring.AsyncRing(task_run=profile) as ring:
            group = ring.register_buffer_ring(count=2, size=16)
            await ring.nop()
            with pytest.raises(ValueError, match="only 0 peeked at"):
                group.cq_advance(1, 0)

    asyncio.run(main())


async def test_advance_serves_the_line(pair: Pair) -> None:
    """On a loop an advance calls whoever waits for a buffer; an add alone does not."""
    async with aiouring.AsyncRing() as ring:
        group = ring.register_buffer_ring(count=1, size=16)
        pair[1].send(b"first")
        chunk = await ring.recv(pair[0], group)
        pair[1].send(b"second")
        task = asyncio.create_task(ring.recv(pair[0], group))
        while not group.statistics().waiting:
            await asyncio.sleep(0)
        group.add(chunk)
        await ring.nop()
        assert group.statistics().waiting == 1
        group.advance(1)
        with await task as chunk:
            assert bytes(chunk.view) == b"second"


# ---- endurance, as liburing's buf-ring-stress ----------------------------------------------------


@pytest.fixture
def streams() -> Iterator[list[Pair]]:
    """Four pairs of connected stream sockets."""
    made = [socket.socketpair() for _ in range(4)]
    yield made
    for receiving, sending in made:
        receiving.close()
        sending.close()


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_d5_drained_and_filled_by_hand(ring: Ring, streams: list[Pair], count: int) -> None:
    """However the ring runs dry and is filled, every byte comes once and in order, and no buffer is lost."""
    choose = random.Random(count)
    sent, received, armed = [0] * 4, [0] * 4, [False] * 4
    held: list[aiouring.ProvidedBuffer] = []
    taken = refused = 0
    with ring.register_buffer_ring(count=count, size=7) as group:
        while taken < 20000:
            for number, (receiving, sending) in enumerate(streams):
                if sent[number] - received[number] < 50:
                    start = sent[number]
                    sent[number] += sending.send(bytes(at % 251 for at in range(start, start + 50)))
                if not armed[number]:
                    ring.prepare_select(Opcode.RECV, group, user_data=number, fd=receiving.fileno())
                    armed[number] = True
            completions = ring.peek(1)
            for number, result, flags in completions:
                armed[number] = False
                if result == -errno.ENOBUFS:
                    refused += 1
                    continue
                chunk = group.take(flags, result)
                start = received[number]
                assert bytes(chunk.view) == bytes(at % 251 for at in range(start, start + result))
                received[number] += result
                held.append(chunk)
                taken += 1
            back = 0 if group.available() else choose.randint(min(1, len(held)), len(held))
            for _ in range(back):
                group.add(held.pop(choose.randrange(len(held))))
            group.cq_advance(len(completions), back)
            assert group.available() <= count - len(held)
            assert (group.statistics().added, group.statistics().in_use) == (0, len(held))
        for chunk in held:
            chunk.release()
        assert group.statistics().published >= 20000
        assert refused
