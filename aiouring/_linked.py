"""Owns `Chain`: requests that run one after the other, from one submission, until one fails.

How this fits together

1. Methods of a `Chain` collect requests; the end of its `async with` block submits them all.
2. The links are soft ones: a request that fails, or that moves fewer bytes than it was asked for, ends the chain, and
   what follows completes with ECANCELED without having begun (measured: a write that RLIMIT_FSIZE cut short, a read at
   the end of a file).  Hard links (IOSQE_IO_HARDLINK) go on in both cases, so that a flush would vouch for what was
   not written; they are not offered.
3. Which failures end a chain depends on the operation (measured with each, on Linux 6.18).  Those of READ, WRITE and
   their fixed forms do, and of OPENAT, CLOSE, SPLICE.  Those of FSYNC, SYNC_FILE_RANGE, FTRUNCATE, FALLOCATE, MADVISE,
   RENAMEAT, UNLINKAT, MKDIRAT, LINKAT, SYMLINKAT, STATX and the attributes do **not**: what follows runs as if nothing
   had happened.  A rename linked behind a flush would put a file in its place whose flush had failed.  So a chain
   moves bytes, and ends with at most one flush; whatever depends on the flush is for the next chain.
4. There are no linked timeouts: they would lose what a read brought that came with them.  `asyncio.timeout()` around
   a chain is a cancellation, and those are safe.

The way of a chain to the kernel is in `_chaining`.  All requests but the first look their file up when they run: a slot
of the registered files is therefore refused, and a descriptor must stay open until the end.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from aiouring._chaining import Link, perform_chain
from aiouring._direct_descriptor import Slot
from aiouring._errors import failure
from aiouring._fixed_buffer import FixedBuffer
from aiouring._request import Request, Write
from aiouring._uring import lib
from aiouring._verbs import Bytes, File, Verbs, memory_of, resolve, special


class Chain:
    """Requests that run one after the other, in one submission, until one fails; made by `AsyncRing.chain()`.

    Its methods add requests; the end of the `async with` block submits them all, and waits for all.  Each returns a
    `Link`, whose `result` is there afterwards.
    """

    def __init__(self, ring: Verbs) -> None:
        self._ring = ring
        self._links: list[Link] = []
        self._state = "open"
        self._flushes = False

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    async def __aenter__(self) -> Self:
        if self._state != "open" or self._links:
            raise RuntimeError("a chain is used once: make another with ring.chain()")
        self._state = "filling"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "over"
        try:
            if kind is None and self._links:
                await perform_chain(self._ring._driver or self._ring._bound(), self._links)
        finally:
            for link in self._links:
                link.let_go()

    def _add(self, link: Link) -> Link:
        if self._state != "filling":
            link.let_go()
            raise RuntimeError("requests are added to a chain within its `async with` block")
        if self._flushes:
            link.let_go()
            raise ValueError(
                "a flush is the last of a chain: the kernel goes on behind one even if it failed; await this chain, "
                "then start the next"
            )
        self._links.append(link)
        return link

    # ---- what can be linked ----------------------------------------------------------------------

    def read(self, fd: File, buffer: Bytes, offset: int, *, flags: int = 0) -> Link:
        """As `AsyncRing.read()`, at an offset.  One that the file's end cuts short ends the chain."""
        return self._transfer(Request, lib.AU_OP_READ, fd, buffer, offset, flags)

    def write(self, fd: File, data: Bytes, offset: int, *, flags: int = 0) -> Link:
        """As `AsyncRing.write()`, at an offset.  One that writes less than all of it ends the chain."""
        return self._transfer(Write, lib.AU_OP_WRITE, fd, data, offset, flags)

    def _transfer(self, kind: type[Request], opcode: int, fd: File, buffer: Bytes, offset: int, flags: int) -> Link:
        number, file, how = _named(fd)
        at = _place(offset)
        kind, how = special(kind, how, flags, background=False)
        memory, length, lease = memory_of(buffer, writable=opcode == lib.AU_OP_READ)
        arguments = (opcode, number, memory, length, 0, length, at, 0, how)
        request = kind(number, file, memory, lease)
        return self._add(Link(request, lib.au_prepare_memory, *arguments, wanted=length))

    def read_fixed(
        self, fd: File, buffer: FixedBuffer, offset: int, *, start: int = 0, length: int | None = None
    ) -> Link:
        """As `AsyncRing.read_fixed()`, at an offset."""
        return self._fixed(Request, lib.AU_OP_READ_FIXED, fd, buffer, offset, start, length)

    def write_fixed(
        self, fd: File, buffer: FixedBuffer, offset: int, *, start: int = 0, length: int | None = None
    ) -> Link:
        """As `AsyncRing.write_fixed()`, at an offset."""
        return self._fixed(Write, lib.AU_OP_WRITE_FIXED, fd, buffer, offset, start, length)

    def _fixed(
        self,
        kind: type[Request],
        opcode: int,
        fd: File,
        buffer: FixedBuffer,
        offset: int,
        start: int,
        length: int | None,
    ) -> Link:
        number, file, how = _named(fd)
        if not isinstance(buffer, FixedBuffer):
            raise TypeError(f"a FixedBuffer from RegisteredBuffers.acquire() is needed, not {type(buffer).__name__}")
        memory, wanted = buffer.memory(), len(buffer) - start if length is None else length
        arguments = (opcode, number, buffer.table, buffer.number, start, wanted, _place(offset), how)
        request = kind(number, file, memory, buffer)
        return self._add(Link(request, lib.au_prepare_fixed, *arguments, wanted=wanted))

    def fsync(self, fd: File, *, data_only: bool = False) -> Link:
        """As `AsyncRing.fsync()`; the last of a chain."""
        number, file, how = _named(fd)
        flags = lib.AU_FSYNC_DATASYNC if data_only else 0
        link = self._add(Link(Write(number, file), lib.au_prepare, lib.AU_OP_FSYNC, number, 0, 0, 0, flags, how))
        self._flushes = True
        return link

    def fdatasync(self, fd: File) -> Link:
        """As `AsyncRing.fdatasync()`; the last of a chain."""
        return self.fsync(fd, data_only=True)


