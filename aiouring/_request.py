"""Owns `Request`: something in flight, what must outlive the kernel's use of it, and who waits.

Ownership.  A request holds everything the kernel may touch (an export of the caller's buffer, a lease, a
socket) from before its entry is filled until its final completion, whoever has stopped waiting by then.
The driver's table holds the request.  Nothing else frees that memory, so "the request is in the table" and
"the kernel may write" are the same statement.

A request's `user_data` is a number that is never used twice in the life of a ring: a late completion can
name no other request, and no generation count is needed.  (DESIGN.md had slots with generations; a dict
keyed by a 64-bit count is simpler, and as fast from Python.)

A result may come when nobody wants it any more, because the awaiting task was cancelled.  What happens
then depends on the operation, and is the only thing the subclasses here differ in: `unclaimed()`.
"""

import errno
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from aiouring._direct_descriptor import Slot
from aiouring._errors import kernel_error, note_written
from aiouring._objects import RequestRow
from aiouring._uring import ffi, lib

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiouring._buffer_ring import BufferRing
    from aiouring._lease import Lease

POLL_IN: int = select.POLLIN
POLL_OUT: int = select.POLLOUT


class Request(RequestRow):
    """One request.  `file` is the Python object that owns `fd`, None where the caller gave a number.

    `user_data` is there from the start on, `pinned` where there is a lease.
    """

    __slots__ = ()

    #: What to poll for when the kernel says EAGAIN, as kernels before 5.7 do for O_NONBLOCK files; 0: it is an error.
    events = POLL_IN
    #: The errno the caller deals with itself, as a negative result.
    expected = 0
    #: The group a receive takes its buffer from.
    group: "BufferRing | None" = None
    #: What the C core is to know of it by its user_data.
    tag = 0
    #: Takes each completion of a request that has several, or that nobody awaits.
    arrived: "Callable[[int, int], None] | None" = None

    def __repr__(self) -> str:
        state = f"ended {self.result}" if self.ended else ("awaited" if self.waiter else "detached")
        return f"<{type(self).__name__} {self.user_data} fd={self.fd} {state}>"

    def end(self) -> "asyncio.Future[int] | None":
        """What resolves when the kernel is done with the request, if anybody is to be told."""
        return self.waiter

    def noted(self, result: int) -> None:
        """A completion that another follows: the kernel still has the request's memory."""

    def check_file(self) -> None:
        """Raise `OSError` (EBADF) where the descriptor stands for another file than it did in the beginning."""

    def cut_short(self, error: BaseException) -> None:
        """Whoever awaited the request leaves with `error`; the kernel is done with it, unless it would not stop."""

    def failed(self, error: Exception) -> None:
        """The ring is lost: there will be no completion.  Whoever awaits the request has been told."""

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """The result came, and whoever waited for it was cancelled."""

    def let_go(self) -> None:
        """End the export of the caller's buffer now.

        A request that ends with an exception is kept by its traceback, for as long as somebody keeps the
        task; the caller's bytearray would stay locked as long.
        """
        if self.ended and self.hold is not None and self.lease is None:
            ffi.release(self.hold)
            self.hold = None


class OfParts(Request):
    """Mixed into a request on several buffers: `hold` is the message, `parts` the exports of what it points to."""

    __slots__ = ()
    parts: list[Any]

    def let_go(self) -> None:
        """End the exports of the caller's buffers."""
        if self.ended:
            while self.parts:
                ffi.release(self.parts.pop())
            super().let_go()


class Write(Request):
    """Sends and writes: on EAGAIN they wait for room."""

    __slots__ = ()
    events = POLL_OUT

    def cut_short(self, error: BaseException) -> None:
        """Note how many bytes were written all the same."""
        note_written(error, max(0, self.result) if self.ended else None)


class Now(Request):
    """A read at an offset that is not to wait."""

    __slots__ = ()
    events = 0


class WriteNow(Write):
    """A write that is not to wait."""

    __slots__ = ()
    events = 0


