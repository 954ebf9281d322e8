"""Tests of AsyncRing's life and of what all its verbs share."""

import asyncio
import os
import socket

import pytest

import aiouring
from conftest import RingFactory


async def test_nop(ring: aiouring.AsyncRing) -> None:
    """A nop goes through the kernel and comes back."""
    before = ring.statistics()
    await ring.nop()
    after = ring.statistics()
    assert after.submitted == before.submitted + 1
    assert after.completed == before.completed + 1
    assert after.in_flight == 0


async def test_one_submission_per_turn(ring: aiouring.AsyncRing) -> None:
    """Everything queued in one turn of the loop goes to the kernel in one system call."""
    await ring.nop()
    before = ring.statistics()
    await asyncio.gather(*(ring.nop() for _ in range(200)))
    after = ring.statistics()
    assert after.submitted - before.submitted == 200
    assert after.enters - before.enters == 1
