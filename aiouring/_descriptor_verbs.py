"""Owns the verbs for descriptors of any kind: waiting for events, and moving bytes from one to another."""

import errno
import os
import select
from functools import partial
from typing import Any

from aiouring._buffer_ring import BufferRing, ProvidedBuffer
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._features import require
from aiouring._polling import Polling
from aiouring._reading import Reading
from aiouring._receive_stream import ReceiveStream
from aiouring._request import Request, Write
from aiouring._standing import Standing
from aiouring._standing_streams import PollStream
from aiouring._uring import lib
from aiouring._verbs import File, Verbs, file_offset, forget, resolve


class Splice(Write):
    """A splice: it runs in a worker of the kernel, which looks its descriptors up later, so both are our duplicates."""

    __slots__ = ("duplicates",)
    expected = errno.EAGAIN  # which of the two has to be waited for, the verb knows

    def __init__(self, fd: int, file: Any, *numbers: int) -> None:
        super().__init__(fd, file)
        self.duplicates: list[int] = []
        self.ended = True  # the kernel has nothing yet
        try:
            for number in numbers:
                self.duplicates.append(os.dup(number))
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """Close the duplicates."""
        if self.ended:
            while self.duplicates:
                os.close(self.duplicates.pop())


class DescriptorVerbs(Verbs):
    """The part of `AsyncRing` that works on any file."""

    _standing: set[Standing]

    async def poll(self, fd: File, events: int = select.POLLIN) -> int:
        """Wait until one of `events` (`select.POLLIN` ...) is true of a file; returns those that are.

        Since Linux 5.1.  See io_uring_prep_poll_add(3).
        """
        number, file, how = resolve(fd)
        return await (self._driver or self._bound()).perform(
            Request(number, file), lib.au_prepare, lib.AU_OP_POLL_ADD, number, 0, 0, 0, events, how
        )

    def poll_multishot(self, fd: File, events: int = select.POLLIN) -> PollStream:
        """Keep a poll armed; `async for` the events of a file, each time some become true.

        Yields a mask of `events` (`select.POLLIN` ...) with `POLLERR` and `POLLHUP`, which are always reported.  Events
        that come while nobody takes them are joined.  An event is reported when it becomes true, not as long as it is:
        read until there is nothing left before you wait for the next.

        Use `async with`, or leave the loop: both end the poll.  `close()` and `cancel()` on the file are `OSError`
        (ECANCELED) here.

        Since Linux 5.13.  See io_uring_prep_poll_multishot(3).
        """
        require("multishot poll")
        if not 0 < events < 1 << 16:
            raise ValueError(f"events={events} is outside 1 to {(1 << 16) - 1}: select.POLLIN and the like")
        number, file, how = resolve(fd)
        driver = self._driver or self._bound()
        driver.check()
        polling = Polling(driver, number, file, how, events)
        self._standing.add(polling)
        return PollStream(polling, partial(self._standing.discard, polling))

    def read_multishot(
        self, fd: File, group: BufferRing, *, max_pending: int | None = None
    ) -> ReceiveStream[ProvidedBuffer]:
        """Keep a read of a pipe or terminal armed; `async for` its chunks, each a lent buffer, until the end.

        Works as `recv_multishot()` does: it stops when `max_pending` chunks wait for their reader and goes on when half
        of them are taken, waits in the group's line while all buffers are lent, and leaves what was not taken to the
        next read on the file.  The kernel is told no limit here, so a full pipe may take all of the group's buffers.

        Raises:
            ResourceBusyError: a stream of the file is being read already.
            ValueError: the group falls back to private memory, which such a read cannot.
            OSError: EBADFD where the file is one that cannot be waited for, such as a regular one; when it is read.

        Since Linux 6.7.  See io_uring_prep_read_multishot(3).
        """
        require("multishot read")
        number, file, how = resolve(fd)
        if not isinstance(group, BufferRing):
            raise TypeError(f"a BufferRing from register_buffer_ring() is needed, not {type(group).__name__}")
        if group.on_empty == "fallback":
            raise ValueError(
                'a multishot read has no private memory to fall back to: take a group with on_empty="wait"'
            )
        driver = self._driver or self._bound()
        driver.check()
        self._check_for_stream(fd, number, file)
        reading = Reading(driver, number, file, how, group, group.most_pending(max_pending), keeps_boundaries=False)
        self._receiving[number] = reading
        return ReceiveStream(reading, reading.__anext__, partial(forget, self._receiving, number, reading))

    async def splice(
        self,
        source: File,
        destination: File,
        count: int,
        *,
        source_offset: int | None = None,
        destination_offset: int | None = None,
    ) -> int:
        """Move up to `count` bytes from one file to another within the kernel; returns how many, 0 at the end.

        One of the two must be a pipe.  They are duplicated for as long as this runs; closing a duplicate releases
        this process's POSIX record locks on a file (see fcntl(2)).  Of the two, `cancel()` and `close()` know the
        destination.  After a cancellation it is unknown how many bytes were moved.

        Args:
            source: what to read from.
            destination: what to write to.
            count: bytes, 1 to 2147479552.
            source_offset: where to read, in bytes; None is the file's own position, and what a pipe needs.
            destination_offset: where to write.

        Since Linux 5.7.  See io_uring_prep_splice(3) and splice(2).
        """
        _check_between(source, destination, count)
        start, goal = file_offset(source_offset), file_offset(destination_offset)
        return await self._between(lib.AU_OP_SPLICE, source, destination, start, goal, count)

    async def tee(self, source: File, destination: File, count: int) -> int:
        """Copy up to `count` bytes from one pipe to another and leave them there; returns how many, 0 at the end.

        Takes, and does to its descriptors, what `splice()` does.  Since Linux 5.8.  See io_uring_prep_tee(3) and
        tee(2).
        """
        _check_between(source, destination, count)
        return await self._between(lib.AU_OP_TEE, source, destination, 0, 0, count)

    async def _between(self, opcode: int, source: File, destination: File, start: int, goal: int, count: int) -> int:
        driver = self._driver or self._bound()
        while True:
            readable, _, _ = resolve(source)
            writable, file, _ = resolve(destination)
            request = Splice(writable, file, readable, writable)
            duplicate, onto = request.duplicates
            moved = await driver.perform(request, lib.au_prepare_splice, opcode, onto, goal, duplicate, start, count, 0)
            request.let_go()
            if moved >= 0:
                return moved
            await self.poll(source, select.POLLIN)
            await self.poll(destination, select.POLLOUT)


def _check_between(source: File, destination: File, count: int) -> None:
    if not 1 <= count <= lib.AU_MAX_TRANSFER:
        raise ValueError(f"count={count} is outside 1 to {lib.AU_MAX_TRANSFER}")
    for file in (source, destination):
        if isinstance(file, DirectDescriptor):
            raise TypeError(
                "splice takes no direct descriptor, nor does tee: the kernel would look the slot up later, when it may "
                "hold another file; get a descriptor with fixed_fd_install()"
            )
