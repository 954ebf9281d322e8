"""Owns `ProvidedBuffer`: received bytes in a buffer the kernel picked, or in memory of their own."""

from aiouring._lease import Arena, Home, Lease, PrivateArena
from aiouring._uring import lib

# A part of a buffer is called by the buffer's id and, above it, where the part begins: 0 for a whole one.
_ID_BITS = lib.AU_BUFFER_ID_BITS
_ID_MASK = lib.AU_BUFFER_ID_MASK


class ProvidedBuffer(Lease):
    """Received bytes, in a buffer the kernel picked; falsy when the stream has ended.

    `len()` is the number of bytes received.  Give it back with `release()` or by leaving `with`.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return self.length > 0

    @property
    def buffer_id(self) -> int | None:
        """The buffer's number in its group, or None where no buffer of the group is involved."""
        return self.shown if self._home.is_group else None

    @property
    def offset(self) -> int:
        """Where in the buffer these bytes begin: 0, unless the group gives out buffers in parts."""
        return self.number >> _ID_BITS

    @property
    def shown(self) -> int:
        """What the buffer is called in texts."""
        return self.number & _ID_MASK


class _Nowhere(Home):
    """The home of bytes that lie in no group's buffer: there is nothing to give back."""

    def __init__(self) -> None:
        self._held_up = {}

    def take_back(self, number: int) -> None:
        """Nothing to do."""


NOWHERE = _Nowhere()
EMPTY = Arena(1, 1, 1)


def end_of_stream() -> ProvidedBuffer:
    """What a receive returns when the stream has ended."""
    return ProvidedBuffer(NOWHERE, EMPTY, 0, 0)


def private_copy(data: bytes) -> ProvidedBuffer:
    """`data` in memory of its own: bytes that arrived for a cancelled receive, or that were decrypted."""
    return ProvidedBuffer(NOWHERE, PrivateArena(data), 0, len(data))
