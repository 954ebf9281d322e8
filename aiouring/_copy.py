"""Owns `copy_file()`: a file's bytes to another file, several blocks at a time, each read or written as it comes.

The blocks are taken from one list by as many workers as may be in flight.  A worker reads its block and writes it, so
the memory in use is a few blocks, however long the file is.  With direct=True a block is read into registered memory
and written from there: no byte is touched by this program.

A file with holes is copied without them: lseek(2), for which io_uring has no operation, says in a thread where its data
is, and only that is moved.  Files without are told by their blocks, and need no thread.  Sharing the blocks (FICLONE)
and copy_file_range(2) are left to who wants them: neither is an operation of io_uring, neither can be stopped half-way,
nor told of, and after the first a damaged block is damaged in both files.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from shutil import SameFileError
from typing import TYPE_CHECKING

from aiouring._block_pool import SIZE
from aiouring._direct_file import DEPTH, DirectFile, together
from aiouring._open import open_raw
from aiouring._thread_descriptor import ThreadDescriptor

if TYPE_CHECKING:
    from aiouring._async_ring import AsyncRing
    from aiouring._paths import StrPath
    from aiouring._raw_file import RawFile

#: Called with the bytes that have been copied and those that there are to copy.
Progress = Callable[[int, int], object]

#: Bytes that are read and written at a time.
BLOCK = SIZE

_NOWHERE = 1 << 62  # beyond the end of any file


async def copy_file(
    source: "StrPath",
    destination: "StrPath",
    *,
    progress: Progress | None = None,
    direct: bool = False,
    ring: "AsyncRing | None" = None,
) -> int:
    """Copy the bytes of a file, as `shutil.copyfile()` does; returns how many there were.

    Where the source has holes, which take no room on the disk, the copy has some, too: its zeros are read as before.

    Args:
        source: a regular file.
        destination: a file, which is made if it is not there; else its old contents are lost.
        progress: called after each block with the bytes copied so far, holes among them, and the source's size.  What
            it raises ends the copy.
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
            if not (writer.regular and await _is_sparse(reader)):  # a device needs its zeros
                return await _Copy(reader, writer, None, progress).run()
            # Of its own, since lseek(2) moves the position.
            with ThreadDescriptor(await reader.ring.openat(f"/proc/self/fd/{reader.fileno()}")) as seeking:
                return await _Copy(reader, writer, seeking, progress).run()
        finally:
            await writer.aclose()
    finally:
        await reader.aclose()


async def _is_sparse(file: "RawFile") -> bool:
    """Whether a file may have holes: it has fewer blocks than bytes."""
    return file.regular and (await file.look()).st_blocks * 512 < file.size


class _Copy:
    """One copy on its way."""

    def __init__(
        self, reader: "RawFile", writer: "RawFile", seeking: ThreadDescriptor | None, progress: Progress | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._seeking = seeking  # of a sparse file
        self._progress = progress
        self._size = reader.size
        self._alignment = max(reader.alignment, writer.alignment)
        self._turn = asyncio.Lock()  # of who asks for the next data
        self._at = 0  # where the next piece begins
        self._data_end = 0 if seeking is not None else _NOWHERE  # where what is known to be data ends
        self._end = _NOWHERE  # where the source ended
        self._done = 0

    async def run(self) -> int:
        """Copy; returns how many bytes."""
        blocks = -(-self._size // BLOCK)
        await together(self._work, max(1, min(DEPTH, blocks)))
        if self._writer.regular and self._writer.size != self._end:  # a hole at the end, or the source became shorter
            await self._writer.truncate(self._end)
        return self._end

    async def _work(self) -> None:
        while piece := await self._next():
            offset, length = piece
            count = await self._copy(offset, length)
            if count < length:
                self._end = min(offset + count, self._end)
            self._tell(count)

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None and count:
            self._progress(self._done, max(self._size, self._done))

    async def _next(self) -> tuple[int, int] | None:
        """The next piece, within a block, that has data: where it begins and how long it is; None at the end."""
        while self._at >= self._data_end and self._at < self._end:
            async with self._turn:
                if self._at >= self._data_end and self._seeking is not None:
                    await self._pass_the_hole(self._seeking)
        if self._at >= self._end:
            return None
        offset = self._at
        self._at = min(offset - offset % BLOCK + BLOCK, self._data_end)
        return offset, self._at - offset

    async def _pass_the_hole(self, seeking: ThreadDescriptor) -> None:
        """Go on to where there is data, or to the end."""
        start, stop = await seeking.run(_data_from, self._at)
        hole = max(0, start - start % self._alignment - self._at)
        self._at += hole
        self._data_end = -(-stop // self._alignment) * self._alignment
        if start == stop:
            self._end = min(start, self._end)
            self._tell(hole)
        else:
            self._done += hole

    async def _copy(self, offset: int, length: int) -> int:
        reader, writer = self._reader, self._writer
        if isinstance(reader, DirectFile) and isinstance(writer, DirectFile):
            return await reader.copy_block(writer, offset, length)
        data = await reader.read_at(length, offset)
        return await writer.write_at(data, offset)


def _data_from(fd: int, offset: int) -> tuple[int, int]:
    """Where the next data from `offset` on begins and ends; twice the file's end if there is none."""
    try:
        while True:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
            if start < stop:  # else it was punched meanwhile
                return start, stop
    except OSError as error:
        if error.errno != errno.ENXIO:  # a file system that does not say
            return offset, _NOWHERE
    end = os.lseek(fd, 0, os.SEEK_END)
    return end, end
