"""Owns what all verbs share: how a file, a buffer and an offset are named, and the way to the driver."""

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from aiouring._address import pack_address
from aiouring._buffer_ring import BufferRing, OnEmpty, ProvidedBuffer
from aiouring._claims import check_free, known, look_at
from aiouring._direct_descriptor import DirectDescriptor
from aiouring._driver import Driver
from aiouring._errors import ResourceBusyError, RingClosedError, kernel_error
from aiouring._lease import Lease
from aiouring._multishot import Receiving
from aiouring._received_message import ProvidedMessage
from aiouring._request import Now, ProvidedReceive, Read, ReadNow, Request, Write, WriteNow, identify, socket_kind
from aiouring._uring import ffi, lib


class HasFileno(Protocol):
    """An open file, socket or pipe."""

    def fileno(self) -> int:
        """Its descriptor."""


File: TypeAlias = int | HasFileno | DirectDescriptor
Bytes: TypeAlias = Any  # any C-contiguous buffer: bytes, bytearray, memoryview, array, mmap, numpy array ...


class Verbs:
    """The base of the classes that verbs are in; `AsyncRing` is all of them together."""

    _driver: Driver | None
    #: Who receives from what has a descriptor's number: a stream's `Receiving`, or a verb's file, None if that has but
    #: the number.  Who goes on after the number became another file's is noted no more, once that one is received from.
    _receiving: "dict[Any, Any]"

    def _bound(self) -> Driver:
        """The driver; the first use binds the ring to the running loop and its thread."""
        raise NotImplementedError

    async def _after_stream(self, sock: "File", number: int) -> None:
        """Wait for the end of a stream on `sock` that is being closed; any other receive has the socket."""
        while self._is_received_from(number):
            receiving = self._receiving[number]
            end = receiving.end() if isinstance(receiving, Receiving) and receiving.closing else None
            if end is None:
                raise busy(sock)
            await end

    def _is_received_from(self, number: int) -> bool:
        """Whether who is noted under a descriptor's number receives from the file that has it now."""
        return number in self._receiving and _has(self._receiving[number], number)

    def _check_for_stream(self, sock: "File", number: int, file: Any) -> None:
        """Raise where a receive is to stay armed on a socket that is somebody else's."""
        if isinstance(file, socket.socket):
            check_free(number, file)  # it may have been given away since it was looked at
        if self._is_received_from(number):
            raise busy(sock)


def _has(receiving: Any, number: int) -> bool:
    """Whether who is noted under a descriptor's number still has that file.

    Nobody can tell of a verb that was given a number: it has.
    """
    try:
        if isinstance(receiving, Receiving):
            receiving.check_file()
            receiving = receiving.file
        return receiving is None or bool(receiving.fileno() == number)
    except (OSError, ValueError):
        return False  # closed


def forget(noted: dict[Any, Any], number: int, receiving: Any) -> None:
    """Note that a receive is over; who has the number since may be noted under it."""
    if noted.get(number) is receiving:
        del noted[number]


def busy(file: "File") -> ResourceBusyError:
    """One receive at a time on a file: two would share the stream's bytes in an undefined way."""
    return ResourceBusyError(f"another task is already receiving from {file!r}")


def resolve(file: File) -> tuple[int, Any, int]:
    """The descriptor, the object to hold (None for a bare number or a slot), and how the C core is to treat it.

    A slot needs no object: the C core knows which file it holds, and every change of it goes through our hands.
    """
    if isinstance(file, int):
        if file < 0:
            raise kernel_error(errno.EBADF, f"descriptor {file}")
        return file, None, lib.AU_GUARD_FD
    try:
        number = file.fileno()  # type: ignore[union-attr]  # an isinstance() would cost every request
        if known[number]() is file:
            return number, file, 0
    except AttributeError:
        if not isinstance(file, DirectDescriptor):
            raise
        slot = file.slot
        return slot, None, slot.how
    except KeyError:
        number = file.fileno()  # type: ignore[union-attr]  # if that was what has raised, again
    look_at(number, file)
    if number < 0:
        raise kernel_error(errno.EBADF, "the file has been closed")
    return number, file, 0


