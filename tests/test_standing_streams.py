"""Tests of AcceptStream as an object: what it says of itself, and its use after its end."""

import asyncio
import os
import socket

import pytest

import aiouring
from aiouring._standing_streams import connection_of

pytestmark = pytest.mark.needs("multishot accept")


async def test_it_says_what_it_does(ring: aiouring.AsyncRing) -> None:
    """Its text names the state; after aclose() whoever waits, or comes later, hears of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = ring.accept_multishot(listener)
        assert "armed" in repr(stream)
        await ring.cancel(listener)
        assert "over" in repr(stream)
        await stream.aclose()
        assert "closing" in repr(stream)
        stream = ring.accept_multishot(listener)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        for late in (waiting, anext(stream)):
            with pytest.raises(OSError, match="the stream was closed"):
                await late


async def test_a_descriptor_that_makes_no_socket(ring: aiouring.AsyncRing) -> None:
    """It is closed: nobody else has it."""
    reader, writer = os.pipe()
    with pytest.raises(OSError):
        connection_of(0, reader)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)
