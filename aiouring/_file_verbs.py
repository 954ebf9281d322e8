"""Owns the verbs for files: reading, writing and flushing, with and without registered buffers.

When reads block the loop, and why `background` is not the default.  Measured on Linux 6.18, ext4, two cores; the time
that a turn of the loop takes with all reads of the turn in it, at most, and what one read takes in the middle:

    reads at random places           within the submission     in the background
                                     turn        read          turn        read
    4 KiB, cached, one at a time     0.05 ms     10 us         0.05 ms     82 us
    4 KiB, not cached, one           0.1  ms     60 us         0.1  ms     121 us
    4 KiB, not cached, 32            0.2  ms     0.6 ms        0.3  ms     0.7 ms
    64 KiB, not cached, 32           1.3  ms     1.7 ms        0.2  ms     1.8 ms
    1 MiB, not cached, 32            16   ms     11 ms         0.3  ms     18 ms
    1 MiB, cached, 32                22   ms     3.5 ms        4    ms     2.0 ms

So the disk is not waited for in either way: what holds the loop up is the copying of what is read.  A worker costs 60
to 70 us a read, and is for large reads, many at a time, and for file systems that read within the submission (FUSE:
KERNEL.md E10).  Writes to files on ext4 and flushes always go to a worker.
"""

from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer, end_of_stream, private_copy
from aiouring._fixed_buffer import FixedBuffer
from aiouring._late_requests import perform_late
from aiouring._private_receives import PrivateRead, PrivateReadAt, read_privately
from aiouring._request import ProvidedRead, Read, Request, Write
from aiouring._ring import check_size
from aiouring._uring import lib
from aiouring._verbs import (
    Bytes,
    File,
    Verbs,
    file_offset,
    fill,
    memory_of,
    perform_provided,
    resolve,
    special,
)

# Looked up once: these are on every read's way.
_prepare_memory = lib.au_prepare_memory
_prepare_fixed = lib.au_prepare_fixed
_prepare_select = lib.au_prepare_select
_READ = lib.AU_OP_READ
_WRITE = lib.AU_OP_WRITE
_READ_FIXED = lib.AU_OP_READ_FIXED
_WRITE_FIXED = lib.AU_OP_WRITE_FIXED


