"""Tests of Insistence: cancelling again what no cancel found."""

import asyncio
from typing import Any, cast

from aiouring._insistence import Insistence
from aiouring._request import Request
from aiouring._turns import Turns


class Deaf:
    """Turns whose cancels find a request only after some of them."""

    def __init__(self, deaf_to: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.heard = asyncio.Event()
        self.cancels = 0
        self._deaf_to = deaf_to

    def cancel_soon(self, request: Request) -> None:
        """Count, and hear the last."""
        self.cancels += 1
        if self.cancels > self._deaf_to:
            request.ended = True
            self.heard.set()


async def test_it_insists_until_the_request_has_ended() -> None:
    """A cancel that found nothing is sent again, and none after the end, nor after the block."""
    request = Request(0, None)
    deaf = Deaf(2)
    with Insistence(cast(Turns, deaf), [request]) as nothing:
        assert nothing is None
        assert deaf.cancels == 1
        await deaf.heard.wait()
        assert deaf.cancels == 3
        await asyncio.sleep(0.1)
    assert deaf.cancels == 3


async def test_it_stops_with_its_block() -> None:
    """Whoever leaves the block leaves no timer behind."""
    deaf = Deaf(1000)
    insistence: Any = Insistence(cast(Turns, deaf), [Request(0, None)])
    with insistence:
        pass
    assert insistence._timer is None
    assert deaf.cancels == 1
