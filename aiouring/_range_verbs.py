"""Owns the verbs on ranges of a file and of memory: reserving, cutting, flushing, and announcing how they are used.

The kernel runs all of them in a worker (but the advice that only sets a flag, measured on Linux 6.18): see
`_late_requests` for what follows from that.
"""

import mmap

from aiouring._features import require
from aiouring._late_requests import perform_late
from aiouring._lease import Lease
from aiouring._request import Request
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, File, Verbs, memory_of

_LARGEST = 2**63 - 1

_KEEPING = frozenset(
    {
        mmap.MADV_NORMAL, mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL, mmap.MADV_WILLNEED, mmap.MADV_MERGEABLE,
        mmap.MADV_UNMERGEABLE, mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE, mmap.MADV_DONTDUMP, mmap.MADV_DODUMP,
        lib.AU_MADV_COLD, lib.AU_MADV_PAGEOUT, lib.AU_MADV_POPULATE_READ, lib.AU_MADV_POPULATE_WRITE,
        lib.AU_MADV_COLLAPSE,
    }
)  # fmt: skip
_DISCARDING = frozenset({mmap.MADV_DONTNEED, mmap.MADV_FREE, mmap.MADV_REMOVE})


class RangeVerbs(Verbs):
    """The part of `AsyncRing` that reserves, cuts, flushes and announces ranges of a file.

    Keep the file open until these return: the kernel looks the descriptor up when a worker comes to it.
    """

    async def fdatasync(self, fd: File) -> None:
        """Flush a file's data to its device, and of its metadata what reading needs; `fsync(data_only=True)`.

        Since Linux 5.1.  See io_uring_prep_fsync(3) and fdatasync(2).
        """
        await perform_late(self, fd, lib.AU_OP_FSYNC, 0, 0, 0, lib.AU_FSYNC_DATASYNC)

    async def ftruncate(self, fd: File, length: int) -> None:
        """Make a file `length` bytes long: cut it off, or extend it with zeros.

        Raises:
            OSError: EINVAL where the file is not open for writing or has no length, EFBIG beyond a limit.

        Since Linux 6.9.  See io_uring_prep_ftruncate(3).
        """
        require("truncating by request")
        _check("length", length)
        await perform_late(self, fd, lib.AU_OP_FTRUNCATE, length, 0, 0, 0)

    async def fallocate(self, fd: File, offset: int, length: int, mode: int = 0) -> None:
        """Reserve room for a range of a file, so that writing to it cannot fail for want of room; or do as `mode` says.

        Args:
            fd: a file open for writing.
            offset: where the range begins, in bytes.
            length: of the range, in bytes, at least 1.
            mode: `FallocateFlags`: KEEP_SIZE, PUNCH_HOLE (with KEEP_SIZE), ZERO_RANGE, COLLAPSE_RANGE ...

        Raises:
            OSError: ENOSPC, EFBIG, EOPNOTSUPP where the file system has no such mode.

        Since Linux 5.6.  See io_uring_prep_fallocate(3) and fallocate(2).
        """
        _check("offset", offset)
        _check("length", length, least=1)
        await perform_late(self, fd, lib.AU_OP_FALLOCATE, offset, length, mode, 0)

    async def fadvise(self, fd: File, offset: int, length: int, advice: int) -> None:
        """Announce how a range of a file will be used, as `os.posix_fadvise()`; `length` 0 is to its end.

        `advice` is `os.POSIX_FADV_WILLNEED` and the like; 4 GiB and more at once need Linux 6.10.

        Since Linux 5.6.  See io_uring_prep_fadvise(3).
        """
        _check("offset", offset)
        _check("length", length)
        short = length < 2**32  # older kernels have no room for more
        await perform_late(self, fd, lib.AU_OP_FADVISE, offset, 0 if short else length, length if short else 0, advice)

    async def sync_file_range(self, fd: File, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Start or await the writing of a range's dirty pages; no metadata, so no safety after a crash.

        Args:
            fd: a file.
            offset: where the range begins, in bytes.
            length: of the range, in bytes, less than 4 GiB; 0 is to the file's end.
            flags: `SyncFileRangeFlags`: WRITE starts it, WAIT_BEFORE and WAIT_AFTER wait for it.

        Since Linux 5.2.  See io_uring_prep_sync_file_range(3) and sync_file_range(2).
        """
        _check("offset", offset)
        _check("length", length, most=2**32 - 1)
        await perform_late(self, fd, lib.AU_OP_SYNC_FILE_RANGE, offset, 0, length, flags)

    async def madvise(self, memory: Bytes, advice: int, *, start: int = 0, length: int | None = None) -> None:
        """Announce how memory will be used, `mmap.MADV_WILLNEED` and the like; `start` and `length` are in bytes.

        The kernel works on whole pages.  The range begins at a page's beginning (`mmap.mmap` has it there), and its
        last page is meant as a whole.  DONTNEED, FREE and REMOVE, which discard what is there, want a writable buffer
        and a range of whole pages, so that nothing beyond it is lost.

        Raises:
            TypeError: a buffer of the ring: the kernel has its pages pinned, and would go on with the old ones.
            ValueError: a range that is not on pages or not inside; advice that is about processes (DONTFORK ...) or
                breaks memory (HWPOISON).

        Do not discard memory that you have registered, for the same reason.  Since Linux 5.6.  See
        io_uring_prep_madvise(3) and madvise(2).
        """
        if isinstance(memory, Lease):
            raise TypeError(f"{memory!r} is pinned by the kernel: advice is for memory of your own")
        if advice not in _KEEPING | _DISCARDING:
            raise ValueError(f"advice={advice} is none that this takes: MADV_WILLNEED, COLD, DONTNEED and the like")
        discards = advice in _DISCARDING
        held, size, _ = memory_of(memory, writable=discards)
        wanted = size - start if length is None else length
        address = int(ffi.cast("uintptr_t", held)) + start
        if address % mmap.PAGESIZE or (discards and wanted % mmap.PAGESIZE):
            raise ValueError(
                f"start={start} is {address % mmap.PAGESIZE} bytes into a page and length={wanted} leaves "
                f"{wanted % mmap.PAGESIZE} on the last: pages have {mmap.PAGESIZE} bytes"
            )
        request = Request(hold=held)
        try:
            await (self._driver or self._bound()).perform(
                request, lib.au_prepare_memory, lib.AU_OP_MADVISE, -1, held, size, start, wanted, 0, advice, 0
            )
        finally:
            request.let_go()


def _check(name: str, value: int, least: int = 0, most: int = _LARGEST) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}={value} is outside {least} to {most}")
