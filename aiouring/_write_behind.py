"""Owns `WriteBehind`: what was handed over to be written and is not yet in the file.

How this fits together

1. `accept()` never waits: it gathers small writes into blocks, and hands each full block to a task.  `room()` waits
   while too much is unfinished.  What is there at most is LIMIT bytes and one write more.
2. A block that could not be written is kept, with the error.  The error is raised once, by the next call; the one
   after it, and closing, try the block again.  So a disk that gets room again loses nothing, and no error is swallowed.
3. `sequence` counts the bytes accepted since everything was last in the file: `bytes_written(error)` says how many of
   those are in the file, without a gap.
4. Where blocks must arrive in order (appending, a pipe) one is written at a time, and none behind one that failed.
5. A loop that ends cancels every task, those that write here as well.  What a cancelled one had written counts as
   written, so that nothing is appended twice; the rest is kept, and tried again by whoever flushes or closes.
"""

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiouring._errors import bytes_written, note_written
from aiouring._uring import ffi

if TYPE_CHECKING:
    from aiouring._raw_file import RawFile
    from aiouring._verbs import Bytes

#: Bytes that small writes are gathered to.
BLOCK = 256 * 1024
#: Bytes that may be unfinished before a writer waits.
LIMIT = 4 * BLOCK


class Job(NamedTuple):
    """A block to be written: its place among what was accepted, its place in the file, its bytes."""

    sequence: int
    offset: int
    data: "Bytes"


class WriteBehind:
    """What is still to be written of one file.

    Args:
        raw: the file.
        block: bytes that small writes are gathered to.
    """

    def __init__(self, raw: "RawFile", block: int = BLOCK) -> None:
        self._raw = raw
        self._block = max(block, raw.alignment)
        self._depth = raw.depth if raw.seekable and not raw.append else 1
        self._pending = bytearray()
        self._start = 0  # of `_pending`, in the file
        self._sequence = 0  # bytes accepted
        self._unfinished = 0  # bytes in `_queue`, with tasks, or in `_failed`
        self._queue: deque[Job] = deque()
        self._running = 0
        self._failed: list[Job] = []
        self._error: Exception | None = None
        self._progress = asyncio.Event()

    @property
    def dirty(self) -> bool:
        """Whether anything is not in the file yet, or an error not yet told."""
        return bool(self._pending or self._unfinished)

    @property
    def ready(self) -> bool:
        """Whether `accept()` may be called without `room()` before it."""
        return self._unfinished < LIMIT and not self._failed and self._error is None

    @property
    def unwritten(self) -> int:
        """How many bytes are not in the file yet."""
        return len(self._pending) + self._unfinished

    def accept(self, data: "Bytes", offset: int) -> int:
        """Take `data` over, to be written at `offset`; returns its length.  `bytes` are kept, others copied."""
        if not isinstance(data, bytes):
            data = bytes(ffi.buffer(ffi.from_buffer(data)))
        pending = self._pending
        if pending and offset != self._start + len(pending):
            self._push(len(pending))
            pending = self._pending
        if not pending:
            self._start = offset
            if len(data) >= self._block and not (offset | len(data)) % self._raw.alignment:
                self._sequence += len(data)
                self._enqueue(offset, data)
                return len(data)
        pending += data
        self._sequence += len(data)
        if len(pending) >= self._block:
            end = self._start + len(pending)
            self._push(max(end - end % self._raw.alignment - self._start, 0))
        return len(data)

    def _push(self, count: int) -> None:
        """Hand the first `count` bytes gathered to a task."""
        if not count:
            return
        block = self._pending
        self._pending = block[count:]
        del block[count:]
        start, self._start = self._start, self._start + count
        self._enqueue(start, block, behind=len(self._pending))

    def _enqueue(self, offset: int, data: "Bytes", behind: int = 0) -> None:
        self._queue.append(Job(self._sequence - behind - len(data), offset, data))
        self._unfinished += len(data)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self._running < self._depth and self._error is None and not self._failed:
            self._running += 1
            job = self._queue.popleft()
            self._raw.go_on(self._write(job)).add_done_callback(partial(self._over, job))

    async def _write(self, job: Job) -> int:
        """Write a block; returns how much of it is in the file."""
        try:
            return await self._raw.write_at(job.data, job.offset)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):
                self._error = self._error or error
            return bytes_written(error) or 0

    def _over(self, job: Job, task: "asyncio.Task[int]") -> None:
        """Keep what was not written, also where the task was cancelled before it began, as by a loop that ends."""
        written = 0 if task.cancelled() or task.exception() is not None else task.result()
        self._running -= 1
        self._unfinished -= written
        if written < len(job.data):
            rest = memoryview(job.data)[written:]
            self._failed.append(Job(job.sequence + written, job.offset + written, rest))
        self._pump()
        self._progress.set()

    async def _wait(self) -> None:
        """Until a block has been written, or has failed."""
        self._progress.clear()
        await self._progress.wait()

    async def _tell(self) -> None:
        """Raise the error that came meanwhile, when nothing is in flight any more: then what it says is exact."""
        while self._error is not None and self._running:
            await self._wait()
        error, self._error = self._error, None
        if error is None:
            return  # or somebody else was told
        note_written(error, min((job.sequence for job in [*self._failed, *self._queue]), default=self._sequence))
        raise error

    def _try_again(self) -> None:
        if self._failed:
            self._queue.extendleft(sorted(self._failed, key=lambda job: -job.sequence))
            self._failed.clear()
            self._pump()

    async def room(self) -> None:
        """Wait until `accept()` may take more.

        Raises:
            OSError: an earlier block could not be written; `bytes_written(error)` says how much was.
        """
        await self._tell()
        self._try_again()
        while self._unfinished >= LIMIT:
            await self._wait()
            await self._tell()
            self._try_again()  # what was cancelled

    async def flush(self) -> None:
        """Wait until everything is in the file; raises as `room()`."""
        self._raw.check_here()
        await self._tell()
        await self._finish()

    async def finish(self) -> None:
        """The same in the end: an error that was not told yet is told only if another try fails as well."""
        while self._running:
            await self._wait()
        self._error = None
        await self._finish()

    async def _finish(self) -> None:
        self._try_again()
        self._push(len(self._pending))
        while self._unfinished:
            if not self._running:
                await self._tell()
                self._try_again()
                self._pump()
            await self._wait()
        if not self._pending:
            self._sequence = 0

    def write_at_once(self) -> None:
        """Write what is not in flight in this thread: nobody is left who could wait for it."""
        for job in sorted([*self._failed, *self._queue], key=lambda job: job.sequence):
            self._raw.write_at_once(job.data, job.offset)
        self._raw.write_at_once(self._pending, self._start)
