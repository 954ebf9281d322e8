"""Owns `readv_fixed` and `writev_fixed`: one request for several ranges inside one registered buffer."""

from collections.abc import Iterable

from aiouring._features import require
from aiouring._fixed_buffer import FixedBuffer, Vector
from aiouring._request import Leftovers, Read, Request, Write
from aiouring._uring import ffi, lib
from aiouring._verbs import File, Verbs, file_offset, resolve

#: Start and length of each range, in bytes from the buffer's beginning.
Ranges = Iterable[tuple[int, int]]


class ReadRanges(Read):
    """A read at the file's own position into several ranges."""

    __slots__ = ("vector",)

    vector: Vector

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Undo the read where the file can seek, else keep its bytes, in their order."""
        if self.result > 0 and self.lease is not None:
            memory = ffi.buffer(self.hold, self.lease.length)
            parts = b"".join(memory[start : start + length] for start, length in self.vector.ranges)
            self.hold = ffi.from_buffer(parts[: self.result])
            super().unclaimed(leftovers)


class VectorVerbs(Verbs):
    """The part of `AsyncRing` that reads and writes several ranges of a registered buffer at once."""

    async def readv_fixed(self, fd: File, buffer: FixedBuffer, ranges: Ranges, offset: int | None = None) -> int:
        """Read into several ranges of a registered buffer, filling one after the other; returns the number of bytes.

        Args:
            fd: a descriptor, or an object with fileno().
            buffer: a lent registered buffer.
            ranges: 1 to 1024 pairs of start and length, in bytes, each at least one byte and inside the buffer.
            offset: where in the file, in bytes; None means, and moves, the file's own position.

        Raises:
            ValueError: a range that is empty or not inside the buffer.
            UnsupportedKernelError: before Linux 6.15.

        Since Linux 6.15.  See io_uring_prep_readv_fixed(3).
        """
        number, file, how = resolve(fd)
        vector = Vector(buffer, ranges)
        memory = buffer.memory()
        driver = self._driver or self._bound()
        require("vectored fixed I/O")
        request = Request(number, file, vector, buffer)
        if offset is None:
            if driver.leftovers.kept and (data := driver.leftovers.take(number, vector.total)):
                return scatter(memory, vector, data)
            request = read = ReadRanges(number, file, memory, buffer)
            read.vector = vector
        return await driver.perform(
            request,
            lib.au_prepare_fixed_vector,
            lib.AU_OP_READV_FIXED,
            number,
            buffer.table,
            buffer.number,
            *vector.arguments,
            file_offset(offset),
            how,
        )

    async def writev_fixed(self, fd: File, buffer: FixedBuffer, ranges: Ranges, offset: int | None = None) -> int:
        """Write several ranges of a registered buffer, one after the other; returns the number of bytes written.

        Arguments and errors are those of `readv_fixed`.  Since Linux 6.15.  See io_uring_prep_writev_fixed(3).
        """
        number, file, how = resolve(fd)
        vector = Vector(buffer, ranges)
        buffer.memory()  # ValueError after release
        driver = self._driver or self._bound()
        require("vectored fixed I/O")
        return await driver.perform(
            Write(number, file, vector, buffer),
            lib.au_prepare_fixed_vector,
            lib.AU_OP_WRITEV_FIXED,
            number,
            buffer.table,
            buffer.number,
            *vector.arguments,
            file_offset(offset),
            how,
        )


def scatter(memory: object, vector: Vector, data: bytes) -> int:
    """Copy bytes that arrived earlier into the ranges; returns how many."""
    view = ffi.buffer(memory, max(start + length for start, length in vector.ranges))
    left = memoryview(data)
    for start, length in vector.ranges:
        view[start : start + len(left[:length])] = left[:length]
        left = left[length:]
    return len(data)