def _named(file: File) -> tuple[int, object, int]:
    """The file of a request in a chain."""
    number, held, how = resolve(file)
    if isinstance(number, Slot):
        raise failure(lib.AU_LATE_SLOT, fd=number)
    return number, held, how


def _place(offset: int) -> int:
    if not 0 <= offset < 2**63:
        raise ValueError(f"offset={offset} is outside 0 to {2**63 - 1}: requests in a chain name their place")
    return offset


class ChainVerbs(Verbs):
    """The part of `AsyncRing` that makes chains."""

    def chain(self) -> Chain:
        """Requests that run one after the other, in one submission, until one fails.

        ```
        async with ring.chain() as chain:
            chain.write(file, record, offset)
            chain.fdatasync(file)  # only if all of the record was written
        ```

        Reads and writes at offsets, and at the end perhaps a flush.

        Leaving the block submits them and waits for all.  Where one fails, its `OSError` is raised there, and what
        follows it is not done; a read or write that moves fewer bytes than it was asked for does the same (ECANCELED,
        with the numbers in the text).  `link.result` and `link.done` say what became of each.

        Cancelled, what runs is stopped if it can be, and nothing goes on after `CancelledError` leaves: some of the
        chain, from its beginning, was done, and the links say how much.  An exception within the block submits
        nothing.  Files are named by descriptors or objects, which stay open until the end, not by slots; as many
        requests as the submission queue has entries can be in one chain.

        Since Linux 5.3.  See io_uring_enter(2), IOSQE_IO_LINK.
        """
        return Chain(self)
