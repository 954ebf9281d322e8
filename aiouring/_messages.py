"""Owns messages: what sendmsg and recvmsg take, the control data beside it, and the requests that hold them.

Ownership.  A request holds the message, the exports of its parts and the memory of its control data until its final
completion.  A descriptor that is sent is duplicated first: the kernel looks it up later, when its number could be
another file's (KERNEL.md E12).  One that is received is whoever's takes the message.
"""

import os
import socket
import struct
from array import array
from collections.abc import Iterable
from typing import Any, TypeAlias

from aiouring._errors import failure
from aiouring._lease import Lease
from aiouring._request import Kept, Leftovers, OfParts, Write, keeps_boundaries
from aiouring._uring import ffi, lib

#: Level, type and data of each, as the standard library's.
Ancillary: TypeAlias = list[tuple[int, int, bytes]]

_HEADER = struct.Struct("@Nii")  # struct cmsghdr
_NAME_BYTES = lib.AU_MAX_NAME  # struct sockaddr_storage


def new_message(parts: Iterable[Any], *, writable: bool) -> tuple[Any, list[Any]]:
    """A message of `parts`, buffers or lent ones, and the exports of their memory."""
    held = [
        ffi.from_buffer(part.view if isinstance(part, Lease) else part, require_writable=writable) for part in parts
    ]
    message = empty_message(len(held))
    for memory in held:
        checked(lib.au_message_add(message, memory, len(memory), 0, len(memory)))
    return message, held


def empty_message(count: int) -> Any:
    """A message with room for `count` parts."""
    if count > lib.AU_MAX_VECTORS:
        raise ValueError(f"{count} parts are given, more than {lib.AU_MAX_VECTORS}")
    message = ffi.new("au_message *", {"vector": count})
    message.capacity = count
    return message


def checked(code: int, **numbers: int) -> None:
    """Raise what a negative code says."""
    if code < 0:
        raise failure(code, "filling a message", **numbers)


class SendMessage(OfParts, Write):
    """A send; `passed` are the descriptors that go with it."""

    __slots__ = ("control", "parts", "passed")

    def __init__(self, fd: int, file: Any, message: Any, parts: list[Any], ancillary: Iterable[Any]) -> None:
        super().__init__(fd, file, message)
        self.parts = parts
        self.passed: list[int] = []
        self.control: Any = None
        self.ended = True  # the kernel has nothing yet
        try:
            packed = b"".join(self._packed(*each) for each in ancillary)
            if packed:
                self.control = memory = ffi.new("char[]", packed)
                checked(lib.au_message_control(message, memory, len(packed)), start=0, length=len(packed))
        except BaseException:
            self.let_go()
            raise

    def _packed(self, level: int, kind: int, data: Any) -> bytes:
        """One piece of control data, as sendmsg(2) takes it."""
        payload = memoryview(data).tobytes()
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            if len(payload) % 4:
                raise ValueError(f"{len(payload)} bytes are no array of descriptors")
            start = len(self.passed)
            for number in memoryview(payload).cast("i"):
                self.passed.append(os.dup(number))
            payload = array("i", self.passed[start:]).tobytes()
        header = _HEADER.pack(socket.CMSG_LEN(len(payload)), level, kind)
        return (header + payload).ljust(socket.CMSG_SPACE(len(payload)), b"\0")

    def let_go(self) -> None:
        """End the exports of the caller's buffers, and close our duplicates of what was passed."""
        super().let_go()
        while self.ended and self.passed:
            os.close(self.passed.pop())


class ReceiveMessage(OfParts):
    """A receive."""

    __slots__ = ("control", "flags_wanted", "parts")

    def __init__(self, fd: int, file: Any, message: Any, parts: list[Any], ancillary_size: int, flags: int) -> None:
        super().__init__(fd, file, message)
        self.parts = parts
        self.flags_wanted = flags
        if not 0 <= ancillary_size <= lib.AU_MAX_CONTROL:
            raise ValueError(f"ancillary_size={ancillary_size} is outside 0 to {lib.AU_MAX_CONTROL}")
        self.control = ffi.new("char[]", ancillary_size)
        checked(lib.au_message_control(message, self.control, ancillary_size))

    @property
    def room(self) -> int:
        """Bytes that fit the parts."""
        return sum(len(part) for part in self.parts)

    def received(self) -> Kept:
        """What came beside the bytes, and the descriptors among that: now whoever's has this."""
        kept = Kept()
        return self._beside(kept)

    def _beside(self, kept: Kept) -> Kept:
        name = ffi.new("char[]", _NAME_BYTES)
        size = lib.au_message_name(self.hold, name, _NAME_BYTES)
        checked(size)
        kept.name = ffi.buffer(name, size)[:]
        kept.flags = lib.au_message_flags(self.hold)
        if not self.flags_wanted & socket.MSG_CMSG_CLOEXEC:
            kept.flags &= ~socket.MSG_CMSG_CLOEXEC  # that was our wish
        control = ffi.buffer(self.control, lib.au_message_control_size(self.hold))[:]
        kept.ancillary, kept.descriptors = unpack_ancillary(control)
        return kept

    def deliver(self, data: Kept) -> int:
        """Copy a message that came earlier into the parts; returns how many bytes fitted."""
        start = 0
        for part in self.parts:
            piece = data[start : start + len(part)]
            ffi.memmove(part, piece, len(piece))
            start += len(piece)
        return start

    def unclaimed(self, leftovers: Leftovers) -> None:
        """Keep the message, with what came beside it."""
        if self.result < 0:
            return
        rest = min(self.result, self.room)
        pieces = []
        for part in self.parts:
            pieces.append(ffi.buffer(part, min(rest, len(part)))[:])
            rest -= len(pieces[-1])
        kept = self._beside(Kept(b"".join(pieces)))
        kept.whole = keeps_boundaries(self.fd)
        if self.flags_wanted & socket.MSG_PEEK or not (kept or kept.whole):
            return  # it is still there; or it is the end of a stream
        leftovers.keep(self.fd, kept if kept.whole or kept.ancillary else bytes(kept))


def unpack_ancillary(control: bytes) -> tuple[tuple[tuple[int, int, bytes], ...], tuple[int, ...]]:
    """The pieces of control data that recvmsg(2) gave, and the descriptors among them."""
    pieces, descriptors, at = [], array("i"), 0
    while at + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, at)
        if length < _HEADER.size:
            break
        data = control[at + _HEADER.size : at + length]
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) & ~3])
        pieces.append((level, kind, data))
        at += socket.CMSG_SPACE(length - _HEADER.size)
    return tuple(pieces), tuple(descriptors)
