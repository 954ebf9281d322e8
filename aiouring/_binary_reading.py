"""Owns `BinaryReading`: the reads of a binary file at its position, from what is here and what is read ahead.

The position moves when a read has succeeded; see `_binary_file`.  A file without seeking, a pipe, has each of its bytes
once: what an earlier request brought, or is about to bring, is read before anything else is asked for.
"""

from threading import get_ident
from typing import Any

from aiouring._file_object import FileObject
from aiouring._objects import OpenRow, new_bytes
from aiouring._uring import ffi
from aiouring._verbs import Bytes


class BinaryReading(OpenRow, FileObject[bytes]):
    """The part of `BinaryFile` that reads at the position."""

    _buffered: bool

    async def _about_to_read(self) -> None:
        """Have the file as it is to be read, or raise."""
        raise NotImplementedError

    # read() is the row's, see _native/reading.c: it takes what is small from the block that was read ahead, and what is
    # large from the page cache.

    async def _read(self, size: int | None) -> bytes:
        """All else."""
        async with self._order:
            await self._about_to_read()
            if size is None or size < 0:
                data = await self._read_all()
            elif not self._buffered:
                data = await self._read_unbuffered(size)
            elif size > self._raw.largest and self._raw.regular:
                data = await self._read_large(size)
            else:
                data = await self._ahead.read(self._position, size)
            self._position += len(data)
            return data

    async def readall(self) -> bytes:
        """As `read()`."""
        return await self.read()

    async def read1(self, size: int = -1) -> bytes:
        """Read what is there, `size` bytes at most, with one request if nothing is; nothing at the end of the file."""
        async with self._order:
            data = await self._look(size) if size else b""
            self._position += len(data)
            return data

    async def peek(self, size: int = 0) -> bytes:
        """What is there without moving on, read with one request if nothing is; maybe more or less than `size`."""
        async with self._order:
            return await self._look(-1)

    async def _look(self, size: int) -> bytes:
        await self._about_to_read()
        ahead, position = self._ahead, self._position
        ahead.go_to(position)
        while ahead.end == position and await ahead.more(max(size, 0)):
            ahead.go_to(position)
        return ahead.take(position, size if size >= 0 else ahead.end - position)

    async def readinto(self, buffer: Bytes) -> int:
        """Fill a writable buffer; returns how many bytes, fewer than it has only at the end of the file.

        Held until the kernel is done with it.
        """
        async with self._order:
            await self._about_to_read()
            memory = ffi.from_buffer(buffer, require_writable=True)
            self._position += (count := await self._fill(memory, len(memory)))
            return count

    async def readline(self, size: int | None = -1) -> bytes:
        r"""Read a line, up to `\n` and with it; at most `size` bytes where that is not negative."""
        if not self._order.users and size == -1 and get_ident() == self._thread:
            ahead = self._ahead
            start = self._position - ahead.base
            if start >= 0:
                end = ahead.chunk.find(b"\n", start) + 1
                if end:
                    self._position = ahead.base + end
                    return ahead.chunk[start:end]
        async with self._order:
            await self._about_to_read()
            line = await self._read_line(-1 if size is None else size)
            self._position += len(line)
            return line

    async def _read_unbuffered(self, size: int) -> bytes:
        raw, ahead, position = self._raw, self._ahead, self._position
        if raw.regular:
            return await raw.read_at(size, position)
        if not raw.seekable and ahead.has_more(position):
            return await self._look(size)
        return await raw.read_some(size, position)

    async def _read_large(self, size: int) -> bytes:
        """More than a block: what is here already, and the rest straight to its place."""
        data = new_bytes(size)  # not seen by anybody until it is full
        return data[: await self._fill(ffi.from_buffer(data), size)]  # itself where it is full

    async def _fill(self, memory: Any, size: int) -> int:
        """Fill a C array from the position on, which stays; returns how many bytes.

        What is not here already goes straight there where no block need be read ahead: while it is asked for, the array
        is its request's.
        """
        ahead, raw, position = self._ahead, self._raw, self._position
        if not self._buffered and raw.regular:
            return await raw.read_into(memory, size, position)
        if raw.regular and size > raw.largest:
            data = ahead.take(position, size)
            ffi.memmove(memory, data, len(data))
            return len(data) + await raw.read_into(memory, size, position + len(data), len(data))
        if self._buffered and ahead.passes(position, size) and await raw.fill_cached(memory, size, position):
            return size
        data = await (ahead.read_blocks(position, size) if self._buffered else self._read_unbuffered(size))
        ffi.memmove(memory, data, len(data))
        return len(data)

    async def _read_all(self) -> bytes:
        raw, ahead, position = self._raw, self._ahead, self._position
        left = (await raw.look()).st_size - position if raw.regular else 0
        large = await self._read_large(left) if left > raw.largest else b""
        position += len(large)
        while True:
            ahead.go_to(position)
            if not await ahead.more(0 if large else left + 1):  # one more, so that it is short: the end
                break
        rest = ahead.take(position, ahead.end - position)
        return large + rest if large and rest else large or rest

    async def _read_line(self, size: int) -> bytes:
        ahead = self._ahead
        searched = position = self._position
        while True:
            if not ahead.base <= position <= ahead.end:
                searched = position
            ahead.go_to(position)
            end = ahead.find(b"\n", searched) + 1
            if end or 0 <= size <= ahead.end - position:
                break
            searched = ahead.end
            if not await ahead.more(0):
                break
        end = end or ahead.end
        return ahead.take(position, end - position if size < 0 else min(size, end - position))
