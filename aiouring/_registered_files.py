"""Owns `RegisteredFiles` and `DirectDescriptor`: the kernel's table of registered files, and one file in it.

A request on a registered file names a slot of the table instead of a descriptor, which saves the kernel looking
the descriptor up and holding the file for each request.  The kernel has a reference of its own to each file: the
descriptor or object that it was registered from may be closed at once.

Ownership.  A slot is empty, holds a file, or is *busy*: a request in flight is going to fill or to empty it.  The C
core keeps the serial of the file in each slot (0 while it is empty or busy), and refuses a request that means
another file than the one that is there; see files.c.  What the kernel fills by its own choice (allocation) we learn
from the completion, so until then a slot that looks empty may not be.  Hence the rules, each of which is checked:

1. A busy slot cannot be changed.  Nor can one that is *used*: a request in flight will look its file up when it runs
   (see `_late_requests`).
2. While the kernel is choosing slots, nobody else fills or empties one that looks empty and that it may choose;
   and it does not choose while a slot in its reach is busy being filled.  `set_allocation_range()` keeps the slots
   that a program fills by number out of the kernel's reach.
3. A new table is not registered before the requests that were to change the old one have ended.
"""

import errno
import os
import resource
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from aiouring._abi import Features
from aiouring._direct_descriptor import DirectDescriptor, Slot
from aiouring._errors import (
    FilesUpdateError,
    ResourceBusyError,
    RingClosedError,
    failure,
    kernel_error,
    unsupported,
)
from aiouring._ring import CoreRing, check_size
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    from aiouring._verbs import File

EMPTY, SKIP = lib.AU_FILES_EMPTY, lib.AU_FILES_SKIP
MAX_FILES = lib.AU_MAX_FILES


@dataclass(frozen=True, slots=True)
class RegisteredFilesStatistics:
    """How a table of registered files is used; counts of slots unless said otherwise."""

    count: int
    in_use: int
    busy: int  # a request in flight is going to fill or to empty them
    allocating: int  # requests in flight for which the kernel picks slots
    allocation_range: tuple[int, int]  # the first slot it may pick, and how many


