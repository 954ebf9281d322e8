"""Owns `Ring`: io_uring without an event loop; a `with` block, prepare, submit, wait."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, Self

from aiouring._buffer_ring import BufferRing
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._errors import failure
from aiouring._registered_buffers import FixedBuffer, RegisteredBuffers
from aiouring._registered_files import MAX_FILES, RegisteredFiles
from aiouring._registry import Registry
from aiouring._ring import Completion, CoreRing, check_size
from aiouring._setup import TaskRun
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._verbs import File


class _Unattended:
    """What buffers need from who drives their ring, where that is the caller and nobody can wait in line."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], object]] = deque()

    def new_future(self) -> NoReturn:
        """Nobody waits here."""
        raise RuntimeError("a Ring has no event loop to wait on: use try_acquire(), or an AsyncRing")

    def ask_for_turn(self) -> None:
        """The caller submits when it likes."""

    def ask_from_elsewhere(self, what: Callable[[], object]) -> None:
        """Call `what` with the next submission."""
        self.due.append(what)

    def cancel_receives(self, group: object) -> None:
        """The caller knows what is in flight."""

    def groups_in_flight(self) -> set[int]:
        """The caller knows that too."""
        return set()


class Ring(CoreRing):
    """A submission queue and a completion queue shared with the kernel; usable without asyncio.

    Args:
        entries: size of the submission queue, 1 to 32768; the kernel rounds it up to a power of two.
        cq_entries: size of the completion queue, at least `entries`.
        task_run: "defer" (completions are posted when we ask, since Linux 6.1) or "coop" (whenever we
            are in the kernel, since Linux 5.19); None takes the measured default.
        disabled: make it disabled, to be enabled later by the thread that will use it.

    Raises:
        RingUnavailableError: io_uring is blocked here; the text says by what.
        OSError: ENOMEM (RLIMIT_MEMLOCK), EMFILE.

    Since Linux 5.10.  See io_uring_setup(2).
    """

    def __init__(
        self,
        entries: int = 128,
        *,
        cq_entries: int = 4096,
        task_run: TaskRun | None = None,
        disabled: bool = False,
    ) -> None:
        self._unattended = _Unattended()
        self._registry = Registry(self._unattended)
        super().__init__(entries, cq_entries=cq_entries, task_run=task_run, disabled=disabled)

    def __enter__(self) -> Self:
        return self

    def register_buffers(self, *, count: int, size: int) -> RegisteredBuffers:
        """Register `count` page-aligned buffers of `size` bytes; as `AsyncRing.register_buffers()`."""
        return self._registry.register_buffers(self, count=count, size=size)

    def register_buffer_ring(self, *, count: int, size: int) -> BufferRing:
        """Register a pool of `count` buffers of `size` bytes; as `AsyncRing.register_buffer_ring()`."""
        return self._registry.register_buffer_ring(self, count=count, size=size, on_empty="raise")

    def register_files(self, files: "Sequence[File | None]") -> RegisteredFiles:
        """Register a table of `files`, None for gaps; as `AsyncRing.register_files()`."""
        return self._registry.register_files(self, files)

    def register_files_sparse(self, count: int) -> RegisteredFiles:
        """Register a table of `count` empty slots; as `AsyncRing.register_files_sparse()`."""
        check_size("count", count, MAX_FILES)
        return self._registry.register_files(self, [None] * count)

    def prepare_fixed(
        self,
        opcode: int,
        buffer: FixedBuffer,
        *,
        user_data: int,
        fd: int | DirectDescriptor,
        offset: int = -1,
        start: int = 0,
        length: int | None = None,
    ) -> None:
        """Fill one entry that moves `length` bytes at `start` of a registered buffer.

        The caller keeps `buffer` lent until the request's final completion.
        """
        wanted = len(buffer) - start if length is None else length
        number, how = self._named(fd)
        code = lib.au_prepare_fixed(
            self.raw, user_data, opcode, number, buffer.table, buffer.index, start, wanted, offset, how
        )
        if code < 0:
            raise failure(
                code, "filling a request", fd=number, index=buffer.index, start=start, length=wanted, offset=offset
            )

    def prepare_select(
        self,
        opcode: int,
        group: BufferRing,
        *,
        user_data: int,
        fd: int | DirectDescriptor,
        offset: int = 0,
        length: int = 0,
    ) -> None:
        """Fill one entry that receives into a buffer of `group`, which the kernel picks; `length` 0 is all of it.

        The completion says which: `group.take(completion.flags, completion.result)`.  `offset` is for reads, where
        -1 is the file's own position; a receive must not have one.
        """
        number, how = self._named(fd)
        code = lib.au_prepare_select(self.raw, user_data, opcode, number, group.raw, length, offset, 0, how)
        if code < 0:
            raise failure(code, "filling a request", fd=number, index=group.group_id, length=length, offset=offset)

    def submit(self) -> list[Completion]:
        """Submit everything filled, without waiting; returns what has completed (at most 512 at once)."""
        while self._unattended.due:
            self._unattended.due.popleft()()
        return super().submit()

    def close(self) -> None:
        """Unregister, unmap and close at once.

        This does not stop running requests: reap them first (KERNEL.md E1).
        """
        super().close()
        self._registry.forget()
