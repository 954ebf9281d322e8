"""Owns `Ring`: io_uring without an event loop; a `with` block, prepare, submit, wait."""

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Self

from aiouring._buffer_ring import BufferRing
from aiouring._errors import failure
from aiouring._fixed_buffer import FixedBuffer, Vector
from aiouring._registered_buffers import RegisteredBuffers
from aiouring._registry import Registry
from aiouring._retired_buffers import KEPT
from aiouring._ring import Completion, CoreRing
from aiouring._setup import TaskRun
from aiouring._uring import lib


class _Unattended:
    """What buffers need from who drives their ring, where that is the caller and nobody can wait in line."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], object]] = deque()

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
        self._vectors: list[Vector] = []  # what the kernel reads when it takes the requests that are filled
        super().__init__(entries, cq_entries=cq_entries, task_run=task_run, disabled=disabled)

    def __enter__(self) -> Self:
        return self

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

    def register_buffer_ring(self, *, count: int, size: int) -> BufferRing:
        """Register a pool of `count` buffers of `size` bytes; as `AsyncRing.register_buffer_ring()`."""
        return self._registry.register_buffer_ring(self, count=count, size=size, on_empty="raise")

    def prepare_fixed(
        self,
        opcode: int,
        buffer: FixedBuffer,
        *,
        user_data: int,
        fd: int,
        offset: int = -1,
        start: int = 0,
        length: int | None = None,
    ) -> None:
        """Fill one entry that moves `length` bytes at `start` of a registered buffer.

        The caller keeps `buffer` lent until the request's final completion.
        """
        wanted = len(buffer) - start if length is None else length
        code = lib.au_prepare_fixed(
            self.raw, user_data, opcode, fd, buffer.table, buffer.number, start, wanted, offset, self._guard(fd)
        )
        if code < 0:
            raise failure(code, "filling a request", index=buffer.index, start=start, length=wanted, offset=offset)

    def prepare_fixed_vector(
        self,
        opcode: int,
        buffer: FixedBuffer,
        ranges: Sequence[tuple[int, int]],
        *,
        user_data: int,
        fd: int,
        offset: int = -1,
    ) -> None:
        """Fill one entry (READV_FIXED, WRITEV_FIXED) that moves several ranges of a registered buffer.

        `ranges` holds start and length of each, in bytes.  The caller keeps `buffer` lent until the request's final
        completion.  Since Linux 6.15.
        """
        self.require(opcode, "6.15")
        vector = Vector(buffer, ranges)
        code = lib.au_prepare_fixed_vector(
            self.raw, user_data, opcode, fd, buffer.table, buffer.number, *vector.arguments, offset, self._guard(fd)
        )
        if code < 0:
            raise failure(code, "filling a request", index=buffer.index, offset=offset)
        self._vectors.append(vector)

    def prepare_select(
        self, opcode: int, group: BufferRing, *, user_data: int, fd: int, offset: int = 0, length: int = 0
    ) -> None:
        """Fill one entry that receives into a buffer of `group`, which the kernel picks; `length` 0 is all of it.

        The completion says which: `group.take(completion.flags, completion.result)`.  `offset` is for reads, where
        -1 is the file's own position; a receive must not have one.
        """
        code = lib.au_prepare_select(self.raw, user_data, opcode, fd, group.raw, length, offset, 0, self._guard(fd))
        if code < 0:
            raise failure(code, "filling a request", index=group.group_id, length=length, offset=offset)

    def submit(self) -> list[Completion]:
        """Submit everything filled, without waiting; returns what has completed (at most 512 at once)."""
        while self._unattended.due:
            self._unattended.due.popleft()()
        completions = super().submit()
        if not lib.au_ring_unsubmitted(self.raw):
            self._vectors.clear()  # the kernel has its own copy
        if self._registry.retiring:
            self._registry.look_for_tags(completions)
        return completions

    def close(self) -> None:
        """Unregister, unmap and close at once.

        This does not stop running requests: reap them first (KERNEL.md E1).  Buffers whose tag has not come are kept
        until the process ends, with a `ResourceWarning`: the kernel may still write to them.
        """
        if self._registry.retiring and lib.au_ring_check(self.raw) == 0:
            if not lib.au_ring_unsubmitted(self.raw):
                with contextlib.suppress(OSError, RuntimeError):
                    self.submit()  # tags that have come and were not drained
            if buried := self._registry.bury():
                KEPT.append(buried)
                warnings.warn(
                    f"a Ring was closed while the kernel was using buffers that had left their table: {buried!r} are "
                    "kept until the process ends; reap the requests that use them before closing",
                    ResourceWarning,
                    stacklevel=2,
                )
        super().close()
        self._registry.forget()
