"""Owns `Registry`: what one ring has registered with the kernel, and the end of all of it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aiouring._buffer_ring import BufferRing, OnEmpty
from aiouring._errors import ResourceBusyError, RingClosedError
from aiouring._features import require
from aiouring._incremental import IncrementalBufferRing
from aiouring._memory_region import MemoryRegion
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import RegisteredFiles
from aiouring._registered_memory import MAX_BUFFERS, pieces_of, pieces_of_arena
from aiouring._retired_buffers import RetiredBuffers
from aiouring._ring import check_size
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._line import Attendant
    from aiouring._ring import Completion, CoreRing
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
        self.retiring: dict[int, RetiredBuffers] = {}  # by tag; this very object for the life of the ring
        self.groups: dict[int, BufferRing] = {}  # by group id; this very object for the life of the ring

    def register_buffers(
        self,
        ring: "CoreRing",
        buffers: Iterable[Any] | None,
        *,
        count: int | None,
        size: int | None,
        huge_pages: bool = False,
        tags: Sequence[int] | None = None,
    ) -> RegisteredBuffers:
        """See `AsyncRing.register_buffers()`."""
        self._refuse_second_table()
        if buffers is None:
            pieces = pieces_of_arena(count, size, huge_pages=huge_pages)  # type: ignore[arg-type]
        elif count is not None or size is not None or huge_pages:
            raise TypeError("give either the buffers, or count and size (and huge_pages) for memory of our own")
        else:
            pieces = pieces_of(buffers)
        table = RegisteredBuffers(ring, self._attendant, self.retiring, len(pieces))
        table.register(pieces, tags)
        self.buffers = table
        return table

    def register_buffers_sparse(self, ring: "CoreRing", count: int) -> RegisteredBuffers:
        """See `AsyncRing.register_buffers_sparse()`."""
        self._refuse_second_table()
        check_size("count", count, MAX_BUFFERS)
        table = RegisteredBuffers(ring, self._attendant, self.retiring, count)
        table.register(None, None)
        self.buffers = table
        return table

    def clone_buffers(
        self,
        ring: "CoreRing",
        source: RegisteredBuffers,
        *,
        index: int,
        source_index: int,
        count: int | None,
        replace: bool,
    ) -> RegisteredBuffers:
        """See `AsyncRing.clone_buffers()`."""
        if not isinstance(source, RegisteredBuffers):
            raise TypeError(f"RegisteredBuffers are needed to clone from, not {type(source).__name__}")
        if not source.registered:
            raise RingClosedError("the buffers to be cloned have been unregistered")
        if not 0 <= source_index < len(source):
            raise ValueError(f"source_index={source_index} is outside the source's slots, 0 to {len(source) - 1}")
        if count is None:
            count = len(source) - source_index
        check_size("count", count, len(source) - source_index)
        if not 0 <= index <= MAX_BUFFERS - count:
            raise ValueError(f"index={index} and count={count} are outside a table of at most {MAX_BUFFERS} slots")
        table = self.buffers
        if table is None or not table.registered:
            table = RegisteredBuffers(ring, self._attendant, self.retiring, 0)
        elif not replace:
            raise ResourceBusyError("this ring has registered buffers already: replace=True clones into that table")
        table.clone(source, index, source_index, count, replace=replace)
        self.buffers = table
        return table

    def _refuse_second_table(self) -> None:
        if self.buffers is not None and self.buffers.registered:
            raise ResourceBusyError("this ring has registered buffers already: a ring has one table of them")

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
        self,
        ring: "CoreRing",
        *,
        count: int,
        size: int,
        on_empty: OnEmpty,
        group_id: int | None = None,
        max_count: int | None = None,
        incremental: bool = False,
    ) -> BufferRing:
        """See `AsyncRing.register_buffer_ring()`."""
        # A receive that is being cancelled still names its group by number: that number is not free yet.
        in_flight = self._attendant.groups_in_flight()
        for number in [number for number, group in self.groups.items() if not group.registered]:
            if number not in in_flight:
                lib.au_group_forget(self.groups.pop(number).raw)
        if group_id is None:
            taken = in_flight | set(self.groups)
            group_id = next(number for number in range(len(taken) + 1) if number not in taken)
            if group_id > lib.AU_MAX_GROUP_ID:
                raise ResourceBusyError(f"this ring has {len(self.groups)} buffer rings already")
        else:
            self._check_group_id(group_id, in_flight)
        if incremental:
            require("incremental buffer rings")
        kind = IncrementalBufferRing if incremental else BufferRing
        group = kind(ring, self._attendant, group_id, count, size, on_empty, max_count)
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
        if group_id in self.groups and self.groups[group_id].registered:
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
        for retired in self.retiring.values():
            retired.dismiss(error)

    def look_for_tags(self, completions: "Iterable[Completion]") -> None:
        """On a ring whose caller drains: a tag among the completions ends what waits for it."""
        for user_data, result, flags in completions:
            if user_data in self.retiring and result == flags == 0:
                self.retiring.pop(user_data).arrived(user_data)

    def unregister(self) -> None:
        """Take everything back from the kernel."""
        for group in self.groups.values():
            group.unregister()
        if self.buffers is not None:
            self.buffers.unregister()
        if self.files is not None:
            self.files.unregister()

    def bury(self) -> list[RetiredBuffers]:
        """The ring closes with requests in flight: what the kernel may still use, for the graveyard."""
        buried = list(dict.fromkeys(self.retiring.values()))
        for retired in buried:
            retired.dismiss(RingClosedError("the ring was closed before the kernel let go of these buffers"))
        self.retiring.clear()
        return buried

    def forget(self) -> None:
        """The ring is closed: leave what was registered to those who still use its memory."""
        for retired in set(self.retiring.values()):
            retired.finish()
        self.retiring.clear()
        self.groups.clear()
        self.buffers = self.files = self.region = None