class FileVerbs(Verbs):
    """The part of `AsyncRing` that reads and writes files."""

    async def read(
        self, fd: File, buffer: Bytes, offset: int | None = None, *, flags: int = 0, background: bool = False
    ) -> int:
        """Read into `buffer`; returns the number of bytes, 0 at the end of the file.

        Args:
            fd: a descriptor, or an object with fileno().
            buffer: any writable C-contiguous buffer, or a lent one.  Held until the kernel is done.
            offset: where in the file, in bytes; None means, and moves, the file's own position.
            flags: `ReadWriteFlags`; with NOWAIT, `BlockingIOError` where it would have to wait for the disk.
            background: hand it to a worker of the kernel at once, whatever it would do.  A file system that reads
                within the submission (FUSE) blocks the loop else.  Keep the file open until this returns.

        Since Linux 5.6.  See io_uring_prep_read(3).
        """
        number, file, how = resolve(fd)
        memory, length, lease = memory_of(buffer, writable=True)
        driver = self._driver or self._bound()
        if offset is None:
            if self._receiving and number in self._receiving:
                await self._after_stream(fd, number)
            if driver.leftovers.kept and (data := driver.leftovers.take(number, length)) is not None:
                return fill(memory, data)
            request: Request = Read(number, file, memory, lease)
        else:
            request = Request(number, file, memory, lease)
        if flags or background:
            kind, how = special(type(request), how, flags, background=background)
            request = kind(number, file, memory, lease)
        return await driver.perform(
            request,
            _prepare_memory,
            _READ,
            number,
            memory,
            length,
            0,
            length,
            file_offset(offset),
            0,
            how,
        )

    async def read_provided(
        self,
        fd: File,
        group: BufferRing,
        offset: int | None = None,
        *,
        length: int | None = None,
        on_empty: OnEmpty | None = None,
    ) -> ProvidedBuffer:
        """Read into a buffer that the kernel picks from `group`; returns it lent, empty at the end of the file.

        From a pipe or socket the buffer is picked when data is there; from a file when the read is submitted, so
        that it is in use while the disk works.

        Args:
            fd: a descriptor, or an object with fileno().
            group: from `register_buffer_ring()` of this ring.
            offset: where in the file, in bytes; None means, and moves, the file's own position.
            length: how many bytes at most, 1 to `group.size`; None is `group.size`.
            on_empty: what to do while all buffers are lent, as for `recv`.

        Raises:
            BuffersExhaustedError: no buffer, and "raise".
            RingClosedError: the group is, or was meanwhile, unregistered.

        Since Linux 5.19.  See io_uring_prep_read(3) and io_uring_setup_buf_ring(3).
        """
        number, file, how = resolve(fd)
        if not isinstance(group, BufferRing):
            raise TypeError(f"a BufferRing from register_buffer_ring() is needed, not {type(group).__name__}")
        most = group.size if length is None else length
        check_size("length", most, group.size)
        driver = self._driver or self._bound()
        if offset is None:
            if self._receiving and number in self._receiving:
                await self._after_stream(fd, number)
            if driver.leftovers.kept and (data := driver.leftovers.take(number, most)) is not None:
                return private_copy(data)
        request = ProvidedRead(number, file, group, at_position=offset is None)
        arguments = (_READ, number, group.raw, most, file_offset(offset), 0, how)

        async def fall_back(spare: ProvidedBuffer) -> ProvidedBuffer:
            """Read into a private buffer."""
            kind = PrivateRead if offset is None else PrivateReadAt
            private = kind(number, file, spare.memory(), spare)
            return await read_privately(driver, private, group, most, arguments[4], how)

        result = await perform_provided(driver, request, on_empty, fall_back, _prepare_select, *arguments)
        if isinstance(result, ProvidedBuffer):
            return result
        if result:
            return group.take(request.flags, result)
        request.let_go()  # the end of a file takes a buffer as well
        return end_of_stream()

    async def write(
        self, fd: File, data: Bytes, offset: int | None = None, *, flags: int = 0, background: bool = False
    ) -> int:
        """Write `data`; returns the number of bytes written, which may be fewer.

        `offset` is where in the file; None means, and moves, the file's own position.  `flags` are `ReadWriteFlags`:
        DSYNC and SYNC flush what is written, APPEND writes at the end.  `background` is as for `read()`.  After a
        cancellation `bytes_written(error)` says how much was written.

        Since Linux 5.6.  See io_uring_prep_write(3).
        """
        number, file, how = resolve(fd)
        memory, length, lease = memory_of(data, writable=False)
        request: Request = Write(number, file, memory, lease)
        if flags or background:
            kind, how = special(Write, how, flags, background=background)
            request = kind(number, file, memory, lease)
        return await (self._driver or self._bound()).perform(
            request,
            _prepare_memory,
            _WRITE,
            number,
            memory,
            length,
            0,
            length,
            file_offset(offset),
            0,
            how,
        )

    async def read_fixed(
        self,
        fd: File,
        buffer: FixedBuffer,
        offset: int | None = None,
        *,
        start: int = 0,
        length: int | None = None,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Read into a registered buffer, at `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes, 0 at the end of the file.  Several reads into parts of one buffer may be in
        flight; what they leave where the parts overlap is undefined.  Since Linux 5.1.  See
        io_uring_prep_read_fixed(3).  `flags` and `background` are as for `read()`.
        """
        return await self._fixed(Request, _READ_FIXED, fd, buffer, offset, start, length, flags, background)

    async def write_fixed(
        self,
        fd: File,
        buffer: FixedBuffer,
        offset: int | None = None,
        *,
        start: int = 0,
        length: int | None = None,
        flags: int = 0,
        background: bool = False,
    ) -> int:
        """Write from a registered buffer, from `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes written.  Since Linux 5.1.  See io_uring_prep_write_fixed(3).
        `flags` and `background` are as for `write()`.
        """
        return await self._fixed(Write, _WRITE_FIXED, fd, buffer, offset, start, length, flags, background)

    async def _fixed(
        self,
        kind: type[Request],
        opcode: int,
        fd: File,
        buffer: FixedBuffer,
        offset: int | None,
        start: int,
        length: int | None,
        flags: int,
        background: bool,  # noqa: FBT001 - one call less on every read's way
    ) -> int:
        number, file, how = resolve(fd)
        if not isinstance(buffer, FixedBuffer):
            raise TypeError(f"a FixedBuffer from RegisteredBuffers.acquire() is needed, not {type(buffer).__name__}")
        memory = buffer.memory()  # ValueError after release
        if length is None:
            length = len(buffer) - start
        driver = self._driver or self._bound()
        if kind is Request and offset is None:
            if driver.leftovers.kept and 0 <= start <= start + length <= len(buffer):
                data = driver.leftovers.take(number, length)
                if data is not None:
                    return fill(memory + start, data)
            kind, hold = Read, memory + start if 0 <= start <= len(buffer) else memory
        else:
            hold = memory
        if flags or background:
            kind, how = special(kind, how, flags, background=background)
        return await driver.perform(
            kind(number, file, hold, buffer),
            _prepare_fixed,
            opcode,
            number,
            buffer.table,
            buffer.number,
            start,
            length,
            file_offset(offset),
            how,
        )

    async def fsync(self, fd: File, *, data_only: bool = False) -> None:
        """Flush a file to its device; `data_only` leaves out metadata that reading does not need.

        Keep the file open until this returns.  Since Linux 5.1.  See io_uring_prep_fsync(3).
        """
        flags = lib.AU_FSYNC_DATASYNC if data_only else 0
        await perform_late(self, fd, lib.AU_OP_FSYNC, 0, 0, 0, flags)
