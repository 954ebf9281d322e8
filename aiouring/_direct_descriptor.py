"""Owns `DirectDescriptor`: one file of a ring's table of registered files, in the place of a descriptor."""

from typing import TYPE_CHECKING, Self

from aiouring._errors import failure
from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._registered_files import RegisteredFiles


class Slot(int):
    """One file in one slot, in the place of a descriptor's number; `how` tells the C core which file is meant.

    As a number it is negative, so no system call takes it for a descriptor.  It equals no other file's, not even
    that of the next file in the same slot.
    """

    table: "RegisteredFiles"
    index: int
    serial: int
    how: int

    def __new__(cls, table: "RegisteredFiles", index: int, serial: int) -> Self:
        """Number `index`, holding the file with `serial`."""
        slot = super().__new__(cls, lib.AU_FIRST_SLOT + index)
        slot.table = table
        slot.index = index
        slot.serial = serial
        slot.how = lib.AU_SQE_FIXED_FILE | serial << 32
        return slot

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and other.serial == self.serial

    def __ne__(self, other: object) -> bool:  # int has one of its own
        return not self == other

    def __hash__(self) -> int:
        return self.serial

    def __repr__(self) -> str:
        return f"slot {self.index}"

    __str__ = __repr__

    @property
    def current(self) -> bool:
        """Whether the slot still holds the file."""
        return self.table.serial(self.index) == self.serial

    def identity(self) -> tuple[int, int]:
        """Which file it is, in a form that no descriptor has; EBADF where the slot does not hold it any more."""
        if not self.current:
            raise failure(lib.AU_BAD_SLOT, fd=self)
        return -1, self.serial


class DirectDescriptor:
    """A registered file, which every verb takes in place of a descriptor.

    It has no descriptor number, and so no `fileno()`: only its ring can use it.  It does not own the slot: the file
    stays in the table until `release()`, `AsyncRing.close()`, an update, or the table's end.  Two are equal if they
    stand for the same file in the same slot.
    """

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot  # stands for this in requests; the C core finds out whether the file is still there

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DirectDescriptor) and other.slot == self.slot

    def __hash__(self) -> int:
        return hash(self.slot)

    def __repr__(self) -> str:
        return f"<DirectDescriptor {self.index} of {self.slot.table!r}>"

    @property
    def index(self) -> int:
        """The slot's place in the table."""
        return self.slot.index

    @property
    def table(self) -> "RegisteredFiles":
        """The table the slot is in."""
        return self.slot.table

    @property
    def closed(self) -> bool:
        """Whether the slot no longer holds this file."""
        return not self.slot.current

    @property
    def family(self) -> int:
        """The socket's address family; 0 where it is not known: the file came as a number, or is no socket."""
        return self.slot.table.socket_of(self.slot)[0]

    @property
    def type(self) -> int:
        """The socket's type, or 0."""
        return self.slot.table.socket_of(self.slot)[1]

    @property
    def proto(self) -> int:
        """The socket's protocol, or 0."""
        return self.slot.table.socket_of(self.slot)[2]

    def release(self) -> None:
        """Empty the slot, without waiting; does nothing where it no longer holds this file.

        Requests in flight go on with the file, as they do when a descriptor is closed; what is queued and not
        submitted yet gets EBADF.  `AsyncRing.close()` stops them first.
        """
        if self.slot.current:
            self.table.update(self.index, [None])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
