"""Tests of PrivateBuffers: the bound, the memory's life, and who may give one back."""

import asyncio
import gc
import socket
import threading
from collections.abc import Iterator

import pytest

import aiouring

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected stream sockets: receiving, sending."""
    with (ends := socket.socketpair())[0], ends[1]:
        yield ends


async def fall_back(ring: aiouring.AsyncRing, pair: Pair) -> tuple[aiouring.BufferRing, list[aiouring.ProvidedBuffer]]:
    """A group of one buffer, which is lent, and a private chunk beside it."""
    group = ring.register_buffer_ring(count=1, size=8, on_empty="fallback")
    pair[1].send(b"group's private")
    return group, [await ring.recv(pair[0], group), await ring.recv(pair[0], group)]


async def test_draw_up_to_the_limit(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """There are no more than the limit at once, however often one comes back."""
    group, (held, chunk) = await fall_back(ring, pair)
    for _ in range(3):
        assert group.private.draw() is None
        assert group.private.in_use == 1
        chunk.release()
        drawn = group.draw_private("fallback")
        assert drawn is not None
        chunk = drawn
    chunk.release()
    held.release()


async def test_memory_is_of_one_lease(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """What a private chunk held is nobody else's later: a slice that outlives a failing block keeps its bytes."""
    group, (held, chunk) = await fall_back(ring, pair)
    with pytest.raises(KeyError), chunk:
        part = chunk.view[:3]
        raise KeyError
    assert group.statistics().private == 1  # until the slice has gone
    assert bytes(part) == b"pri"
    del part
    assert group.statistics().private == 0
    held.release()


async def test_dropped_in_another_thread(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """One that the garbage collector finds in another thread comes back in the ring's."""
    group, chunks = await fall_back(ring, pair)
    dropped = [chunks.pop()]

    def drop() -> None:
        with pytest.warns(ResourceWarning, match="never released"):
            dropped.clear()
            gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    for _ in range(20):
        await asyncio.sleep(0)
    assert group.statistics().private == 0
    chunks.pop().release()


async def test_released_in_another_thread(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """To release one there is refused, and the lease goes on."""
    _, (held, chunk) = await fall_back(ring, pair)
    caught = []

    def give_back() -> None:
        with pytest.raises(aiouring.WrongContextError) as error:
            chunk.release()
        caught.append(error)

    thread = threading.Thread(target=give_back)
    thread.start()
    thread.join()
    assert caught
    assert bytes(chunk.view) == b"private"
    chunk.release()
    held.release()


async def test_private_memory_is_used_in_requests(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """A private chunk can be sent, and cannot be released before that has ended."""
    _, (held, chunk) = await fall_back(ring, pair)
    task = asyncio.create_task(ring.send(pair[1], chunk))
    await asyncio.sleep(0)
    with pytest.raises(aiouring.ResourceBusyError):
        chunk.release()
    assert await task == 7
    chunk.release()
    held.release()
    assert pair[0].recv(100) == b"private"
