"""Owns the requests that make descriptors, and those that change the table of registered files.

Ownership.  Whoever fills or empties a slot reserves it when the request is made, and settles it when the request has
ended, however that was (see `_registered_files`).  What the request brought although nobody waits any more is closed
again.  The array that the kernel reads descriptors from, or writes slots to, belongs to the request.
"""

import errno
import os
from typing import TYPE_CHECKING, Any

from aiouring._direct_descriptor import DirectDescriptor, Slot
from aiouring._errors import kernel_error
from aiouring._registered_files import EMPTY, SKIP, RegisteredFiles, number_of
from aiouring._request import POLL_IN, Accept, Leftovers, Request, identify
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiouring._verbs import File

_NOT_STARTED = -errno.ECANCELED  # the result of a request that never was the kernel's


class Open(Accept):
    """What makes an ordinary descriptor; one that nobody takes is closed.

    EAGAIN is about what is being opened (a lease on it), and there is nothing yet to poll.
    """

    __slots__ = ()
    events = 0


class OpenPipe(Request):
    """What makes two ordinary descriptors, in its array; those that nobody takes are closed."""

    __slots__ = ()
    events = 0

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Close both."""
        if self.result >= 0:
            for at in range(2):
                os.close(self.hold[at])


class Install(Request):
    """A request whose result goes into the table: into `count` slots from `index` on, or where the kernel likes."""

    __slots__ = ("count", "index", "reserved", "table")
    events = 0

    def __init__(
        self,
        table: RegisteredFiles,
        index: int | None,
        fd: int = -1,
        file: Any = None,
        hold: Any = None,
        count: int = 1,
    ) -> None:
        super().__init__(fd, file, hold)
        self.table = table
        self.index = index
        self.count = count
        self.result = _NOT_STARTED
        if index is None:
            table.reserve_any()
        else:
            table.reserve_empty(index, count)
        self.reserved = True

    @property
    def slot(self) -> int:
        """The slot as the C core takes it."""
        return lib.AU_FILE_INDEX_ALLOC if self.index is None else self.index

    def filled(self) -> list[int]:
        """The slots that hold a new file."""
        if self.result < 0:
            return []
        return [self.result] if self.index is None else [self.index]

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Close what came: nobody knows of it."""
        for index in self.filled():
            self.table.discard(index)

    def let_go(self) -> None:
        """The slots are not busy any more."""
        if self.ended and self.reserved:
            self.reserved = False
            if self.index is None:
                self.table.settle_any()
            else:
                for index in range(self.index, self.index + self.count):
                    self.table.settle(index)

    def claim(self, kind: tuple[int, int, int] | None = None) -> list[DirectDescriptor]:
        """The new files, now the caller's."""
        self.let_go()
        return [self.table.place(index, kind) for index in self.filled()]


class InstallConnection(Install):
    """An accept: where the kernel says EAGAIN there is something to poll."""

    __slots__ = ()
    events = POLL_IN


class InstallArray(Install):
    """A request that says in its array which slots it took."""

    __slots__ = ()

    def filled(self) -> list[int]:
        """The slots that hold a new file: all of a pipe's, or as many as the result says."""
        if self.result < 0:
            return []
        if self.index is not None:
            return list(range(self.index, self.index + self.count))
        return [self.hold[at] for at in range(self.result or self.count)]


class Sources:
    """The files that a queued update names by number, so that it never registers one that took a number over.

    It stands in for the file of the request: the driver asks `fileno()` right before it submits.
    """

    def __init__(self, files: "Sequence[File | None]", numbers: list[int], array: Any) -> None:
        self._array = array
        self._noted = []
        for at, (number, file) in enumerate(zip(numbers, files, strict=True)):
            if number >= 0:
                try:
                    self._noted.append((at, number, file, identify(number)))
                except OSError as error:
                    raise kernel_error(error.errno or errno.EBADF, f"files[{at}] is descriptor {number}") from None

    def fileno(self) -> int:
        """The request has no file of its own; a descriptor that is not what it was is taken out of the array."""
        for at, number, file, identity in self._noted:
            try:
                if identify(number) == identity and (isinstance(file, int) or number_of(file) == number):
                    continue
            except (OSError, ValueError):
                pass  # closed
            self._array[at] = lib.AU_FIRST_SLOT  # no descriptor: the kernel stops here with EBADF
        return -1


class Update(Request):
    """An asynchronous update of slots; what is in each of them is in doubt until it has ended."""

    __slots__ = ("before", "index", "numbers", "table")

    def __init__(self, table: RegisteredFiles, index: int, files: "Sequence[File | None]") -> None:
        self.numbers = table.check_update(index, files)
        array = ffi.new("int32_t[]", self.numbers)
        super().__init__(-1, Sources(files, self.numbers, array), array)
        self.result = _NOT_STARTED
        self.table = table
        self.index = index
        self.before: dict[int, int] | None = {
            at: table.reserve(at, fills=number >= 0) for at, number in enumerate(self.numbers, index) if number != SKIP
        }

    def let_go(self) -> None:
        """Say what is in the slots now: the kernel empties the one where it stopped (see `update_error`)."""
        before, self.before = self.before if self.ended else None, None if self.ended else self.before
        if before is None:
            return
        done = len(self.numbers) if self.result < 0 else self.result
        if self.result < 0:
            done = -1 if self.result == _NOT_STARTED else 0
        for at, serial in before.items():
            entry = at - self.index
            if entry < done:
                self.table.settle(at, lib.AU_SLOT_FILLED if self.numbers[entry] != EMPTY else 0)
            else:
                self.table.settle(at, 0 if entry == done else serial)


class CloseSlot(Request):
    """A close of a slot: one that was cancelled before it began is done here, or the slot would stay filled."""

    __slots__ = ("index", "table")

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        slot.identity()  # EBADF where somebody else was quicker
        self.result = _NOT_STARTED
        self.index = slot.index
        self.table: RegisteredFiles | None = slot.table
        self.table.reserve(slot.index, fills=False)

    def let_go(self) -> None:
        """Close what the kernel did not; the slot is empty."""
        if self.ended and self.table is not None:
            table, self.table = self.table, None
            if self.result == _NOT_STARTED:
                self.result = 0
                table.discard(self.index)
            table.settle(self.index)
