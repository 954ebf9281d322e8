"""Owns `copy_file()`: a file's bytes to another file, several blocks at a time, each read or written as it comes.

The blocks are taken from one list by as many workers as may be in flight.  A worker reads its block and writes it, so
the memory in use is a few blocks, however long the file is.  With direct=True a block is read into registered memory
and written from there: no byte is touched by this program.
"""

import itertools
import os
from collections.abc import Callable
from shutil import SameFileError
from typing import TYPE_CHECKING

from aiouring._block_pool import SIZE
from aiouring._direct_file import DEPTH, DirectFile, together
from aiouring._open import open_raw

if TYPE_CHECKING:
    from aiouring._async_ring import AsyncRing
    from aiouring._paths import StrPath
    from aiouring._raw_file import RawFile

#: Called with the bytes that have been copied and those that there are to copy.
Progress = Callable[[int, int], object]

#: Bytes that are read and written at a time.
BLOCK = SIZE


async def copy_file(
    source: "StrPath",
    destination: "StrPath",
    *,
    progress: Progress | None = None,
    direct: bool = False,
    ring: "AsyncRing | None" = None,
) -> int:
    """Copy the bytes of a file, as `shutil.copyfile()` does; returns how many there were.

    Args:
        source: a regular file.
        destination: a file, which is made if it is not there; else its old contents are lost.
        progress: called after each block with the bytes copied so far and the source's size.  What it raises ends the
            copy.
        direct: go around the page cache, as `open()` does.
        ring: whose requests do it; None is the running loop's own.

    Raises:
        shutil.SameFileError: both are one file.
        OSError: of the one or the other, with its name.  An incomplete copy is left where it is.
    """
    reader = await open_raw(source, os.O_RDONLY, ring, direct=direct)
    try:
        if not reader.seekable:
            raise reader.invalid("a file that cannot seek cannot be copied in blocks")
        writer = await open_raw(destination, os.O_WRONLY | os.O_CREAT, ring, direct=direct)
        try:
            if os.path.samestat(os.fstat(reader.fileno()), os.fstat(writer.fileno())):
                raise SameFileError(f"{reader.name!r} and {writer.name!r} are the same file")
            if writer.size:
                await writer.truncate(0)
            return await _Copy(reader, writer, progress).run()
        finally:
            await writer.aclose()
    finally:
        await reader.aclose()


class _Copy:
    """One copy on its way."""

    def __init__(self, reader: "RawFile", writer: "RawFile", progress: Progress | None) -> None:
        self._reader = reader
        self._writer = writer
        self._progress = progress
        self._size = reader.size
        self._offsets = itertools.count(0, BLOCK)
        self._end: int | None = None  # where the source ended
        self._done = 0

    async def run(self) -> int:
        """Copy; returns how many bytes."""
        blocks = -(-self._size // BLOCK)
        await together(self._work, max(1, min(DEPTH, blocks)))
        end = self._end or 0
        if self._writer.size > end:  # the source became shorter meanwhile
            await self._writer.truncate(end)
        return end

    async def _work(self) -> None:
        for offset in self._offsets:
            if self._end is not None and offset >= self._end:
                return
            count = await self._copy(offset)
            self._done += count
            if count < BLOCK:
                self._end = min(offset + count, self._end if self._end is not None else offset + count)
            if self._progress is not None and count:
                self._progress(self._done, max(self._size, self._done))

    async def _copy(self, offset: int) -> int:
        reader, writer = self._reader, self._writer
        if isinstance(reader, DirectFile) and isinstance(writer, DirectFile):
            return await reader.copy_block(writer, offset)
        data = await reader.read_at(BLOCK, offset)
        return await writer.write_at(data, offset)
