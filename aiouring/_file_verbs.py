"""Owns the verbs for files: reading, writing and flushing, with and without registered buffers."""

from aiouring._fixed_buffer import FixedBuffer
from aiouring._request import Read, Request, Write
from aiouring._uring import lib
from aiouring._verbs import Bytes, File, Verbs, file_offset, fill, memory_of, resolve

# Looked up once: these are on every read's way.
_prepare_memory = lib.au_prepare_memory
_prepare_fixed = lib.au_prepare_fixed
_READ = lib.AU_OP_READ
_WRITE = lib.AU_OP_WRITE
_READ_FIXED = lib.AU_OP_READ_FIXED
_WRITE_FIXED = lib.AU_OP_WRITE_FIXED


class FileVerbs(Verbs):
    """The part of `AsyncRing` that reads and writes files."""

    async def read(self, fd: File, buffer: Bytes, offset: int | None = None) -> int:
        """Read into `buffer`; returns the number of bytes, 0 at the end of the file.

        Args:
            fd: a descriptor, or an object with fileno().
            buffer: any writable C-contiguous buffer, or a lent one.  Held until the kernel is done.
            offset: where in the file, in bytes; None means, and moves, the file's own position.

        Since Linux 5.6.  See io_uring_prep_read(3).
        """
        number, file, how = resolve(fd)
        memory, length, lease = memory_of(buffer, writable=True)
        driver = self._driver or self._bound()
        if offset is None:
            if driver.leftovers.kept and (data := driver.leftovers.take(number, length)):
                return fill(memory, data)
            request: Request = Read(number, file, memory, lease)
        else:
            request = Request(number, file, memory, lease)
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

    async def write(self, fd: File, data: Bytes, offset: int | None = None) -> int:
        """Write `data`; returns the number of bytes written, which may be fewer.

        `offset` is where in the file; None means, and moves, the file's own position.

        Since Linux 5.6.  See io_uring_prep_write(3).
        """
        number, file, how = resolve(fd)
        memory, length, lease = memory_of(data, writable=False)
        request = Write(number, file, memory, lease)
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
        self, fd: File, buffer: FixedBuffer, offset: int | None = None, *, start: int = 0, length: int | None = None
    ) -> int:
        """Read into a registered buffer, at `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes, 0 at the end of the file.  Several reads into parts of one buffer may be in
        flight; what they leave where the parts overlap is undefined.  Since Linux 5.1.  See
        io_uring_prep_read_fixed(3).
        """
        return await self._fixed(Request, _READ_FIXED, fd, buffer, offset, start, length)

    async def write_fixed(
        self, fd: File, buffer: FixedBuffer, offset: int | None = None, *, start: int = 0, length: int | None = None
    ) -> int:
        """Write from a registered buffer, from `start`, at most `length` bytes (None: to its end).

        Returns the number of bytes written.  Since Linux 5.1.  See io_uring_prep_write_fixed(3).
        """
        return await self._fixed(Write, _WRITE_FIXED, fd, buffer, offset, start, length)

    async def _fixed(
        self,
        kind: type[Request],
        opcode: int,
        fd: File,
        buffer: FixedBuffer,
        offset: int | None,
        start: int,
        length: int | None,
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
                if data:
                    return fill(memory + start, data)
            kind, hold = Read, memory + start if 0 <= start <= len(buffer) else memory
        else:
            hold = memory
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

        Since Linux 5.1.  See io_uring_prep_fsync(3).
        """
        number, file, how = resolve(fd)
        flags = lib.AU_FSYNC_DATASYNC if data_only else 0
        await (self._driver or self._bound()).perform(
            Write(number, file), lib.au_prepare, lib.AU_OP_FSYNC, number, 0, 0, 0, flags, how
        )
