"""Owns `BinaryFile`: an open file with a position, as the built-in `open(path, "rb")` returns one, awaited.

How this fits together

1. The position is a number here, and every request says where it reads or writes.  It moves when an operation has
   succeeded, so one that was cancelled, or failed, has moved nothing.  (A pipe has no position: what a cancelled read
   took from it is what the next one gets.  See `_read_ahead`.)
2. Operations at the position are done one after the other, in the order in which they were begun, whichever tasks
   they come from.  `read_at()` and `write_at()` use no position and wait for nobody.
3. What is read ahead is dropped when anything is written; what is not written yet is written before anything is read.
"""

import io
import os
from threading import get_ident
from typing import Any

from aiouring._binary_reading import BinaryReading
from aiouring._raw_file import RawFile
from aiouring._read_ahead import ReadAhead
from aiouring._verbs import Bytes
from aiouring._write_behind import WriteBehind


class BinaryFile(BinaryReading):
    """A file of bytes, opened by `aiouring.open()`; use it with `async with`, or `async for` its lines.

    The methods are those of the built-in file objects, awaited where aiofiles awaits them.  At the position, one
    operation is done after the other, in the order of the calls; cancelling one loses nothing.

    Reads ahead and writes behind: several blocks of a file that is read from front to back are in flight before they
    are asked for, and `write()` returns before the file has the bytes.  An error in writing is raised by the next
    operation, `flush()` and `close()` at the latest; `bytes_written(error)` says how many of the bytes written since
    the last `flush()` are in the file.  Those that are not are kept, and tried again.

    Its own position is not the descriptor's.  Since Linux 5.11.
    """

    def __init__(self, raw: RawFile, mode: str, buffering: int) -> None:
        self._raw = raw
        super().__init__(mode, raw.check_here)
        self._readable = "r" in mode or "+" in mode
        self._writable = "r" not in mode or "+" in mode
        self._buffered = buffering != 0
        size = {"block": buffering} if buffering > 1 else {}
        self._ahead = ReadAhead(raw, **size) if buffering else ReadAhead(raw, depth=0)
        self._behind = WriteBehind(raw, **size)
        self._position = raw.start
        self._appended = False  # the position is where the kernel's is
        self._closed = False

    @property
    def name(self) -> Any:
        """The path it was opened with, or the descriptor."""
        return self._raw.name

    @property
    def closed(self) -> bool:
        """Whether it is closed, or being closed."""
        return self._closed

    def fileno(self) -> int:
        """The descriptor.  Raises `ValueError` when the file is closed."""
        self._check()
        return self._raw.fileno()

    def readable(self) -> bool:
        """Whether the mode lets it be read."""
        self._check()
        return self._readable

    async def writable(self) -> bool:
        """Whether the mode lets it be written."""
        self._check()
        return self._writable

    async def seekable(self) -> bool:
        """Whether it has a position that can be changed: not a pipe or a terminal."""
        self._check()
        return self._raw.seekable

    def _check(self, what: str = "") -> None:
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        if (what == "read" and not self._readable) or (what == "write" and not self._writable):
            raise io.UnsupportedOperation("not readable" if what == "read" else "not writable")

    # ---- reading -------------------------------------------------------------------------------

    # read_at() is the row's, see _native/reading.c.

    async def _read_at(self, size: int, offset: int) -> bytes:
        """What is not to be had at once, or not without a look at what is unwritten."""
        raw = self._raw
        self._check("read")
        self._check_place(size, offset)
        if self._behind.dirty:
            await self._behind.flush()
        if self._writable and (data := raw.read_at_once(size, offset)):
            return data
        return await raw.read_at(size, offset)

    def _check_place(self, size: int, offset: int) -> None:
        if size < 0 or offset < 0:
            raise ValueError(f"size={size} and offset={offset}: neither can be negative")
        if not self._raw.seekable:
            raise io.UnsupportedOperation("this file has no offsets: it cannot seek")

    async def _about_to_read(self) -> None:
        self._check("read")
        if self._writable:
            await self._settle()

    async def _settle(self) -> None:
        """Have everything written, and the position known."""
        if self._behind.dirty:
            await self._behind.flush()
        if self._appended:
            self._position = self._raw.appended()
            self._appended = False

    # ---- writing -------------------------------------------------------------------------------

    async def write(self, data: Bytes) -> int:
        """Write all of `data`; returns its length in bytes.

        Returns before the file has them, unless it is unbuffered: see the class.  Waits while too much is unwritten;
        cancelled then, it has taken nothing.

        Raises:
            OSError: something could not be written, of this or of what was written before; see the class.
            io.UnsupportedOperation: the file is not open for writing.
        """
        behind, elsewhere = self._behind, get_ident() != self._thread or not self._raw.loop.is_running()
        if self._order.users or not behind.ready or not self._buffered or self._readable or self._closed or elsewhere:
            return await self._write_slowly(data)
        count = behind.accept(data, self._position)
        self._position += count
        self._appended |= self._raw.append and count > 0
        return count

    async def _write_slowly(self, data: Bytes) -> int:
        async with self._order:
            self._check("write")
            raw, behind = self._raw, self._behind
            if self._readable and raw.seekable:
                self._ahead.drop()
            if self._buffered:
                await behind.room()
                self._check("write")  # closed meanwhile: nobody would write it any more
                count = behind.accept(data, self._position)
            else:
                count = await raw.write_at(data, self._position)
            self._position += count
            self._appended |= raw.append and count > 0
            return count

    async def write_at(self, data: Bytes, offset: int) -> int:
        """Write all of `data` at `offset`; returns its length in bytes, when the file has them.

        The position is neither used nor moved, and several tasks may do this at once.

        Raises:
            OSError: `bytes_written(error)` says how many of the bytes are in the file; of a cancelled write, too.
            ValueError: a negative offset.
            io.UnsupportedOperation: the file cannot seek, is not open for writing, or appends.
        """
        self._check("write")
        self._check_place(0, offset)
        if self._raw.append:
            raise io.UnsupportedOperation("a file opened for appending is written at its end only")
        if self._behind.dirty:
            await self._behind.flush()
        self._ahead.drop()
        try:
            return await self._raw.write_at(data, offset)
        finally:
            self._ahead.drop()

    async def flush(self) -> None:
        """Wait until the file has everything that was written; readers of it see it then.  See also `sync()`."""
        self._check()
        self._raw.check_here()
        if self._behind.dirty:
            async with self._order:
                await self._behind.flush()

    async def sync(self, *, data_only: bool = False) -> None:
        """Flush, and wait until the device has it, too; `data_only` leaves out metadata that reading does not need.

        See fsync(2) and fdatasync(2).
        """
        async with self._order:
            self._check()
            await self._behind.flush()
            await self._raw.sync(data_only=data_only)

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position to `offset` bytes from the beginning, or from what `whence` says; returns it.

        Args:
            offset: in bytes.
            whence: os.SEEK_SET; os.SEEK_CUR, the position; os.SEEK_END, the end; SEEK_DATA and SEEK_HOLE.
        """
        async with self._order:
            self._check()
            if not self._raw.seekable:
                raise io.UnsupportedOperation("underlying stream is not seekable")
            await self._settle()
            if whence == os.SEEK_SET:
                goal = offset
            elif whence == os.SEEK_CUR:
                goal = self._position + offset
            elif whence == os.SEEK_END and self._raw.regular:
                goal = (await self._raw.look()).st_size + offset
            elif whence in (os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE):
                goal = await self._raw.seek(offset, whence)
            else:
                raise ValueError(f"whence value {whence} unsupported")
            if goal < 0:
                raise self._raw.invalid(f"the position cannot be {goal}")
            if goal != self._position >= self._ahead.end:
                self._ahead.drop()  # read to the end and begun anew: of /proc/stat, say, that gives what is there now
            self._position = goal
            return goal

    async def tell(self) -> int:
        """The position, in bytes from the beginning."""
        if not self._appended and not self._order.users and self._raw.seekable and not self._closed:
            return self._position
        return await self.seek(0, os.SEEK_CUR)

    async def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long, or end it at the position; returns its new length.  The position stays."""
        async with self._order:
            self._check("write")
            await self._settle()
            goal = self._position if size is None else size
            self._ahead.drop()
            await self._raw.truncate(goal)
            return goal

    async def close(self) -> None:
        """Write what is unwritten, then close; idempotent.

        Operations in flight end with `OSError` (ECANCELED).  A file that does not take its bytes keeps this waiting;
        cancelled, it closes without them, within four times the ring's `cancel_timeout`, whatever the kernel does.

        Raises:
            OSError: not everything could be written, see the class; or ETIMEDOUT.  The file is closed all the same.
        """
        self._raw.check_here()
        self._closed = True
        self._raw.cached = False  # nothing is read any more
        try:
            if self._behind.dirty and not self._raw.closed:
                await self._behind.finish()
        finally:
            try:
                await self._raw.aclose(self._position)
            finally:
                self._ahead.drop()

    def __del__(self) -> None:
        raw = getattr(self, "_raw", None)
        if raw is not None and not raw.closed:
            unwritten = self._behind.unwritten
            said = f"{self!r}{f', with {unwritten} bytes unwritten,' if unwritten else ''}"
            raw.abandon(said, self._behind if unwritten else None)
