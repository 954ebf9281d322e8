"""Tests of the 16-bit tail of a buffer ring: more recycles than the tail can count, in rings of all sizes."""

import errno
import socket
from collections import deque
from collections.abc import Iterator
from typing import Self

import pytest

import aiouring
from aiouring._lease import Arena
from aiouring._uring import ffi, lib

LAPS = 65536

#: What is sent, over and over; its period has nothing in common with any ring's size.
PATTERN = bytes(number % 251 for number in range(251 * 64))


class Recycler:
    """A group of one-byte buffers on a bare ring, and a stream whose every byte takes one of them."""

    def __init__(self, ring: aiouring.Ring, count: int) -> None:
        self.ring = ring
        self.arena = Arena(count, 1, 1)
        self.group = ffi.new("au_group *", {"owner": count})
        assert lib.au_group_init(self.group, ring.raw, self.arena.base, 1, count, 0) == 0
        assert lib.au_group_register(self.group) == 0
        self.receiving, self.sending = socket.socketpair()
        self.unreceived = 0
        self.received = 0
        self.held: deque[tuple[int, bytes]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.receiving.close()
        self.sending.close()
        assert lib.au_group_unregister(self.group) == 0
        lib.au_group_close(self.group)

    def send(self, count: int) -> None:
        """See to it that `count` bytes lie in the stream."""
        while self.unreceived < count:
            start = (self.received + self.unreceived) % 251
            self.unreceived += self.sending.send(PATTERN[start : start + 4096])

    def prepare(self) -> None:
        """Fill one entry that receives one byte."""
        arguments = (lib.AU_OP_RECV, self.receiving.fileno(), self.group, 0, 0, 0, 0)
        assert lib.au_prepare_select(self.ring.raw, 1, *arguments) == 0

    def receive(self, count: int) -> None:
        """Receive `count` bytes, each into a buffer of its own, and hold the buffers."""
        self.send(count)
        for _ in range(count):
            self.prepare()
        for completion in self.ring.submit():
            assert completion.result == 1
            assert completion.flags & lib.AU_CQE_F_BUFFER
            number = completion.flags >> lib.AU_CQE_BUFFER_SHIFT
            assert lib.au_group_take(self.group, number) == 0
            content = bytes(self.arena.exporters[number])
            assert content[0] == self.received % 251
            self.held.append((number, content))
            self.received += 1
            self.unreceived -= 1

    def release(self, count: int) -> None:
        """Give the `count` buffers that were held longest back."""
        for _ in range(count):
            number, content = self.held.popleft()
            assert bytes(self.arena.exporters[number]) == content
            assert lib.au_group_release(self.group, number) >= 0


@pytest.fixture
def ring(profile: str) -> Iterator[aiouring.Ring]:
    """A bare ring of the profile under test."""
    with aiouring.Ring(512, task_run="defer" if profile == "defer" else "coop") as made:
        yield made


@pytest.mark.parametrize("count", [1, 2, 64, 32768])
def test_d14_tail_wraps(ring: aiouring.Ring, count: int) -> None:
    """After more than 65536 recycles every byte has come once and in order, and every buffer is accounted for."""
    step = min(count, 512)
    with Recycler(ring, count) as recycler:
        group = recycler.group
        for _ in range(count // 2 // step):  # half of a large group stays lent all the time
            recycler.receive(step)
        while recycler.received < LAPS + 3 * count:
            recycler.receive(step)
            assert group.with_kernel + group.unpublished + group.lent == count
            recycler.release(step)
        assert group.published > LAPS + count
        assert group.tail == group.published % 65536
        recycler.release(len(recycler.held))
        ring.submit()
        assert (group.with_kernel, group.lent, group.unpublished) == (count, 0, 0)
        assert lib.au_group_head(group) == recycler.received % 65536
        assert (group.tail - lib.au_group_head(group)) % 65536 == count


def test_d14_all_lent_and_all_returned(ring: aiouring.Ring) -> None:
    """The largest ring can be emptied and filled as a whole, so that the tail passes the head by 32768."""
    with Recycler(ring, 32768) as recycler:
        for _ in range(3):
            for _ in range(32768 // 512):
                recycler.receive(512)
            assert (recycler.group.with_kernel, recycler.group.lent) == (0, 32768)
            recycler.release(32768)
            ring.submit()
            assert (recycler.group.with_kernel, recycler.group.lent) == (32768, 0)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_d14_empty_is_empty(ring: aiouring.Ring, count: int) -> None:
    """However far the tail has gone, an empty ring is empty to the kernel, and a full one takes no more."""
    with Recycler(ring, count) as recycler:
        for lap in range(200):
            recycler.receive(count)
            recycler.send(1)
            recycler.prepare()
            (refused,) = ring.submit()
            assert refused.result == -errno.ENOBUFS, "the kernel found a buffer that it did not have"
            recycler.release(count)
            assert lib.au_group_release(recycler.group, lap % count) == lib.AU_NOT_LENT
