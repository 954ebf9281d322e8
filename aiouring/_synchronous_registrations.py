"""Owns `RegisteringRing`: what a ring without an event loop registers with the kernel."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from aiouring._buffer_ring import BufferRing
from aiouring._features import require
from aiouring._memory_region import MemoryRegion
from aiouring._peeks import PeekingRing
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registered_files import MAX_FILES, RegisteredFiles
from aiouring._registry import Registry
from aiouring._ring import check_size

if TYPE_CHECKING:
    from aiouring._verbs import File


class _Unattended:
    """What buffers need from who drives their ring, where that is the caller and nobody can wait in line."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], object]] = deque()
        self.in_flight: dict[int, Any] = {}  # what each request holds, by its user_data

    def new_future(self) -> NoReturn:
        """Nobody waits here."""
        raise RuntimeError("a Ring has no event loop to wait on: use try_acquire(), or an AsyncRing")

    def ask_for_turn(self) -> None:
        """The caller submits when it likes."""

    def submit_queued(self) -> None:
        """The caller submits when it likes."""

    def draw_number(self) -> int:
        """The caller numbers what it asks for."""
        return 0

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` with the next submission."""
        self.due.append(what)

    def cancel_receives(self, group: object) -> None:
        """The caller knows what is in flight."""

    def groups_in_flight(self) -> set[int]:
        """The groups that requests in flight hold."""
        return {held.group_id for held in self.in_flight.values() if isinstance(held, BufferRing)}


class RegisteringRing(PeekingRing):
    """A ring that its caller drives, and what it has registered; each as on `AsyncRing`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._unattended = _Unattended()
        self._registry = Registry(self._unattended)
        self._in_flight = self._unattended.in_flight
        super().__init__(*arguments, **options)

    def _do_what_is_due(self) -> None:
        while self._unattended.due:
            self._unattended.due.popleft()()

    def register_buffers(
        self,
        buffers: Iterable[Any] | None = None,
        *,
        count: int | None = None,
        size: int | None = None,
        huge_pages: bool = False,
        tags: Sequence[int] | None = None,
    ) -> RegisteredBuffers:
        """Register memory for fixed reads and writes; as `AsyncRing.register_buffers()`.

        `tags` are the user_data of the completions that say, after a buffer was replaced, removed or unregistered,
        that the kernel has let go of it: one for each buffer, 0 for none, and none that a request in flight has.
        Until that completion is drained the ring keeps the buffer's memory.  Without a tag the caller keeps it,
        until the last request on it has completed.
        """
        return self._registry.register_buffers(self, buffers, count=count, size=size, huge_pages=huge_pages, tags=tags)

    def register_buffers_sparse(self, count: int) -> RegisteredBuffers:
        """Register a table of `count` empty slots; as `AsyncRing.register_buffers_sparse()`."""
        return self._registry.register_buffers_sparse(self, count)

    def clone_buffers(
        self,
        source: RegisteredBuffers,
        *,
        index: int = 0,
        source_index: int = 0,
        count: int | None = None,
        replace: bool = False,
    ) -> RegisteredBuffers:
        """Register what another ring has registered; as `AsyncRing.clone_buffers()`.

        A ring that has not been enabled may be cloned into here, and enabled by the thread that will use it.
        """
        return self._registry.clone_buffers(
            self, source, index=index, source_index=source_index, count=count, replace=replace
        )

    def register_buffer_ring(
        self,
        *,
        count: int,
        size: int,
        group_id: int | None = None,
        max_count: int | None = None,
        incremental: bool = False,
    ) -> BufferRing:
        """Register a pool of `count` buffers of `size` bytes; as `AsyncRing.register_buffer_ring()`.

        It grows up to `max_count` by `BufferRing.grow()` only: nobody waits for its buffers.  With `incremental`, take
        the completions in the order in which they came: where a chunk begins is the sum of what came before it.
        """
        return self._registry.register_buffer_ring(
            self,
            count=count,
            size=size,
            on_empty="raise",
            group_id=group_id,
            max_count=max_count,
            incremental=incremental,
        )

    def register_region(
        self, size: int | None = None, *, memory: Any = None, wait_argument: bool = False
    ) -> MemoryRegion:
        """Share memory with the kernel for the life of the ring: `size` bytes that it allocates, or the caller's.

        Args:
            size: bytes, a multiple of the page size.
            memory: instead, a writable buffer of whole pages, such as `mmap.mmap(-1, size)`.  The ring holds it.
            wait_argument: let `wait()` take its arguments from there; only before the ring is enabled.

        Raises:
            ResourceBusyError: this ring has a region already.
            WrongContextError: wait arguments, and the ring has been enabled.
            UnsupportedKernelError: the kernel has no regions.

        Since Linux 6.13.  See io_uring_register_region(3).
        """
        if wait_argument:
            require("registered waits")
        return self._registry.register_region(self, size=size, memory=memory, wait_argument=wait_argument)

    def _argument_times(self, argument: int) -> tuple[float | None, float | None]:
        region = self._registry.region
        assert region is not None  # the C core has wait arguments
        return region.get_wait(argument)

    def register_files(self, files: "Sequence[File | None]") -> RegisteredFiles:
        """Register a table of `files`, None for gaps; as `AsyncRing.register_files()`."""
        return self._registry.register_files(self, files)

    def register_files_sparse(self, count: int) -> RegisteredFiles:
        """Register a table of `count` empty slots; as `AsyncRing.register_files_sparse()`."""
        check_size("count", count, MAX_FILES)
        return self._registry.register_files(self, [None] * count)
