"""Tests of the verbs that register things: one table of buffers, many groups, and what is refused."""

import socket

import pytest

import aiouring

Pair = tuple[socket.socket, socket.socket]


async def test_several_groups(ring: aiouring.AsyncRing, pair: Pair) -> None:
    """Each receive is served from its own group; unregistering one leaves the others alone."""
    groups = [ring.register_buffer_ring(count=2, size=16 * (number + 1)) for number in range(3)]
    assert [group.group_id for group in groups] == [0, 1, 2]
    for _ in range(5):
        for group in groups:
            pair[1].send(b"x" * group.size)
            with await ring.recv(pair[0], group) as chunk:
                assert len(chunk) == group.size
                assert [other.statistics().in_use for other in groups] == [other is group for other in groups]
    groups[1].unregister()
    pair[1].send(b"more")
    with await ring.recv(pair[0], groups[2]) as chunk:
        assert bytes(chunk.view) == b"more"
    again = ring.register_buffer_ring(count=2, size=64)
    assert again.group_id == 1
    pair[1].send(b"again")
    with await ring.recv(pair[0], again) as chunk:
        assert bytes(chunk.view) == b"again"


async def test_a_ring_has_one_table(ring: aiouring.AsyncRing) -> None:
    """A second table is refused while the first is registered, and the refusal changes nothing."""
    with ring.register_buffers(count=2, size=64) as first:
        with pytest.raises(aiouring.ResourceBusyError, match="one table"):
            ring.register_buffers(count=2, size=64)
        assert first.registered
    with ring.register_buffers(count=3, size=64) as second:
        assert len(second) == 3
