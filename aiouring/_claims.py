"""Owns `look_at()`: whether a file that a verb meets for the first time is its caller's, or a transport's.

Two who receive from one socket share its bytes in an undefined way, and two who send mix theirs.  So what a transport
shows of its socket is refused, and so is the socket that a transport of the running loop was made of.

The loop knows of the latter, and can be asked by `remove_reader()` only, which goes on to remove a callback that its
caller may need.  It looks a number up among its transports first, and among its callbacks then: so it is asked about a
number that can be looked up once.  asyncio's own loop and uvloop do; one that reads the number in another way would
remove the callback, so no other loop is asked.

A file is looked at once under its number: that costs 2 us, and is not on a request's way.  A socket that is given to
asyncio after its first use here is found by whatever keeps a receive armed, and by `Connection`: these ask each time.
"""

import asyncio
import socket
import weakref
from collections.abc import Callable
from typing import Any

from aiouring._errors import ResourceBusyError

#: What was looked at, by its number.  A number that was reused has another object; dead ones are None.
known: dict[int, Callable[[], Any]] = {}


class _FreeError(Exception):
    """The loop has no transport of that number."""


class _Once(int):
    """A number that can be looked up once."""

    looked_up = False

    def __hash__(self) -> int:
        if self.looked_up:
            raise _FreeError
        self.looked_up = True
        return super().__hash__()


def look_at(number: int, file: Any) -> None:
    """Raise `ResourceBusyError` if the file belongs to a transport; it is known from now on if it does not.

    asyncio's and uvloop's transports, and our own, show an object of one of the kinds named here.
    """
    kind = type(file).__name__
    if kind in ("TransportSocket", "PseudoSocket"):
        raise ResourceBusyError(
            f"this {kind} belongs to a transport, which receives from it and sends on it: use the transport, "
            "or give a socket of your own (socket.socket) to the ring"
        )
    if number < 0:
        return
    if isinstance(file, socket.socket):
        check_free(number, file)
    try:
        known[number] = weakref.ref(file)
    except TypeError:
        return  # it will be looked at each time


def check_free(number: int, file: Any) -> None:
    """Raise `ResourceBusyError` if a transport of the running loop has the descriptor."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # the driver will refuse
    if not isinstance(loop, asyncio.SelectorEventLoop) and not _is_uvloop(type(loop)):
        return
    try:
        loop.remove_reader(_Once(number))
    except _FreeError:
        return
    except RuntimeError as error:
        raise ResourceBusyError(f"{file!r} belongs to a transport of the event loop: {error}") from None


def _is_uvloop(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "uvloop" for base in kind.__mro__)
