"""Owns the verbs that register things with the kernel: buffers, buffer rings and files."""

from collections.abc import Iterable, Sequence

from aiouring._buffer_ring import BufferRing, OnEmpty
from aiouring._memory_region import MemoryRegion
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import MAX_FILES, RegisteredFiles
from aiouring._ring import check_size
from aiouring._verbs import Bytes, File, Verbs
from aiouring._watch import HELD_TOO_LONG


class RegistrationVerbs(Verbs):
    """The part of `AsyncRing` that hands the kernel things to keep."""

    def register_buffers(
        self,
        buffers: Iterable[Bytes] | None = None,
        *,
        count: int | None = None,
        size: int | None = None,
        huge_pages: bool = False,
    ) -> RegisteredBuffers:
        """Register memory for `read_fixed` and `write_fixed`: your own, or `count` buffers of `size` bytes.

        Args:
            buffers: writable C-contiguous buffers (bytearray, array, mmap, numpy array ...), of any sizes.  They
                cannot be resized or closed until the kernel has let go of them.
            count: instead, how many page-aligned buffers to make.
            size: bytes in each of those.
            huge_pages: make them of huge pages, which root reserves with vm.nr_hugepages.

        Raises:
            ValueError: over 16384 buffers, over 1 GiB in one, or nothing in one.
            BufferError, TypeError: memory that cannot be written to.
            OSError: ENOMEM beyond RLIMIT_MEMLOCK, or without huge pages; EFAULT for a shared mapping of a file.
                The text says which buffer, why, and what to do.
            ResourceBusyError: this ring has a table already.

        Since Linux 5.1.  See io_uring_register_buffers(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_buffers(driver.ring, buffers, count=count, size=size, huge_pages=huge_pages)

    def register_buffers_sparse(self, count: int) -> RegisteredBuffers:
        """Register a table of `count` empty slots, which `RegisteredBuffers.update()` fills.

        Raises:
            ValueError: over 16384 slots.
            ResourceBusyError: this ring has a table already.

        Since Linux 5.19.  See io_uring_register_buffers_sparse(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.register_buffers_sparse(driver.ring, count)

    def clone_buffers(
        self,
        source: RegisteredBuffers,
        *,
        index: int = 0,
        source_index: int = 0,
        count: int | None = None,
        replace: bool = False,
    ) -> RegisteredBuffers:
        """Register what another ring (or this one) has registered, without pinning it again.

        The clone is a table of its own over the same memory, which it keeps when the source is unregistered or its
        ring closed.  Each of the two lends a buffer to one at a time; neither knows what the other has lent.

        Args:
            source: the table to clone; its ring belongs to this thread.
            index: the slot that gets the first clone; slots before it stay as they are, or empty.
            source_index: the first slot to clone.
            count: how many slots; None is all from `source_index` on.
            replace: clone into the table that this ring has, replacing what is in those slots.

        Returns:
            The new table, or with `replace` the one that this ring had, grown where needed.

        Raises:
            ValueError: slots that the source does not have, or over 16384.
            ResourceBusyError: this ring has a table, and `replace` is false.
            RingClosedError: the source has been unregistered.
            OSError: EINVAL if the rings were made by different users or with different rights.

        Since Linux 6.12; `index`, `source_index`, `count` and `replace` since 6.13.  See
        io_uring_clone_buffers_offset(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        return driver.registry.clone_buffers(
            driver.ring, source, index=index, source_index=source_index, count=count, replace=replace
        )

    def register_buffer_ring(
        self,
        *,
        count: int,
        size: int,
        on_empty: OnEmpty = "wait",
        group_id: int | None = None,
        max_count: int | None = None,
        incremental: bool = False,
    ) -> BufferRing:
        """Register a pool of buffers for `recv` and `read_provided`.

        Args:
            count: how many, a power of two from 1 to 32768; with `max_count`, any number up to that.
            size: bytes in each, up to 1 GiB: the most one receive returns.
            on_empty: what a receive does when all are lent.  "wait": it stands in line, and the data stays in its
                socket.  "raise": it raises `BuffersExhaustedError`.  "fallback": it receives into memory of its own,
                until a buffer is back; as many such chunks as the group has buffers, then it waits.
            group_id: the group's number for the kernel, 0 to 65535; None takes the first that is free.
            max_count: how many there may be, a power of two up to 32768: the group grows when a receive finds it empty,
                before `on_empty` counts.  See `BufferRing.grow()`.
            incremental: let messages share buffers, each taking as much of one as it needs; make them large, then.
                A chunk is released as ever, and its buffer comes back when the kernel has filled all of it and its
                last chunk was released.  Serves receives of bytes, and reads from pipes and sockets; since Linux 6.12.

        Raises:
            ValueError: a number that is out of its range.
            ResourceBusyError: this `group_id` is taken.
            OSError: ENOMEM beyond RLIMIT_MEMLOCK; the text says how to raise it.
            UnsupportedKernelError: before Linux 5.19, or 6.12.

        Since Linux 5.19.  See io_uring_setup_buf_ring(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        group = driver.registry.register_buffer_ring(
            driver.ring,
            count=count,
            size=size,
            on_empty=on_empty,
            group_id=group_id,
            max_count=max_count,
            incremental=incremental,
        )
        if driver.loop.get_debug():
            group.held_too_long = HELD_TOO_LONG
        return group

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