class RegisteredFiles:
    """The table of registered files; made by `AsyncRing.register_files()` and `register_files_sparse()`.

    `files[index]` is a `DirectDescriptor`.  Leaving the `with` block unregisters the table.  Since Linux 5.5.  See
    io_uring_register_files(3).
    """

    #: In `update()`: leave this slot as it is.  Since Linux 5.12.
    SKIP: Final = SKIP

    def __init__(self, ring: CoreRing, files: "Sequence[File | None]") -> None:
        check_size("count", len(files), MAX_FILES)
        numbers = [number_of(file) for file in files]
        if SKIP in numbers:
            raise ValueError("SKIP is for update(): a new table has nothing to leave as it is; None makes a gap")
        self._ring = ring
        code = lib.au_files_register(ring.raw, ffi.new("int32_t[]", numbers), len(numbers))
        if code < 0:
            raise _registration_error(code, numbers)
        self._count = len(numbers)
        self._registered = True
        self._range = (0, len(numbers))
        self._busy: dict[int, bool] = {}  # slot: whether the request in flight is going to fill it
        self._used: dict[int, int] = {}  # slot: how many requests in flight will look it up
        self._allocating = 0
        self._sockets: dict[int, tuple[int, tuple[int, int, int]]] = {}  # slot: serial; family, type, protocol
        self._note_sockets(0, files)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<RegisteredFiles {self._count} slots{'' if self.registered else ', unregistered'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    def __getitem__(self, index: int) -> DirectDescriptor:
        if not -self._count <= index < self._count:
            raise IndexError(f"index={index} is outside this table of {self._count} files")
        index %= self._count
        self._check_registered()
        serial = self.serial(index)
        if not serial:
            state = "in use by a request in flight" if index in self._busy else "empty"
            raise kernel_error(errno.EBADF, f"slot {index} is {state}")
        return DirectDescriptor(Slot(self, index, serial))

    def __iter__(self) -> Iterator[DirectDescriptor]:
        return (descriptor for descriptor in self.slots() if descriptor is not None)

    def slots(self) -> list[DirectDescriptor | None]:
        """Each slot in order: its file, or None where there is none (yet)."""
        self._check_registered()
        serials = [self.serial(index) for index in range(self._count)]
        return [DirectDescriptor(Slot(self, at, serial)) if serial else None for at, serial in enumerate(serials)]

    @property
    def registered(self) -> bool:
        """Whether the kernel still has the table."""
        return self._registered and not self._ring.closed

    def serial(self, index: int) -> int:
        """The serial of the file in a slot; 0 for none, and where the table is gone."""
        if not self.registered:
            return 0
        code = lib.au_slot_serial(self._ring.raw, index)
        if code < 0:
            raise failure(code)
        return code

    def update(self, index: int, files: "Iterable[File | None]") -> int:
        """Put `files` into the slots from `index` on; None empties a slot, `SKIP` leaves it as it is.

        Returns how many entries there were.  Requests in flight go on with the file that they were made for; what is
        queued and not submitted yet on a slot that changes gets EBADF, never the new file.

        Raises:
            FilesUpdateError: the kernel refused one of the files; the text and `updated` say what has changed.
            ResourceBusyError: a request in flight is changing one of the slots, or may choose it.

        Since Linux 5.5, `SKIP` since 5.12.  See io_uring_register_files_update(3).
        """
        given = list(files)
        numbers = self.check_update(index, given)
        code = lib.au_files_update(self._ring.raw, index, ffi.new("int32_t[]", numbers), len(numbers))
        if code < 0 and code in (lib.AU_CLOSED, lib.AU_FORKED, lib.AU_WRONG_THREAD, lib.AU_BAD_SLOT):
            raise failure(code)
        done = max(code, 0)
        self._note_sockets(index, given[:done])
        if done < len(numbers):
            raise update_error(index, numbers, done, min(code, 0))
        return done

    def check_update(self, index: int, files: "Sequence[File | None]") -> list[int]:
        """The numbers of `files`, if the slots from `index` on may be changed now."""
        self._check_registered()
        numbers = [number_of(file) for file in files]
        self._check_slots(index, len(numbers))
        if SKIP in numbers and not self._ring.features & Features.NATIVE_WORKERS:
            raise unsupported("leaving slots as they are (SKIP)", "5.12")
        for at, number in enumerate(numbers, index):
            if number != SKIP:
                self._check_changeable(at)
        return numbers

    def set_allocation_range(self, offset: int, length: int) -> None:
        """Let the kernel pick slots only from `length` slots from `offset` on; the rest is filled by number.

        Raises:
            ResourceBusyError: requests for which the kernel picks a slot are in flight.

        Since Linux 6.0.  See io_uring_register_file_alloc_range(3).
        """
        self._check_registered()
        self._check_slots(offset, length)
        if self._allocating:
            raise ResourceBusyError(f"{self._allocating} request(s) in flight are having slots allocated: await them")
        argument = ffi.new("struct au_file_index_range *", {"off": offset, "len": length})
        code = lib.au_ring_register(self._ring.raw, lib.AU_REGISTER_FILE_ALLOC_RANGE, argument, 0)
        if code == -errno.EINVAL:  # our own checks have passed
            raise unsupported("a range for the allocation of slots", "6.0")
        if code < 0:
            raise failure(code, "setting the allocation range")
        self._range = (offset, length)

    def unregister(self) -> None:
        """Take the table back from the kernel; idempotent.

        Requests in flight go on with their files; what is queued on a slot and not submitted yet gets EBADF.  A file
        that a request in flight would have put into the table is closed, and whoever awaits it gets `RingClosedError`.
        """
        if not self._registered:
            return
        code = lib.au_files_unregister(self._ring.raw)
        if code < 0 and code != lib.AU_CLOSED:
            raise failure(code, "unregistering the files")
        self._registered = False
        self._sockets.clear()

    def statistics(self) -> RegisteredFilesStatistics:
        """How many slots hold a file, and how many are about to."""
        used = lib.au_slots_used(self._ring.raw) if self.registered else 0
        if used < 0:
            raise failure(used)
        return RegisteredFilesStatistics(self._count, used, len(self._busy), self._allocating, self._range)

    # ---- what requests in flight do to slots (see the header) ----------------------------------------------------

    @property
    def changing(self) -> int:
        """How many slots and allocations requests in flight are busy with, or use."""
        return len(self._busy) + self._allocating + len(self._used)

    def use(self, index: int) -> None:
        """A request will look the slot up when it runs: until `end_use()`."""
        self._used[index] = self._used.get(index, 0) + 1

    def end_use(self, index: int) -> None:
        """A request that was to look the slot up has ended."""
        left = self._used.pop(index) - 1
        if left:
            self._used[index] = left

    def reserve_any(self) -> None:
        """The kernel is going to pick slots: until `settle_any()`."""
        self._check_registered()
        first, length = self._range
        filled = [at for at, fills in self._busy.items() if fills and first <= at < first + length]
        if filled:
            raise ResourceBusyError(
                f"slot {filled[0]} is being filled by number, and the kernel might pick it: await that request, or use "
                "set_allocation_range() to keep slots that are filled by number apart"
            )
        self._allocating += 1

    def settle_any(self) -> None:
        """A request for which the kernel picked slots has ended."""
        self._allocating -= 1

    def reserve_empty(self, index: int, count: int) -> None:
        """A request is going to fill `count` slots from `index` on, all of them empty: until `settle()`."""
        self._check_registered()
        self._check_slots(index, count)
        for at in range(index, index + count):
            self._check_changeable(at)
            if self.serial(at):
                raise ResourceBusyError(
                    f"slot {at} holds a file already: close it first, or put another in its place with update()"
                )
        self._busy.update(dict.fromkeys(range(index, index + count), True))

    def reserve(self, index: int, *, fills: bool) -> int:
        """A request is going to change this slot: until `settle()`.  Returns the serial of what is in it."""
        self._check_changeable(index)
        serial = self.serial(index)
        self._busy[index] = fills
        if serial:
            self._set(index, 0)
        return serial

    def settle(self, index: int, serial: int = 0) -> None:
        """The request that was to change the slot has ended; `serial` is what is there now, where that is known.

        The kernel may have picked the slot for another request in the meantime, whose completion came first.
        """
        self._busy.pop(index, None)
        if serial and self.registered and not self.serial(index):
            self._set(index, serial)

    def place(self, index: int, kind: tuple[int, int, int] | None = None) -> DirectDescriptor:
        """The kernel has put a file into a slot, a socket of this `kind` perhaps; returns it."""
        if not self.registered:
            raise RingClosedError("the registered files were unregistered while a file was put into their table")
        serial = self._set(index, lib.AU_SLOT_FILLED)
        if kind:
            self._sockets[index] = serial, kind
        return DirectDescriptor(Slot(self, index, serial))

    def discard(self, index: int) -> None:
        """Empty a slot that a request filled, or should have emptied, and that nobody knows of."""
        if self.registered:
            lib.au_files_update(self._ring.raw, index, ffi.new("int32_t[]", [EMPTY]), 1)

    def socket_of(self, slot: Slot) -> tuple[int, int, int]:
        """The family, type and protocol of a socket in the table, as far as they are known."""
        serial, kind = self._sockets.get(slot.index, (0, (0, 0, 0)))
        return kind if serial == slot.serial else (0, 0, 0)

    def _note_sockets(self, index: int, files: "Sequence[File | None]") -> None:
        for at, file in enumerate(files, index):
            if isinstance(file, socket.socket):
                self._sockets[at] = self.serial(at), (file.family, file.type, file.proto)

    def _set(self, index: int, serial: int) -> int:
        code = lib.au_slot_set(self._ring.raw, index, serial)
        if code < 0:
            raise failure(code)
        return code

    def _check_registered(self) -> None:
        code = lib.au_ring_check(self._ring.raw)
        if code < 0:
            raise failure(code)
        if not self._registered:
            raise RingClosedError("the registered files have been unregistered")

    def _check_slots(self, index: int, count: int) -> None:
        if index < 0 or count < 0 or index + count > self._count:
            raise ValueError(f"{count} slot(s) from {index} on are not all in this table of {self._count} files")
        if count == 0:
            raise ValueError("no slots are named: at least one is needed")

    def _check_changeable(self, index: int) -> None:
        if index in self._busy:
            raise ResourceBusyError(f"slot {index} is being changed by a request in flight: await it first")
        if index in self._used:
            raise ResourceBusyError(
                f"{self._used[index]} request(s) in flight will look slot {index} up when they run (a flush, say), and "
                "would meet another file: await them, or AsyncRing.close() or cancel() the direct descriptor first"
            )
        first, length = self._range
        if self._allocating and first <= index < first + length and not self.serial(index):
            raise ResourceBusyError(
                f"the kernel may pick slot {index} for one of {self._allocating} request(s) in flight: await them, or "
                "use set_allocation_range() to keep slots that are filled by number apart"
            )


def number_of(file: "File | None") -> int:
    """What goes into the kernel's array for an entry of the caller's list."""
    if file is None:
        return EMPTY
    if isinstance(file, DirectDescriptor):
        raise TypeError(f"{file!r} has no descriptor to register: get one with fixed_fd_install() first")
    number = file if isinstance(file, int) else file.fileno()
    if isinstance(file, int) and number in (EMPTY, SKIP):
        return number
    if not 0 <= number < 2**31:
        raise kernel_error(errno.EBADF, "the file has been closed" if number == -1 else f"descriptor {number}")
    return number


def _registration_error(code: int, numbers: list[int]) -> Exception:
    """The exception for a refused table: which of the files, or which limit."""
    if code == -errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return OSError(
            errno.EMFILE,
            f"registering {len(numbers)} files: a table may have as many as RLIMIT_NOFILE allows descriptors, {soft} "
            f"(hard limit: {hard}); raise it (ulimit -n, LimitNOFILE= in a systemd unit, resource.setrlimit), or "
            "register fewer",
        )
    if code == -errno.EBADF:
        at = next((at for at, number in enumerate(numbers) if number >= 0 and not _is_open(number)), None)
        which = "one of them is an io_uring" if at is None else f"files[{at}] is descriptor {numbers[at]}"
        return kernel_error(errno.EBADF, f"registering {len(numbers)} files: {which}")
    return failure(code, f"registering {len(numbers)} files")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def update_error(index: int, numbers: list[int], done: int, code: int) -> FilesUpdateError:
    """The exception for an update that stopped at entry `done`.

    The kernel does not say why it stopped where it had done some; that it does not know the descriptor is the one
    reason there is.  It empties a slot before it looks at the file for it.
    """
    at, last = index + done, index + len(numbers) - 1
    changed = f"slots {index} to {at - 1} are as asked, " if done else ""
    rest = f", slots {at + 1} to {last} are as before" if at < last else ""
    what: Any = f"descriptor {numbers[done]} for slot {at} was refused (closed, or an io_uring)"
    error = FilesUpdateError(-code or errno.EBADF, f"{what}: {changed}slot {at} is empty now{rest}")
    error.updated = done
    return error
