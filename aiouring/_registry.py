"""Owns `Registry`: what one ring has registered with the kernel, and the end of all of it."""

from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import BufferRing, OnEmpty
from aiouring._errors import ResourceBusyError
from aiouring._memory_region import MemoryRegion
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import RegisteredFiles
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiouring._line import Attendant
    from aiouring._ring import CoreRing
    from aiouring._verbs import File


class Registry:
    """The registrations of one ring; whoever drives the ring has it, and attends to them.

    It does not hold the ring: one that has registered nothing dies with its last reference.
    """

    def __init__(self, attendant: "Attendant") -> None:
        self._attendant = attendant
        self.buffers: RegisteredBuffers | None = None
        self.region: MemoryRegion | None = None
        self.files: RegisteredFiles | None = None
        self.groups: dict[int, BufferRing] = {}  # by group id; this very object for the life of the ring

    def register_buffers(self, ring: "CoreRing", *, count: int, size: int) -> RegisteredBuffers:
        """See `AsyncRing.register_buffers()`."""
        if self.buffers is not None and self.buffers.registered:
            raise ResourceBusyError("this ring has registered buffers already: a ring has one table of them")
        self.buffers = RegisteredBuffers(ring, self._attendant, count, size)
        return self.buffers

    def register_files(self, ring: "CoreRing", files: "Sequence[File | None]") -> RegisteredFiles:
        """See `AsyncRing.register_files()`."""
        if self.files is not None:
            if self.files.registered:
                raise ResourceBusyError("this ring has registered files already: a ring has one table of them")
            if self.files.changing:
                raise ResourceBusyError(
                    "requests in flight would still change the table of files that was unregistered: await them first"
                )
        self.files = RegisteredFiles(ring, files)
        return self.files

    def register_buffer_ring(
        self, ring: "CoreRing", *, count: int, size: int, on_empty: OnEmpty, group_id: int | None = None
    ) -> BufferRing:
        """See `AsyncRing.register_buffer_ring()`."""
        for number in [number for number, group in self.groups.items() if not group.registered]:
            del self.groups[number]
        # A receive that is being cancelled still names its group by number: that number is not free yet.
        in_flight = self._attendant.groups_in_flight()
        if group_id is None:
            taken = in_flight | set(self.groups)
            group_id = next(number for number in range(len(taken) + 1) if number not in taken)
            if group_id > lib.AU_MAX_GROUP_ID:
                raise ResourceBusyError(f"this ring has {len(self.groups)} buffer rings already")
        else:
            self._check_group_id(group_id, in_flight)
        group = BufferRing(ring, self._attendant, group_id, count, size, on_empty)
        self.groups[group_id] = group
        return group

    def register_region(
        self, ring: "CoreRing", *, size: int | None, memory: Any, wait_argument: bool = False
    ) -> MemoryRegion:
        """See `Ring.register_region()`."""
        if self.region is not None:
            raise ResourceBusyError("this ring has a region already: a ring has one, and keeps it until it is closed")
        region = MemoryRegion(ring, size, memory, wait_argument=wait_argument)
        self.region = region  # before the kernel has it: its memory must not die while the ring is open
        try:
            region.register()
        except BaseException:
            if ring.raw.region == ffi.NULL:
                self.region = None
            raise
        return region

    def _check_group_id(self, group_id: int, in_flight: set[int]) -> None:
        if not isinstance(group_id, int):
            raise TypeError(f"group_id must be an int, not {type(group_id).__name__}")
        if not 0 <= group_id <= lib.AU_MAX_GROUP_ID:
            raise ValueError(f"group_id={group_id} is outside 0 to {lib.AU_MAX_GROUP_ID}")
        if group_id in self.groups:
            raise ResourceBusyError(
                f"group_id={group_id} is taken by {self.groups[group_id]!r}: unregister that first, or take another"
            )
        if group_id in in_flight:
            raise ResourceBusyError(
                f"group_id={group_id} is still named by a request in flight: await its end, or take another"
            )

    def dismiss(self, error: Exception) -> None:
        """Whoever waits in a line of a registration gets `error`."""
        if self.buffers is not None:
            self.buffers.dismiss(error)
        for group in self.groups.values():
            group.dismiss(error)

    def unregister(self) -> None:
        """Take everything back from the kernel."""
        for group in self.groups.values():
            group.unregister()
        if self.buffers is not None:
            self.buffers.unregister()
        if self.files is not None:
            self.files.unregister()

    def forget(self) -> None:
        """The ring is closed: leave what was registered to those who still use its memory."""
        self.groups.clear()
        self.buffers = self.files = self.region = None
