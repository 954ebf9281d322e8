"""Owns the vectored verbs: one request for several buffers, or for several ranges inside one registered buffer."""

from collections.abc import Iterable
from typing import Any

from aiouring._driver import Driver
from aiouring._features import require
from aiouring._fixed_buffer import FixedBuffer, Vector
from aiouring._messages import new_message
from aiouring._request import Leftovers, OfParts, Read, Request, Write
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, file_offset, resolve, special

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


class ReadRangesNow(ReadRanges):
    """The same, not to wait."""

    __slots__ = ()
    events = 0


class ReadParts(OfParts, Read):
    """A read into several buffers, perhaps at the file's own position; `hold` is the message that lists them."""

    __slots__ = ("at_position", "parts")

    at_position: bool

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Undo a read at the file's own position where the file can seek, else keep its bytes, in their order."""
        if self.result > 0 and self.at_position:
            message, self.hold = self.hold, ffi.from_buffer(b"".join(ffi.buffer(part)[:] for part in self.parts))
            super().unclaimed(leftovers)
            self.hold = message


class ReadPartsNow(ReadParts):
    """The same, not to wait."""

    __slots__ = ()
    events = 0


class WriteParts(OfParts, Write):
    """A write from several buffers."""

    __slots__ = ("parts",)


class WritePartsNow(WriteParts):
    """The same, not to wait."""

    __slots__ = ()
    events = 0


class VectorVerbs(Verbs):
    """The part of `AsyncRing` that reads and writes several buffers, or ranges of a registered one, at once."""

    async def readv(
        self,
        fd: File,
        buffers: Iterable[Bytes],
        offset: int | None = None,
        *,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Read into several buffers, filling one after the other; returns the number of bytes, 0 at the end.

        Args:
            fd: a descriptor, or an object with fileno().
            buffers: up to 1024 writable C-contiguous buffers, or lent ones.  Held until the kernel is done.
            offset: where in the file, in bytes; None means, and moves, the file's own position.
            flags: `ReadWriteFlags`, as for `read()`.
            background: as for `read()`.

        Since Linux 5.1.  See io_uring_prep_readv2(3).
        """
        number, file, how = resolve(fd)
        position = file_offset(offset)
        _, how = special(Read, how, flags, background=background)
        message, parts = new_message(buffers, writable=True)
        driver = self._driver or self._bound()
        if offset is None and driver.leftovers.kept:
            data = driver.leftovers.take(number, sum(len(part) for part in parts))
            if data is not None:
                return spread(parts, data)
        request = (ReadPartsNow if flags & lib.AU_RWF_NOWAIT else ReadParts)(number, file, message)
        request.parts, request.at_position = parts, offset is None
        return await _perform(driver, request, lib.AU_OP_READV, position, how)

    async def writev(
        self,
        fd: File,
        buffers: Iterable[Bytes],
        offset: int | None = None,
        *,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Write several buffers, one after the other; returns the number of bytes written, which may be fewer.

        Arguments are those of `readv()`; the buffers need not be writable.  Since Linux 5.1.  See
        io_uring_prep_writev2(3).
        """
        number, file, how = resolve(fd)
        position = file_offset(offset)
        _, how = special(Write, how, flags, background=background)
        message, parts = new_message(buffers, writable=False)
        request = (WritePartsNow if flags & lib.AU_RWF_NOWAIT else WriteParts)(number, file, message)
        request.parts = parts
        return await _perform(self._driver or self._bound(), request, lib.AU_OP_WRITEV, position, how)

    async def readv_fixed(
        self,
        fd: File,
        buffer: FixedBuffer,
        ranges: Ranges,
        offset: int | None = None,
        *,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Read into several ranges of a registered buffer, filling one after the other; returns the number of bytes.

        Args:
            fd: a descriptor, or an object with fileno().
            buffer: a lent registered buffer.
            ranges: 1 to 1024 pairs of start and length, in bytes, each at least one byte and inside the buffer.
            offset: where in the file, in bytes; None means, and moves, the file's own position.
            flags: `ReadWriteFlags`, as for `read()`.
            background: as for `read()`.

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
        kind, how = special(Request, how, flags, background=background)
        request = kind(number, file, vector, buffer)
        if offset is None:
            if driver.leftovers.kept and (data := driver.leftovers.take(number, vector.total)) is not None:
                return scatter(memory, vector, data)
            request = read = (ReadRangesNow if flags & lib.AU_RWF_NOWAIT else ReadRanges)(number, file, memory, buffer)
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

    async def writev_fixed(
        self,
        fd: File,
        buffer: FixedBuffer,
        ranges: Ranges,
        offset: int | None = None,
        *,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Write several ranges of a registered buffer, one after the other; returns the number of bytes written.

        Arguments and errors are those of `readv_fixed`.  Since Linux 6.15.  See io_uring_prep_writev_fixed(3).
        """
        number, file, how = resolve(fd)
        vector = Vector(buffer, ranges)
        buffer.memory()  # ValueError after release
        driver = self._driver or self._bound()
        require("vectored fixed I/O")
        kind, how = special(Write, how, flags, background=background)
        return await driver.perform(
            kind(number, file, vector, buffer),
            lib.au_prepare_fixed_vector,
            lib.AU_OP_WRITEV_FIXED,
            number,
            buffer.table,
            buffer.number,
            *vector.arguments,
            file_offset(offset),
            how,
        )


async def _perform(driver: Driver, request: ReadParts | WriteParts, opcode: int, offset: int, how: int) -> int:
    try:
        return await driver.perform(request, lib.au_prepare_vector, opcode, request.fd, request.hold, offset, how)
    finally:
        request.let_go()


def spread(parts: list[Any], data: bytes) -> int:
    """Copy bytes that arrived earlier into buffers, one after the other; returns how many."""
    start = 0
    for part in parts:
        piece = data[start : start + len(part)]
        ffi.memmove(part, piece, len(piece))
        start += len(piece)
    return start


def scatter(memory: object, vector: Vector, data: bytes) -> int:
    """Copy bytes that arrived earlier into the ranges; returns how many."""
    view = ffi.buffer(memory, max(start + length for start, length in vector.ranges))
    left = memoryview(data)
    for start, length in vector.ranges:
        view[start : start + len(left[:length])] = left[:length]
        left = left[length:]
    return len(data)
