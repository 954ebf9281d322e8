"""Owns the verbs that register things with the kernel: buffers and buffer rings."""

from aiouring._buffer_ring import BufferRing, OnEmpty
from aiouring._errors import ResourceBusyError
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._ring import Ring
from aiouring._uring import lib
from aiouring._verbs import Verbs


class RegistrationVerbs(Verbs):
    """The part of `AsyncRing` that hands the kernel things to keep."""

    _ring: Ring

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
        if driver.buffers is not None and driver.buffers.registered:
            raise ResourceBusyError("this ring has registered buffers already: a ring has one table of them")
        driver.buffers = RegisteredBuffers(self._ring, driver, count, size)
        return driver.buffers

    def register_buffer_ring(self, *, count: int, size: int, on_empty: OnEmpty = "wait") -> BufferRing:
        """Register a pool of `count` buffers (a power of two) of `size` bytes for `recv`.

        `on_empty` says what a receive does when all are lent: wait in line, or raise `BuffersExhaustedError`.

        Since Linux 5.19.  See io_uring_setup_buf_ring(3).
        """
        driver = self._driver or self._bound()
        driver.check()
        driver.groups = {number: group for number, group in driver.groups.items() if group.registered}
        # A receive that is being cancelled still names its group by number: that number is not free yet.
        taken = {request.group.group_id for request in driver.inflight.values() if request.group} | set(driver.groups)
        group_id = next(number for number in range(len(taken) + 1) if number not in taken)
        if group_id > lib.AU_MAX_GROUP_ID:
            raise ResourceBusyError(f"this ring has {len(driver.groups)} buffer rings already")
        group = BufferRing(self._ring, driver, group_id, count, size, on_empty)
        driver.groups[group_id] = group
        return group