class ZeroCopy(Write):
    """A send whose memory the kernel keeps after its result, until a second completion, the notification.

    That one's result is 0, or `copied`: the kernel had to copy after all.
    """

    __slots__ = ("sent",)
    copied = -(1 << 31)
    expected = -copied  # it is no error

    def __init__(self, fd: int, file: Any, hold: Any, lease: "Lease | None") -> None:
        super().__init__(fd, file, hold, lease)
        self.sent: int | None = None

    def noted(self, result: int) -> None:
        """The result; the notification follows."""
        self.sent = result

    def cut_short(self, error: BaseException) -> None:
        """Note how many bytes were sent: the final result is the notification's, or else an error."""
        note_written(error, max(0, self.sent or 0) if self.ended or self.sent is not None else None)


class ZeroCopyMessage(OfParts, ZeroCopy):
    """The same from several places."""

    __slots__ = ("parts",)


class Timeout(Request):
    """A timer: ETIME is how it succeeds."""

    __slots__ = ()
    expected = errno.ETIME


class Close(Request):
    """A close: one that was cancelled before it began is done here, or the descriptor would leak."""

    __slots__ = ()

    def let_go(self) -> None:
        """Close what the kernel did not."""
        if self.ended and self.result == -errno.ECANCELED:
            self.result = 0
            os.close(self.fd)


class Accept(Request):
    """An accept: a connection that nobody takes is closed, so that its peer sees the end."""

    __slots__ = ()

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Close the connection."""
        if self.result >= 0:
            os.close(self.result)


class Receive(Request):
    """A receive into the caller's memory: bytes that nobody takes go to the next receive."""

    __slots__ = ()

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Copy the bytes: the memory is the caller's again.  No bytes may be a message, too."""
        if self.result > 0 or (self.result == 0 and keeps_boundaries(self.fd)):
            leftovers.keep(self.fd, ffi.buffer(self.hold, self.result)[:])


class Read(Receive):
    """A read at the file's own position: put the position back, or keep the bytes of a pipe."""

    __slots__ = ()

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Undo the read where the file can seek, else keep its bytes."""
        if self.result >= 0:
            try:
                os.lseek(self.fd, -self.result, os.SEEK_CUR)
            except OSError:
                super().unclaimed(leftovers)


class ReadNow(Read):
    """A read at the file's own position that is not to wait."""

    __slots__ = ()
    events = 0


class ProvidedReceive(Request):
    """A receive into a buffer of a group: bytes that nobody takes go to the next receive."""

    __slots__ = ("group",)
    expected = errno.ENOBUFS
    #: What it is, for the text of an error.
    doing = "receive"

    def __init__(self, fd: int, file: Any, group: "BufferRing") -> None:
        self.fd = fd  # all of Request.__init__, without the call
        self.file = file
        self.hold = self.lease = self.waiter = None
        self.result = self.flags = 0
        self.ended = False
        self.group: BufferRing = group

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Copy the bytes and give the buffer back: a socket nobody reads must not hold one for ever."""
        if self.result > 0:
            with self.group.take(self.flags, self.result) as chunk:
                leftovers.keep(self.fd, bytes(chunk.view))
        elif self.result == 0 and keeps_boundaries(self.fd):
            leftovers.keep(self.fd, b"")  # an empty message; `let_go()` gives back the buffer that it may have taken

    def let_go(self) -> None:
        """Give back a buffer that came without bytes: with an error, or an empty datagram."""
        if self.ended and self.result <= 0 and self.flags & lib.AU_CQE_F_BUFFER:
            flags, self.flags = self.flags, 0
            self.group.put_back(flags, failed=self.result < 0)


class ProvidedRead(ProvidedReceive):
    """A read into a buffer of a group: one at the file's own position is undone, or its bytes are kept."""

    __slots__ = ("at_position",)
    doing = "read"

    def __init__(self, fd: int, file: Any, group: "BufferRing", *, at_position: bool) -> None:
        super().__init__(fd, file, group)
        self.at_position = at_position

    def unclaimed(self, leftovers: "Leftovers") -> None:
        """Undo the read where the file can seek, else keep its bytes; give the buffer back."""
        if self.result >= 0:
            try:
                if self.at_position:
                    os.lseek(self.fd, -self.result, os.SEEK_CUR)
            except OSError:
                super().unclaimed(leftovers)
            else:
                if self.result:
                    self.group.take(self.flags, 0).release()


