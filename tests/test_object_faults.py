"""Regression tests of the types written in C."""

import asyncio
import socket
from typing import Any

from aiouring import AsyncRing, Connection

Pair = tuple[socket.socket, socket.socket]


class Told:
    """Stands where a reader's future would, as TLS does; as large as one."""

    __slots__ = ("times", *(f"_{n}" for n in range((asyncio.Future.__basicsize__ - 16) // 8 - 1)))

    def __init__(self) -> None:
        self.times = 0

    def set_result(self, _: None) -> None:
        """Something came."""
        self.times += 1


async def test_who_lies_where_a_future_lay_is_told(ring: AsyncRing, pair: Pair) -> None:
    """Whoever takes the reader's place, and the memory of its last future, hears of what comes: STARTTLS would hang."""
    with ring.register_buffer_ring(count=4, size=64) as group:
        async with Connection(ring, pair[0], group) as connection:
            receiving: Any = connection._receiving
            task = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)
            place = id(receiving._ready)
            pair[1].send(b"one")
            (await task).release()
            others = []
            while id(told := Told()) != place and len(others) < 100_000:
                others.append(told)
            assert id(told) == place
            receiving._ready = told
            pair[1].send(b"two")
            while not receiving.pending:
                await asyncio.sleep(0)
            receiving._ready = None
            assert told.times == 1
            (await connection.receive()).release()
