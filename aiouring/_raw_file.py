"""Owns `RawFile`: an open file's descriptor, its reads and writes at an offset, and its end.

Ownership.

1. The descriptor is this object's alone, from when it is made until `aclose()`, which stops what is in flight on it
   first: a number that is another file's by then is met by no request.
2. What is read goes into a `bytes` object that nobody has seen yet: it is made here, the kernel fills it, and it is
   handed out when the kernel is done.  (CPython fills new bytes objects in just this way; a bytearray would have to be
   copied.)  The request holds it until its final completion.  When the await was cancelled, nobody ever sees it.
3. What is written is exported by its request, until the request's final completion.

A request is for at most PIECE bytes: the kernel copies from and to the page cache while it is being submitted, in
the loop's thread, and that much takes it 0.05 ms.  Measured with 256 MiB in the page cache, read from front to back,
divided by the built-in open() with the same size (read 64 KiB, 1 MiB at a time); and the longest pause of the loop
while 32 files that were not cached were read:

    PIECE                  256 KiB     512 KiB     1 MiB       1 MiB, by workers of the kernel (IOSQE_ASYNC)
    64 KiB at a time       0.60        0.65        0.68        0.30
    1 MiB at a time        0.69        0.76        0.73        0.29
    longest pause          7..14 ms    6..12 ms    11..16 ms   -
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import warnings
from asyncio import _get_running_loop
from collections.abc import Coroutine
from typing import Any, Protocol

from aiouring._async_ring import AsyncRing
from aiouring._cached_reads import CachedReads
from aiouring._errors import RingClosedError, kernel_error, note_written_before
from aiouring._features import has
from aiouring._file_system import waits_within_submission
from aiouring._objects import new_bytes
from aiouring._request import Request, Write
from aiouring._stat import StatxResult
from aiouring._thread_descriptor import InThreads
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes

#: Bytes that one request moves at most.
PIECE = 512 * 1024

_prepare_memory = lib.au_prepare_memory
_READ = lib.AU_OP_READ
_WRITE = lib.AU_OP_WRITE


class Unwritten(Protocol):
    """What is still to be written of a file."""

    async def finish(self) -> None:
        """Write it."""

    def write_at_once(self) -> None:
        """Write it in this thread."""


class RawFile(CachedReads, InThreads):
    """An open file without a position; every read and write says where.

    Args:
        ring: whose requests read and write it.
        fd: an open descriptor, which this object closes.
        name: for errors: the path, or the number that the caller gave.
        flags: what it was opened with, `os.O_RDONLY` and the like.
        owned: whether `aclose()` closes the descriptor.
        background: whether its requests go to workers of the kernel; None where its file system would hold up the loop.
    """

    #: Writes that begin and end at multiples of this are the cheapest; see `DirectFile`.
    alignment = 1
    #: Bytes that a read brings at most, and writes that may be in flight at once.
    largest = PIECE
    depth = 4

    def __init__(
        self, ring: AsyncRing, fd: int, name: Any, flags: int, *, owned: bool = True, background: bool | None = None
    ) -> None:
        self.closed = True
        self.ring = ring
        self.name = name
        self.fd = fd
        self.owned = owned
        self.append = bool(flags & os.O_APPEND)
        self._driver = ring._bound()
        self.loop = self._driver.loop
        self._background = background
        self.how = lib.AU_SQE_ASYNC if background else 0  # how the C core is to treat each request
        self._ending: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.kind = 0  # as `stat.S_IFMT()` says it; `look()` finds out
        self.cached = False  # `look()` finds out
        self.size = 0  # of a regular file, as last seen: a hint
        self.start = 0
        try:
            self.start = os.lseek(fd, 0, os.SEEK_CUR)
            self.seekable = True
        except OSError:
            self.seekable = False
        self.closed = False

    @property
    def regular(self) -> bool:
        """Whether it is a regular file: one with a length."""
        return self.kind == stat.S_IFREG

    def __repr__(self) -> str:
        return f"<RawFile {self.name!r} {'closed' if self.closed else f'fd={self.fd}'}>"

    def check_here(self) -> None:
        """Raise `WrongContextError` in another loop, thread or process than the ring's: files are one loop's alone."""
        if _get_running_loop() is not self.loop and not self.closed:
            self._driver.refuse()

    def fileno(self) -> int:
        """The descriptor; `ValueError` when the file is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self.fd

    # ---- reading -------------------------------------------------------------------------------

    async def read_some(self, size: int, offset: int) -> bytes:
        """At most `size` bytes, and `largest`, from `offset` on, as one request brings them; none at the file's end.

        A file that cannot seek is read where it is.
        """
        size = min(size, self.largest)
        if not self.seekable:
            memory = bytearray(size)
            try:
                return bytes(memoryview(memory)[: await self.ring.read(self, memory)])
            except OSError as error:
                self.named(error)
                raise
        data = new_bytes(size)  # not seen by anybody until it is full, see the module's header
        count = await self._read(ffi.from_buffer(data), size, 0, size, offset)
        return data if count == size else data[:count]

    async def read_at(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on; fewer only at the end of the file."""
        data = new_bytes(size)
        count = await self.take_in_turn(data, size, 0, min(size, PIECE), offset) if self.cached else 0
        if count == size:
            return data
        memory, fd = ffi.from_buffer(data), self.fileno()
        if count <= 0:
            first = min(size, PIECE)
            try:  # what _read() does, without the call: this is what io_uring is best at
                count = await self._driver.perform(
                    Request(fd, self, memory), _prepare_memory, _READ, fd, memory, size, 0, first, offset, 0, self.how
                )
            except OSError as error:
                self.named(error)
                raise
        if 0 < count < size:
            count += await self.read_into(memory, size, offset + count, count)
        return data if count == size else data[:count]

    async def read_into(self, memory: Any, size: int, offset: int, start: int = 0) -> int:
        """Fill `memory`, a C array of `size` bytes, from `start` on; returns how many, fewer only at the file's end."""
        done = start
        while done < size:
            count = await self._read(memory, size, done, min(size - done, PIECE), offset + done - start)
            if not count:
                break
            done += count
        return done - start

    async def _read(self, memory: Any, capacity: int, start: int, length: int, offset: int) -> int:
        if self.cached and (count := await self.take_in_turn(memory, capacity, start, length, offset)) > 0:
            return count
        fd = self.fileno()
        request = Request(fd, self, memory)
        try:
            return await self._driver.perform(
                request, _prepare_memory, _READ, fd, memory, capacity, start, length, offset, 0, self.how
            )
        except OSError as error:
            self.named(error)
            raise

    # ---- writing -------------------------------------------------------------------------------

    async def write_at(self, data: Bytes, offset: int) -> int:
        """Write all of `data`; returns how many bytes that is.  In append mode, and without seeking, at the position.

        Raises:
            OSError: `bytes_written(error)` says how many bytes were written; of a cancelled write, too.
        """
        memory = ffi.from_buffer(data)
        size = len(memory)
        done = 0
        try:
            while done < size:
                done += await self._write(memory, size, done, min(size - done, PIECE), offset + done)
        except BaseException as error:
            note_written_before(error, done)
            raise
        if size and self.regular and not self.append and offset + size > self.size:
            self.size = offset + size
        return size

    async def _write(self, memory: Any, capacity: int, start: int, length: int, offset: int) -> int:
        request = Write(fd := self.fileno(), self, memory)
        if self.append or not self.seekable:
            offset = -1
        try:
            count = await self._driver.perform(
                request, _prepare_memory, _WRITE, fd, memory, capacity, start, length, offset, 0, self.how
            )
        except OSError as error:
            self.named(error)
            raise
        if not count:
            raise self.nothing_written()
        return count

    def nothing_written(self) -> OSError:
        """The error for a write that took no byte."""
        return self.named(kernel_error(errno.EIO, "nothing was written, and the kernel gave no reason"))

    # ---- the whole file ------------------------------------------------------------------------

    def named(self, error: OSError) -> OSError:
        """The same error, with the file's name."""
        if error.filename is None:
            error.filename = self.name
        return error

    async def sync(self, *, data_only: bool) -> None:
        """Flush the file to its device."""
        try:
            await self.ring.fsync(self, data_only=data_only)
        except OSError as error:
            self.named(error)
            raise

    async def truncate(self, size: int) -> None:
        """Make the file `size` bytes long; before Linux 6.9 in a thread."""
        if size < 0:
            raise self.invalid(f"the length cannot be {size}")
        try:
            if has("truncating by request"):
                await self.ring.ftruncate(self, size)
            else:
                await self.in_thread(os.ftruncate, size)
        except OSError as error:
            self.named(error)
            raise
        self.size = size

    async def look(self) -> StatxResult:
        """Ask the file system what the file is, and how long."""
        try:
            found = await self.ring.statx(self)
        except OSError as error:
            self.named(error)
            raise
        fd = self.fileno()  # raises where it was closed meanwhile: the number may be another file's
        self.kind = stat.S_IFMT(found.st_mode)
        if self._background is None and waits_within_submission(found.st_dev):
            self.how = lib.AU_SQE_ASYNC
        self.size = found.st_size if self.regular else 0
        # Around the page cache, the same system call would wait for the disk.
        self.cached = self.regular and not self.how and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        return found

    async def seek(self, offset: int, whence: int) -> int:
        """What lseek(2) says, in a thread; not for os.SEEK_CUR, since the descriptor's position is not used."""
        try:
            return await self.in_thread(os.lseek, offset, whence)
        except OSError as error:
            self.named(error)
            raise

    def appended(self) -> int:
        """Where the file ended when something was appended last, in bytes: there the kernel's position is."""
        return os.lseek(self.fileno(), 0, os.SEEK_CUR)

    def invalid(self, text: str) -> OSError:
        """The kernel's error for a bad number, where we do not ask it."""
        return self.named(kernel_error(errno.EINVAL, text))

    # ---- what goes on by itself ----------------------------------------------------------------

    def go_on(self, work: Coroutine[Any, Any, bytes | int | None]) -> "asyncio.Task[Any]":
        """Run `work` on this file beside its caller; what it raises is whoever awaits it to see, or nobody."""
        task = self._driver.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._gone)
        return task

    def _gone(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # has been looked at

    # ---- the end -------------------------------------------------------------------------------

    async def aclose(self, position: int | None = None) -> None:
        """Stop what is in flight, then close the descriptor; idempotent, and bounded, see `_close()`.

        One that is not owned is left at `position`, in bytes.
        """
        if self._ending is None:
            if self.closed:
                return
            if position is not None and self.seekable and not self.owned:
                with contextlib.suppress(OSError):  # its owner has closed it: as the built-in, we have nothing to add
                    os.lseek(self.fd, position, os.SEEK_SET)
            self._ending = self._driver.loop.create_task(self._close())
        ending, cancelled = self._ending, None
        while not ending.done():
            try:
                await asyncio.wait((ending,))
            except asyncio.CancelledError as error:  # closing always ends, so wait for it
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._ending = None  # whoever closes once more has been told, or need not be
        ending.result()

    async def _close(self) -> None:
        """Close.  What the kernel does not stop is waited for `cancel_timeout` seconds, and so is the close itself."""
        self.shut()
        fd, ring = self.fd, self.ring
        try:
            if self.owned:
                async with asyncio.timeout(2 * self._driver.cancel_timeout):
                    await ring.close(fd)
            else:
                await ring.cancel(fd)
        except RingClosedError:
            self._close_at_once()  # nothing is in flight any more
        except TimeoutError:
            raise kernel_error(
                errno.ETIMEDOUT,
                f"closing {self.name!r}: the kernel has not let go of it, and goes on alone",
            ) from None
        except OSError as error:
            self.named(error)
            raise
        finally:
            if self._tasks:
                _, stuck = await asyncio.wait(self._tasks, timeout=self._driver.cancel_timeout)
                for task in stuck:
                    task.cancel()

    def _close_at_once(self) -> None:
        self.shut()
        if self.owned:
            with contextlib.suppress(OSError):
                os.close(self.fd)

    def write_at_once(self, data: Bytes, offset: int) -> None:
        """Write all of `data` in this thread, without the ring: for what nobody is left to wait for."""
        view = memoryview(data).cast("B")
        while view:
            count = os.write(self.fd, view) if self.append else os.pwrite(self.fd, view, offset)
            view, offset = view[count:], offset + count

    def abandon(self, said: str, work: "Unwritten | None") -> None:
        """Nobody has the file any more, who should have closed it: warn, and have `work` and the closing done.

        That of a regular file is done here and now, as the built-in does it, for the loop may be about to end; where a
        task has something in flight, and of a pipe, by the loop.  Errors are the garbage collector's to tell, or the
        loop's.
        """
        if self.closed:
            return
        warnings.warn(f"{said} was never closed: use 'async with', or await close()", ResourceWarning, 2)
        driver = self._driver
        ended = driver.loop.is_closed() or not driver.loop.is_running() or driver.ring.closed
        if not ended and (self._tasks or not self.regular):
            driver.ask_from_elsewhere(lambda: self.go_on(self._finish(work)))
            return
        try:
            if work is not None and self.regular and lib.au_ring_check(driver._raw) != lib.AU_FORKED:
                work.write_at_once()  # not in a fork: its parent has the same bytes
        finally:
            self._close_at_once()

    async def _finish(self, work: "Unwritten | None") -> None:
        try:
            if work is not None:
                await work.finish()
        except Exception as error:
            self._driver.loop.call_exception_handler(
                {"message": f"{self.name!r} was not closed, and what it had could not be written", "exception": error}
            )
        finally:
            await self.aclose()
