"""Owns `DirectFile`: a file that is read and written around the page cache, at any offset and in any length.

How this fits together

1. The kernel wants offsets, lengths and memory of an O_DIRECT file aligned.  A read is widened to whole pages, into a
   block of registered memory (see `_block_pool`), and what was asked for is copied out of it.
2. A write is cut at page boundaries.  Whole pages go around the page cache.  What is left, before the first boundary
   and behind the last, goes through it, by a second descriptor of the same file: so the kernel does the reading,
   changing and writing back of such a page, one after another where several tasks share it, the file is never longer
   than what was written, and a file open for writing only need not be read by us.  (Our own reading and changing would
   race with whoever else writes into the page; padding, and cutting the file to its length later, with whoever else
   makes it longer.)
3. The two descriptors see the same bytes: before a direct read the kernel writes back what is dirty of those pages, and
   a direct write drops them.  Parts of one page never go both ways at once, because each of our writes to a page that
   it does not cover goes through the cache.
4. A read that comes back short is the end of the file only if the next one brings nothing: before a bad block it
   comes back short as well.
5. What is appended goes through the page cache: where it will stand is not known before.
"""

import asyncio
import errno
import mmap
import os
from collections.abc import Callable, Coroutine
from typing import Any

from aiouring._async_ring import AsyncRing
from aiouring._block_pool import SIZE, Block, block_pool
from aiouring._errors import note_written_before
from aiouring._objects import new_bytes
from aiouring._raw_file import RawFile
from aiouring._request import Request, Write
from aiouring._stat import StatxResult
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes

#: Blocks that one long read or write has in flight.
DEPTH = 8

_READS = (lib.AU_OP_READ_FIXED, lib.AU_OP_READ)
_WRITES = (lib.AU_OP_WRITE_FIXED, lib.AU_OP_WRITE)


