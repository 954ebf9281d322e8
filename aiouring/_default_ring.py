"""Owns the loop's default ring and each ring's default buffer group, for those who bring none of their own.

How this fits together

1. The ring is kept by its loop, as an attribute: it lives as long as the loop, and a loop that is dropped takes it
   along.  (A dictionary by loop, even a weak one, would keep both for ever: the ring refers to its loop.)
2. It is closed with the loop, without a task or a callback that would keep the program from ending: an asynchronous
   generator that waits at its `yield` closes the ring when it is closed, and `loop.shutdown_asyncgens()`, which
   `asyncio.run()`, `asyncio.Runner` and `uvloop.run()` call when every task has ended, closes it.
3. Who runs a loop by hand calls `shutdown_asyncgens()` before `close()`, or gets a `ResourceWarning`.
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator

from aiouring._async_ring import AsyncRing
from aiouring._buffer_ring import BufferRing

#: The default group: a chunk is what TCP over one link brings at once, and a thousand connections may speak at a time.
#: Addresses, of which an idle connection takes nothing, and of which only what data came into is memory.  Measured, CPU
#: per message: 1,000 connections found 256 buffers empty most of the time, and then cost 1.4 times as much; a message
#: of 64 KiB cost twice as much with 16 KiB, in which it comes in five pieces.  But the kernel takes the buffers in
#: turn, and one connection that goes through 64 MiB of them finds none in the processor's caches: 1.4 times as much.
#: So the group begins small, and grows to what is received at once.
COUNT = 128
MAX_COUNT = 2048
SIZE = 64 * 1024

_ATTRIBUTE = "_aiouring_default_ring"

_groups: "weakref.WeakKeyDictionary[AsyncRing, BufferRing]" = weakref.WeakKeyDictionary()


class _Kept:
    """A ring, and what closes it when the loop shuts down its asynchronous generators."""

    def __init__(self, ring: AsyncRing) -> None:
        self.ring = ring
        self.closer = _close_in_the_end(ring)
        with contextlib.suppress(StopIteration):
            self.closer.__anext__().send(None)  # to its yield: from here on the loop knows of it


async def _close_in_the_end(ring: AsyncRing) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await ring.aclose()


def default_ring() -> AsyncRing:
    """The running loop's own ring: made on first use, and closed with the loop.

    It is closed when the loop shuts down its asynchronous generators, which `asyncio.run()`, `asyncio.Runner` and
    `uvloop.run()` do when every task has ended.  One that you close yourself is made anew by the next call.

    Raises:
        RuntimeError: no event loop is running.
        RingUnavailableError: io_uring is blocked here; the text says by what.

    Since Linux 5.11.
    """
    loop = asyncio.get_running_loop()
    kept: _Kept | None = getattr(loop, _ATTRIBUTE, None)
    if kept is None or kept.ring._closed or kept.ring._closing is not None:
        ring = AsyncRing()
        ring._bound_or_closed()
        kept = _Kept(ring)
        setattr(loop, _ATTRIBUTE, kept)
    return kept.ring


def default_group(ring: AsyncRing | None = None) -> BufferRing:
    """The buffer group of connections that are given none: 128 buffers of 64 KiB, registered on first use.

    It grows to what is received at once, and at most to 2,048.  These are addresses: a page becomes memory when data
    first comes into it.

    Args:
        ring: whose group; None is the running loop's own ring, see `default_ring()`.

    Raises:
        OSError: ENOMEM beyond RLIMIT_MEMLOCK.

    Since Linux 5.19.
    """
    ring = ring or default_ring()
    group = _groups.get(ring)
    if group is None or not group.registered:
        group = _groups[ring] = ring.register_buffer_ring(count=COUNT, size=SIZE, max_count=MAX_COUNT)
    return group


def ring_and_group(ring: AsyncRing | None, group: BufferRing | None) -> tuple[AsyncRing, BufferRing]:
    """The ring and the group to use, where the caller left out one or both."""
    if ring is not None and not isinstance(ring, AsyncRing):
        raise TypeError(f"ring= is an AsyncRing, not {type(ring).__name__}")
    if group is not None and not isinstance(group, BufferRing):
        raise TypeError(f"group= is a BufferRing from register_buffer_ring(), not {type(group).__name__}")
    ring = ring or default_ring()
    ring._bound().check()
    if group is None:
        return ring, default_group(ring)
    if group._ring is not ring._ring:
        raise ValueError(f"{group!r} is registered with another ring than {ring!r}: give ring= as well")
    return ring, group