class Kept(bytes):
    """What came for a receive that was cancelled: a message as it came, where `whole`, and what came beside it.

    Descriptors among that are closed when nobody takes them.
    """

    whole = False
    size = 0  # bytes of a message before it was cut off, where that is known
    name = b""  # from whom
    name_cut = False
    flags = 0
    descriptors: tuple[int, ...] = ()
    ancillary: tuple[tuple[int, int, bytes], ...] = ()

    def copy(self, data: bytes) -> "Kept":
        """The same beside other bytes, without the descriptors: they have one owner."""
        kept = Kept(data)
        kept.name, kept.name_cut, kept.flags, kept.ancillary = self.name, self.name_cut, self.flags, self.ancillary
        return kept

    def close_descriptors(self) -> None:
        """Close what nobody took."""
        descriptors, self.descriptors = self.descriptors, ()
        for number in descriptors:
            os.close(number)

    def __del__(self) -> None:
        self.close_descriptors()


class Leftovers:
    """What arrived for a receive which had been cancelled, until the next receive on that file.

    Kept under the descriptor's number (or the slot's) together with the file's identity, so that a file which gets
    the number later never sees it.  Bytes of a stream are joined, messages are not.
    """

    def __init__(self) -> None:
        self.kept: dict[int, tuple[tuple[int, int], deque[bytes]]] = {}

    def keep(self, fd: int, data: bytes, *, apart: bool = False) -> None:
        """Keep `data` for the next receive on `fd`, behind what is kept already; datagrams are kept apart."""
        try:
            identity = identify(fd)
        except OSError:
            return  # closed: no receive will follow
        if not isinstance(data, Kept) and (apart or keeps_boundaries(fd)):
            data = Kept(data)
            data.whole = True
        known, queue = self.kept.get(int(fd), (identity, deque[bytes]()))
        if known != identity:
            queue = deque()
        if queue and not isinstance(data, Kept) and not isinstance(queue[-1], Kept):
            data = queue.pop() + data
        queue.append(data)
        self.kept[int(fd)] = (identity, queue)

    def take(self, fd: int, most: int) -> bytes | None:
        """The first `most` bytes kept for `fd`, or of the first message, taken out; None if there are none."""
        while (data := self.take_message(fd, most)) is not None:
            if data or not most or (isinstance(data, Kept) and data.whole):  # else it is control data alone
                return data[:most]
        return None

    def take_message(self, fd: int, most: int, *, peek: bool = False) -> bytes | None:
        """The first message kept for `fd`, taken out whole, or `most` bytes of a stream; None if there is nothing."""
        entry = self.kept.pop(int(fd), None)
        if entry is None or entry[0] != identify(fd):
            return None
        queue = entry[1]
        data = queue[0] if peek else queue.popleft()
        whole = isinstance(data, Kept) and data.whole
        if len(data) > most and not whole and not peek:
            queue.appendleft(data[most:])
        if queue:
            self.kept[int(fd)] = entry
        return data if isinstance(data, Kept) else data[:most]

    def forget(self, fd: int) -> None:
        """The file is being closed."""
        self.kept.pop(int(fd), None)


def keeps_boundaries(fd: int) -> bool:
    """Whether a file is a socket for messages rather than for a stream of bytes."""
    if isinstance(fd, Slot):
        kind = fd.table.socket_of(fd)[1]
    else:
        try:
            kind = socket_kind(fd)[1]
        except OSError:
            return False
    return kind not in (0, socket.SOCK_STREAM)


def socket_kind(fd: int) -> tuple[int, int, int]:
    """Family, type and protocol of a socket; raises `OSError` (ENOTSOCK, EBADF) where the descriptor is none."""
    kind = ffi.new("int32_t[3]")
    code = lib.au_socket_kind(fd, kind)
    if code < 0:
        raise kernel_error(-code, f"descriptor {fd}")
    return kind[0], kind[1], kind[2]


def identify(fd: int) -> tuple[int, int]:
    """Which file a descriptor stands for: its device and inode, or what a slot has in their place."""
    if isinstance(fd, Slot):
        return fd.identity()
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
