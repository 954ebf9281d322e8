"""Owns the verbs on futexes: waiting for a word of shared memory to be told of, and telling.

Ownership.  A request holds the export of the memory until its final completion.  A wake that comes together with a
cancellation was meant for somebody who waits: it is passed on to the next waiter, as a lock does.
"""

import errno
from collections.abc import Sequence
from typing import Any

from aiouring._features import require
from aiouring._request import Leftovers, Request
from aiouring._uring import ffi, lib
from aiouring._verbs import Bytes, Verbs, memory_of

_EVERYBODY = 0xFFFFFFFF


class Waiting(Request):
    """A wait for one of several words; where a value is another one already, EAGAIN is an answer."""

    __slots__ = ("flags_wanted", "mask", "words")
    expected = errno.EAGAIN

    def __init__(self, words: list[tuple[Any, int]], mask: int, flags: int) -> None:
        super().__init__()
        self.words = words  # the memory that each is in, and where
        self.mask = mask
        self.flags_wanted = flags
        self.ended = True  # the kernel has nothing yet

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Pass the wake on."""
        if self.result >= 0:
            memory, start = self.words[self.result]
            lib.au_futex_pass_on(memory, len(memory), start, self.mask, self.flags_wanted)

    def let_go(self) -> None:
        """End the exports."""
        if self.ended:
            while self.words:
                ffi.release(self.words.pop()[0])


class FutexVerbs(Verbs):
    """The part of `AsyncRing` that waits for words of memory that processes, threads or tasks share.

    A word has 32 bits in the machine's byte order and lies at a multiple of four bytes.  Its memory is an `mmap` or a
    `multiprocessing.shared_memory`, say; `private=True`, for memory that only this process has, is quicker.
    """

    async def futex_wait(
        self, memory: Bytes, value: int, *, offset: int = 0, mask: int = _EVERYBODY, private: bool = False
    ) -> bool:
        """Wait until the word is told of, unless it is not `value` any more; returns whether it was told of.

        Args:
            memory: a writable buffer; held until the wait is over.
            value: what the word is thought to be: False at once, where it is not.
            offset: where in the buffer the word is, in bytes.
            mask: only wakes that have one of these bits count.
            private: for memory that no other process has.

        A wake that comes together with a cancellation goes to the next waiter.  Since Linux 6.7.  See
        io_uring_prep_futex_wait(3) and futex(2).
        """
        require("futexes")
        held, flags = _word(memory, offset), _flags(private=private)
        request = Waiting([(held, offset)], mask, flags)
        arguments = (lib.AU_OP_FUTEX_WAIT, held, len(held), offset, value & _EVERYBODY, mask, flags, 0)
        try:
            return await (self._driver or self._bound()).perform(request, lib.au_prepare_futex, *arguments) >= 0
        finally:
            request.let_go()

    async def futex_wake(
        self, memory: Bytes, count: int = 1, *, offset: int = 0, mask: int = _EVERYBODY, private: bool = False
    ) -> int:
        """Wake at most `count` of those who wait for the word; returns how many.

        Since Linux 6.7.  See io_uring_prep_futex_wake(3).
        """
        require("futexes")
        if not 1 <= count < 2**31:
            raise ValueError(f"count={count} is outside 1 to {2**31 - 1}")
        held = _word(memory, offset)
        request = Request(hold=held)
        arguments = (lib.AU_OP_FUTEX_WAKE, held, len(held), offset, count, mask, _flags(private=private), 0)
        try:
            return await (self._driver or self._bound()).perform(request, lib.au_prepare_futex, *arguments)
        finally:
            request.let_go()

    async def futex_waitv(self, words: Sequence[tuple[Bytes, int, int]], *, private: bool = False) -> int | None:
        """Wait until one of up to 128 words is told of; returns which, None where one is not its value any more.

        `words` are memory, offset and value of each.  Since Linux 6.7.  See io_uring_prep_futex_waitv(3).
        """
        require("futexes")
        if not 1 <= len(words) <= lib.AU_MAX_FUTEXES:
            raise ValueError(f"{len(words)} words are outside 1 to {lib.AU_MAX_FUTEXES}")
        flags = _flags(private=private)
        vector = ffi.new("struct au_futex_waitv[]", len(words))
        request = Waiting([(_word(memory, offset), offset) for memory, offset, _ in words], _EVERYBODY, flags)
        try:
            for at, (memory, offset) in enumerate(request.words):
                code = lib.au_futex_set(vector + at, memory, len(memory), offset, words[at][2] & _EVERYBODY, flags)
                assert code == 0, code
            request.hold = vector
            arguments = (lib.AU_OP_FUTEX_WAITV, vector, len(words), 0)
            result = await (self._driver or self._bound()).perform(request, lib.au_prepare_futexes, *arguments)
        finally:
            request.let_go()
        return None if result < 0 else result


def _flags(*, private: bool) -> int:
    return lib.AU_FUTEX2_SIZE_U32 | (lib.AU_FUTEX2_PRIVATE if private else 0)


def _word(memory: Bytes, offset: int) -> Any:
    """The memory that a word is in, if it is in it."""
    held, size, lease = memory_of(memory, writable=True)
    if lease is not None:
        raise TypeError(f"{lease!r} goes back to its pool: a futex needs memory of your own, an mmap say")
    address = int(ffi.cast("uintptr_t", held)) + offset
    if not 0 <= offset <= size - 4:
        raise ValueError(f"offset={offset}: no word of 4 bytes is there in a buffer of {size}")
    if address % 4:
        raise ValueError(f"offset={offset} is no multiple of 4 bytes in memory, but {address % 4} beyond one")
    return held
