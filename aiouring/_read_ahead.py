"""Owns `ReadAhead`: what has been read of a file before it was asked for, and the reads that are in flight for it.

How this fits together

1. It is a cache, and knows no position: its bytes are those from `base` to `end`, in `chunk` and then in `ready`.  The
   file that has it moves its own position when it has what it wanted.  So a reader that is cancelled loses nothing.
2. `more()` waits for the first block in flight and appends it.  When blocks are asked for one behind the other, it
   keeps up to `depth` further ones in flight, and each is four times the one before, up to `raw.largest`; the first
   block after a `go_to()` elsewhere is alone, and small.  So random access reads little that nobody wants, a file that
   is read from front to back is read in few requests, and a small file takes little memory.
3. A block that comes back short ends the run: what was read beyond it is dropped, since it may not follow.
4. Blocks in flight beside their reader are tasks, which are not cancelled with it, but by `drop()` alone.  That may
   happen while a reader waits for one: `more()` returns, and the reader, who begins each round with `go_to()`, starts
   anew.
5. Reads of WHOLE bytes and more need no block while the page cache has them: they are taken from there, straight to
   where they are wanted, in one copy instead of two.  The first that is not there begins a run of blocks.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aiouring._raw_file import PIECE
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._raw_file import RawFile

#: Bytes of the first block, where nothing is known yet.
FIRST = 16 * 1024
#: Who asks for so much at a time gets blocks of just that size, which are then handed on without being copied.
LARGE = 256 * 1024
#: Who asks for so much gets it straight from the page cache, past the blocks, as long as it is there.
WHOLE = lib.AU_WHOLE
#: Blocks in flight beyond what was asked for.  From the page cache more are not faster: they leave the CPU's cache.
DEPTH = 2


class ReadAhead:
    """A file's bytes around its position.

    Args:
        raw: the file.
        block: bytes in each block, `raw.largest` at most; 0 lets them grow.
        depth: blocks that may be in flight beyond what was asked for; 0 reads nothing that was not asked for, None
            takes what was measured.
    """

    __slots__ = (
        "_block",
        "_coming",
        "_depth",
        "_drops",
        "_next",
        "_raw",
        "_run",
        "_want",
        "base",
        "chunk",
        "empty",
        "end",
        "ready",
    )

    def __init__(self, raw: "RawFile", block: int = 0, depth: int | None = None) -> None:
        self._raw = raw
        self._block = min(block, raw.largest)
        most = DEPTH * PIECE // raw.largest if depth is None else depth
        self._depth = most if raw.regular else 0
        self.base = self.end = self._next = raw.start
        self.chunk = b""
        self.empty = True  # nothing is here, and nothing is coming
        self.ready: deque[bytes] = deque()
        self._coming: deque[tuple[int, asyncio.Task[bytes]]] = deque()
        self._run = 0
        self._want = 0
        self._drops = 0

    def go_to(self, position: int) -> None:
        """Be ready for `position`: let go of what is before it, or of everything where it is elsewhere."""
        while self.ready and position >= self.base + len(self.chunk):
            self.base += len(self.chunk)
            self.chunk = self.ready.popleft()
        if not self.base <= position <= self.end:
            self.drop()
            self.base = self.end = self._next = position

    def drop(self) -> None:
        """Let go of everything: the file has changed, or is read elsewhere."""
        self._drops += 1
        self.empty = True
        self._stop()
        self.base = self._next = self.end
        self.chunk = b""
        self.ready.clear()

    def _stop(self) -> None:
        self._run = 0
        while self._coming:
            self._coming.pop()[1].cancel()

    def has_more(self, position: int) -> bool:
        """Whether there are bytes from `position` on, or some are coming."""
        return self.end > position or bool(self._coming)

    def passes(self, position: int, size: int) -> bool:
        """Whether a read of `size` bytes from `position` on is to look into the page cache, past the blocks."""
        self.go_to(position)
        return size >= WHOLE and self.end == position and not self._coming and self._raw.cached

    async def read(self, position: int, size: int) -> bytes:
        """`size` bytes from `position` on, `raw.largest` at most; fewer only at the end of the file."""
        if self.passes(position, size):
            data = await self._raw.read_cached(size, position)
            if data:
                return data
        return await self.read_blocks(position, size)

    async def read_blocks(self, position: int, size: int) -> bytes:
        """The same, from the blocks."""
        while True:
            self.go_to(position)
            missing = position + size - self.end
            if missing <= 0 or not await self.more(missing):
                return self.take(position, size)

    async def more(self, want: int) -> bool:
        """Have a block more, of at least `want` bytes if there are so many; False at the end of the file."""
        drops, self.empty = self._drops, False
        if not self._coming:
            self._want = min(want, self._raw.largest) if want >= LARGE else 0
            length = min(max(want, self._size()), self._raw.largest)
            if self._run or not self._raw.seekable:
                self._start(length)
        self._fill_window()
        if self._coming:
            length, task = self._coming[0]
            if not task.done():
                await asyncio.wait((task,))
            data = self._result(task) if drops == self._drops else b""
        else:  # alone, and spared the task
            data = await self._raw.read_some(length, self.end)
        return drops != self._drops or self._take_over(data, length)

    def _result(self, task: "asyncio.Task[bytes]") -> bytes:
        try:
            data: bytes = task.result()
        except BaseException:
            self._stop()
            self._next = self.end
            raise
        self._coming.popleft()
        return data

    def _take_over(self, data: bytes, length: int) -> bool:
        """Append what was read where `length` bytes were asked for; False if that is nothing."""
        self._run += 1
        self.end += len(data)
        if len(data) < length:
            self._stop()
        if not self._coming:
            self._next = self.end
        if data:
            self.ready.append(data)
            self._fill_window()
        return bool(data)

    def _fill_window(self) -> None:
        most = min(self._depth, self._run)
        while len(self._coming) < most and self._next < self._raw.size and self._run:
            self._start(self._size())

    def _size(self) -> int:
        """Bytes in the next block."""
        return self._block or self._want or min(FIRST << 2 * (self._run + len(self._coming)), self._raw.largest)

    def _start(self, length: int) -> None:
        length = min(length, self._raw.largest)
        self._coming.append((length, self._raw.go_on(self._raw.read_some(length, self._next))))
        self._next += length

    def take(self, position: int, size: int) -> bytes:
        """The bytes from `position` on, `size` or as many as there are."""
        self.go_to(position)
        start = position - self.base
        data = self.chunk[start : start + size]
        if len(data) == size or not self.ready:
            return data
        parts = [data]
        size -= len(data)
        for part in self.ready:
            parts.append(part[:size])
            size -= len(part)
            if size <= 0:
                break
        return b"".join(parts)

    def find(self, byte: bytes, start: int) -> int:
        """Where `byte` is first from `start` on, as an offset in the file; -1 if it is not among what is here."""
        base = self.base
        for part in (self.chunk, *self.ready):
            found = part.find(byte, max(0, start - base))
            if found >= 0:
                return base + found
            base += len(part)
        return -1