class DirectFile(RawFile):
    """An open file, read and written around the page cache where that can be.

    Args:
        fd: an open descriptor with O_DIRECT.
    """

    largest = SIZE
    depth = DEPTH

    def __init__(
        self,
        ring: AsyncRing,
        fd: int,
        name: Any,
        flags: int,
        *,
        owned: bool = True,
        background: bool | None = None,
    ) -> None:
        super().__init__(ring, fd, name, flags, owned=owned, background=background)
        self._flags = flags
        self._cached: RawFile
        self._pool = block_pool(ring)

    async def look(self) -> StatxResult:
        """As `RawFile.look()`; the first time, find the alignment, and open the file once more, without O_DIRECT."""
        found = await super().look()
        if not hasattr(self, "_cached"):
            self.alignment = max(mmap.PAGESIZE, found.dio_offset_align or 0)
            flags = self._flags & (os.O_ACCMODE | os.O_APPEND)
            fd = await self.ring.openat(f"/proc/self/fd/{self.fd}", flags)
            self._cached = RawFile(self.ring, fd, self.name, flags, background=self.how != 0)
        return found

    # ---- reading -------------------------------------------------------------------------------

    async def read_some(self, size: int, offset: int) -> bytes:
        """At most `size` bytes, and a block, from `offset` on."""
        with self._pool.lend() as block:
            start, count = await self._read_block(block, size, offset)
            data: bytes = ffi.buffer(block.memory + start, count)[:] if count else b""
        return data

    async def read_at(self, size: int, offset: int) -> bytes:
        """As `RawFile.read_at()`."""
        if size <= self.largest - offset % self.alignment:
            data = await self.read_some(size, offset)  # a block has it all, unless the file ends
            if len(data) == size:
                return data
        data = new_bytes(size)
        count = await self.read_into(ffi.from_buffer(data), size, offset)
        return data if count == size else data[:count]

    async def read_into(self, memory: Any, size: int, offset: int, start: int = 0) -> int:
        """As `RawFile.read_into()`, with DEPTH blocks in flight."""
        places = iter(self._cut(size - start, offset))
        ends = [size - start]  # where a read came back short

        async def _read_blocks() -> None:
            for done, length in places:
                while length and done < min(ends):
                    with self._pool.lend() as block:
                        at, count = await self._read_block(block, length, offset + done)
                        ffi.memmove(memory + start + done, block.memory + at, count)
                    if not count:
                        ends.append(done)
                        return
                    done += count
                    length -= count

        await together(_read_blocks, DEPTH if size - start > self.largest else 1)
        return min(ends)

    def _cut(self, size: int, offset: int) -> list[tuple[int, int]]:
        """`size` bytes at `offset` in parts that end at whole blocks: where each begins, from 0 on, and its length."""
        places = []
        done = 0
        while done < size:
            length = min(size - done, self.largest - (offset + done) % self.alignment)
            places.append((done, length))
            done += length
        return places

    async def _read_block(self, block: Block, size: int, offset: int) -> tuple[int, int]:
        """Read whole pages; returns where in the block `offset` is, and how many of the `size` bytes came."""
        start = offset % self.alignment
        length = min(-(-(start + size) // self.alignment) * self.alignment, self.largest)
        count = await self._move(Request, block, 0, length, offset - start)
        if 0 < count <= start:  # the file's end, or a bad block in this page: the page cache knows
            count = start + await self._cached.read_into(block.memory, min(length, start + size), offset, start)
        return start, max(0, min(count - start, size))

    async def _fill_block(self, block: Block, offset: int, length: int) -> int:
        """Read aligned bytes, a block at most; returns how many came, fewer only at the end of the file."""
        done = 0
        while done < length:
            start = done % self.alignment
            count = await self._move(Request, block, done - start, length - done + start, offset + done - start)
            if 0 < count <= start:  # as above
                return done + await self._cached.read_into(block.memory, length, offset + done, done)
            if not count:
                break
            done += count - start
        return done

    # ---- writing -------------------------------------------------------------------------------

    async def write_at(self, data: Bytes, offset: int) -> int:
        """As `RawFile.write_at()`: whole pages around the page cache, the rest through it."""
        if self.append:
            return await self._cached.write_at(data, offset)
        view = memoryview(data).cast("B")
        head = min(-offset % self.alignment, len(view))
        done = 0
        try:
            if head:
                done = await self._cached.write_at(view[:head], offset)
            while done < len(view):
                length = min(len(view) - done, self.largest)
                with self._pool.lend() as block:
                    ffi.memmove(block.memory, view[done : done + length], length)
                    done += await self._write_block(block, length, offset + done)
        except BaseException as error:
            note_written_before(error, done)
            raise
        return len(view)

    def write_at_once(self, data: Bytes, offset: int) -> None:
        """As `RawFile.write_at_once()`, through the page cache."""
        self._cached.write_at_once(data, offset)

    async def copy_block(self, target: "DirectFile", offset: int, length: int) -> int:
        """Copy aligned bytes, a block at most, to the same place in another file; returns how many bytes there were."""
        with self._pool.lend() as block:
            return await target._write_block(block, await self._fill_block(block, offset, length), offset)

    async def _write_block(self, block: Block, length: int, offset: int) -> int:
        """Write the first `length` bytes of a block at an aligned offset; returns how many that is."""
        done = 0
        try:
            while done < length:
                beyond = done % self.alignment  # after a short write
                whole = length - length % self.alignment
                if beyond or done == whole:
                    part = min(length - done, self.alignment - beyond)
                    done += await self._cached.write_at(ffi.buffer(block.memory + done, part), offset + done)
                else:
                    count = await self._write_pages(block, done, whole - done, offset + done)
                    if not count:
                        raise self.nothing_written()
                    done += count
        except BaseException as error:
            note_written_before(error, done)
            raise
        if length:
            self.size = max(self.size, offset + length)
        return length

    async def _write_pages(self, block: Block, start: int, length: int, offset: int) -> int:
        """Write whole pages; returns how many bytes of them.

        Where the file may not become so long (RLIMIT_FSIZE, the largest file there can be) and the limit lies within a
        page, the kernel cuts the write there, and then finds it misaligned.  The page cache takes what there is room
        for, and gives the right error.
        """
        try:
            return await self._move(Write, block, start, length, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return await self._cached.write_at(ffi.buffer(block.memory + start, length), offset)

    async def _move(self, kind: type[Request], block: Block, start: int, length: int, offset: int) -> int:
        """One request on a block, from its byte `start` on."""
        fd, lease, memory = self.fileno(), block.lease, block.memory
        request = kind(fd, self, memory, lease)
        fixed, plain = _WRITES if kind is Write else _READS
        try:
            if lease is not None and lease.table.registered:
                return await self._driver.perform(
                    request, lib.au_prepare_fixed, fixed, fd, lease.table, lease.number, start, length, offset, self.how
                )
            return await self._driver.perform(
                request, lib.au_prepare_memory, plain, fd, memory, SIZE, start, length, offset, 0, self.how
            )
        except OSError as error:
            self.named(error)
            raise

    # ---- the end -------------------------------------------------------------------------------

    def appended(self) -> int:
        """As `RawFile.appended()`: the page cache's descriptor knows."""
        return self._cached.appended()

    async def _close(self) -> None:
        try:
            await super()._close()
        finally:
            if hasattr(self, "_cached"):
                await self._cached.aclose()

    def _close_at_once(self) -> None:
        super()._close_at_once()
        if hasattr(self, "_cached"):
            self._cached._close_at_once()


async def together(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `work()` so many times at once; the first error ends all, and is raised as it is."""
    if count == 1:
        await work()
        return
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
