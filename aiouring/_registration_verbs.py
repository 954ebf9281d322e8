"""Owns the verbs that register things with the kernel: buffers, buffer rings and files."""

from collections.abc import Sequence

from aiouring._buffer_ring import BufferRing, OnEmpty
from aiouring._memory_region import MemoryRegion
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import MAX_FILES, RegisteredFiles
from aiouring._ring import check_size
from aiouring._verbs import Bytes, File, Verbs


class RegistrationVerbs(Verbs):
    """The part of `AsyncRing` that hands the kernel things to keep."""

    def register_buffers(self, *, count: int, size: int) -> RegisteredBuffers:
        """Register `count` page-aligned buffers of `size` bytes for `read_fixed` and `write_fixed`.

        Raises:
            ValueError: over 16384 buffers, or over 1 GiB in one.
            OSError: ENOMEM beyond RLIMIT_MEMLOCK; the text says how to raise it.
            ResourceBusyError: this ring has a table already.

        Since Linux 5.1.  See io_uring_register_buffers(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_buffers(driver.ring, count=count, size=size)

    def register_buffer_ring(
        self, *, count: int, size: int, on_empty: OnEmpty = "wait", group_id: int | None = None
    ) -> BufferRing:
        """Register a pool of buffers for `recv` and `read_provided`.

        Args:
            count: how many, a power of two from 1 to 32768.
            size: bytes in each, up to 1 GiB: the most one receive returns.
            on_empty: what a receive does when all are lent: wait in line, or raise `BuffersExhaustedError`.
            group_id: the group's number for the kernel, 0 to 65535; None takes the first that is free.

        Raises:
            ValueError: a number that is out of its range.
            ResourceBusyError: this `group_id` is taken.
            OSError: ENOMEM beyond RLIMIT_MEMLOCK; the text says how to raise it.
            UnsupportedKernelError: before Linux 5.19.

        Since Linux 5.19.  See io_uring_setup_buf_ring(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_buffer_ring(
            driver.ring, count=count, size=size, on_empty=on_empty, group_id=group_id
        )

    def register_region(self, size: int | None = None, *, memory: Bytes = None) -> MemoryRegion:
        """Share memory with the kernel for the life of the ring: `size` bytes that it allocates, or the caller's.

        Either way whole pages.  Wait arguments, which only `Ring.wait()` uses, are on `Ring.register_region()`.

        Raises:
            ResourceBusyError: this ring has a region already.
            UnsupportedKernelError: the kernel has no regions.

        Since Linux 6.13.  See io_uring_register_region(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_region(driver.ring, size=size, memory=memory)

    def register_files(self, files: Sequence[File | None]) -> RegisteredFiles:
        """Register a table of `files`, descriptors or objects with fileno(), None for an empty slot.

        The kernel holds the files itself: the caller may close them at once.

        Raises:
            ValueError: no files, or over 1048576.
            OSError: EBADF for one that is closed or is an io_uring; EMFILE beyond RLIMIT_NOFILE.
            ResourceBusyError: this ring has a table already.

        Since Linux 5.5.  See io_uring_register_files(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_files(driver.ring, files)

    def register_files_sparse(self, count: int) -> RegisteredFiles:
        """Register a table of `count` empty slots, for `openat_direct` and the like to fill.

        Raises what `register_files()` does.  Since Linux 5.5.  See io_uring_register_files_sparse(3).
        """
        check_size("count", count, MAX_FILES)
        return self.register_files([None] * count)