def kind_of(sock: File, number: int) -> tuple[int, int, int]:
    """Family, type and protocol of a socket, however it is named.

    Raises `ValueError` where nobody knows, and `OSError` (ENOTSOCK, EBADF) where it is no socket.
    """
    if isinstance(sock, socket.socket):
        return sock.family, sock.type, sock.proto
    if isinstance(sock, DirectDescriptor):
        if not sock.family:
            raise ValueError(f"the address family and type of {sock!r} are not known: it was registered by number")
        return sock.family, sock.type, sock.proto
    return socket_kind(number)


async def packed_address(driver: Driver, sock: File, address: Any) -> bytes:
    """`address` of the socket's family as the kernel takes it; a host's name is resolved by the loop."""
    family, kind, protocol = kind_of(sock, resolve(sock)[0])
    try:
        return pack_address(family, address)
    except OSError:
        found = await driver.loop.getaddrinfo(address[0], address[1], family=family, type=kind, proto=protocol)
        return pack_address(family, found[0][4])


#: What a read or write is that is not to wait (NOWAIT): one that the kernel's EAGAIN ends.
_IMPATIENT: dict[type[Request], type[Request]] = {Request: Now, Read: ReadNow, Write: WriteNow}


def special(kind: type[Request], how: int, flags: int, *, background: bool) -> tuple[type[Request], int]:
    """The kind of a read or write that has flags, or goes to a worker at once; and how the C core is to treat it."""
    if flags & ~lib.AU_RWF_MASK:
        raise ValueError(
            f"flags={flags:#x} has more than ReadWriteFlags; HIPRI is for rings that poll, and there are none here"
        )
    if flags & lib.AU_RWF_NOWAIT:
        kind = _IMPATIENT.get(kind, kind)
    return kind, how | flags << lib.AU_RWF_SHIFT | (lib.AU_SQE_ASYNC if background else 0)


def memory_of(data: Bytes, *, writable: bool) -> tuple[Any, int, Lease | None]:
    """The memory of a buffer as a C array that holds its export, its length in bytes, and its lease."""
    if isinstance(data, Lease):
        return data.memory(), data.length, data
    memory = ffi.from_buffer(data, require_writable=writable)
    return memory, len(memory), None


def fill(memory: Any, data: bytes) -> int:
    """Copy bytes that arrived earlier into the caller's memory; returns how many."""
    ffi.memmove(memory, data, len(data))
    return len(data)


def file_offset(offset: int | None) -> int:
    """The offset as the kernel takes it: -1 is the file's own position."""
    if offset is None:
        return -1
    if offset < 0:
        raise ValueError(f"offset={offset} is negative; None means the file's own position")
    return offset


async def perform_provided(
    driver: Driver,
    request: ProvidedReceive | ProvidedMessage,
    on_empty: OnEmpty | None,
    fall_back: Callable[[ProvidedBuffer], Awaitable[ProvidedBuffer]] | None,
    prepare: Callable[..., int],
    *arguments: Any,
) -> int | ProvidedBuffer:
    """Perform a request that takes its buffer from a group, and wait in the group's line while there is none.

    `fall_back` is what does the same with a private buffer, and returns that; None where only the group's will do.
    """
    group = request.group
    if fall_back is None and (on_empty or group.on_empty) == "fallback":
        on_empty = "wait"
    ticket = 0
    try:
        while True:
            if ticket or group.waiting:
                refused, ticket = ticket > 0, ticket or group.draw_ticket()
                spare = await line_up(ticket, request.fd, request.file, group, on_empty, refused=refused)
                if spare is not None:
                    assert fall_back is not None
                    return await fall_back(spare)
            result = await driver.perform(request, prepare, *arguments)
            if result != -request.expected:
                return result
            ticket = ticket or group.draw_ticket()
    except BaseException as error:
        if group.waiting:
            driver.ask_for_turn()  # this one may have been called from the line: the next is
        if isinstance(error, OSError) and error.errno == errno.ECANCELED and not group.registered:
            raise RingClosedError(f"buffer ring {group.group_id} was unregistered during a {request.doing}") from None
        raise


async def line_up(
    ticket: int, number: int, file: Any, group: BufferRing, on_empty: OnEmpty | None, *, refused: bool
) -> ProvidedBuffer | None:
    """Wait for a buffer of the group's, or return a private one; the descriptor must still stand for the same file."""
    identity = identify(number)
    spare = await group.wait_in_line(ticket, (number, file), on_empty=on_empty, refused=refused)
    try:
        if identify(number) == identity:
            return spare
        raise kernel_error(errno.EBADF, "the file was closed while this waited for a buffer")
    except OSError:
        if spare is not None:
            spare.release()
        raise
