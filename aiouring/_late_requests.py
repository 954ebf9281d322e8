"""Owns `Late`: a request whose file the kernel looks up when a worker comes to run it, not when it is submitted.

Which they are (measured on Linux 6.18, by giving the descriptor's number to another file right after submission, 50
or 200 times each): fsync, sync_file_range, fallocate, ftruncate, fadvise, the attributes of an open file, whatever is
sent to a worker (ASYNC), and what follows another request in a chain, met the other file every time.  Reads and
writes that are not sent to a worker find their file at submission, and keep it, also where a worker ends them.

Ownership.  So the file must keep its number until such a request has ended.

1. A slot of the table of registered files is *used* by it: it cannot be changed before.
2. Of a descriptor, whoever closes it must await the request first; `AsyncRing.close()` does.  A duplicate would be
   ours alone, but closing it would release the process's record locks on the file (fcntl(2)): it would harm programs
   that do nothing wrong, to protect those that do.
"""

from typing import TYPE_CHECKING, Any

from aiouring._direct_descriptor import Slot
from aiouring._request import Write
from aiouring._uring import lib
from aiouring._verbs import resolve

if TYPE_CHECKING:
    from aiouring._lease import Lease
    from aiouring._verbs import File, Verbs


class Late(Write):
    """A request that finds its file late; `kept` is whatever else it points to."""

    __slots__ = ("_used", "kept")

    def __init__(self, fd: int, file: Any, hold: Any = None, lease: "Lease | None" = None) -> None:
        super().__init__(fd, file, hold, lease)
        self.kept: Any = None
        self.ended = True  # the kernel has nothing yet
        self._used: Slot | None = None
        if isinstance(fd, Slot):
            fd.table.use(fd.index)
            self._used = fd

    def let_go(self) -> None:
        """The slot can be changed again, if the kernel is done; and the caller's memory is free."""
        used = self._used
        if self.ended and used is not None:
            self._used = None
            used.table.end_use(used.index)
        super().let_go()


async def perform_late(
    ring: "Verbs", file: "File", opcode: int, offset: int, address: int, length: int, flags: int
) -> int:
    """Perform a request without memory that finds its file late; returns its result."""
    number, held, how = resolve(file)
    request = Late(number, held)
    try:
        driver = ring._driver or ring._bound()
        return await driver.perform(request, lib.au_prepare, opcode, number, offset, address, length, flags, how)
    finally:
        request.let_go()
