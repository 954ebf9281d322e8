"""Tests that the error for a request that was not filled has the numbers it was asked for."""

from aiouring import AsyncRing
from aiouring._refusals import refusal
from aiouring._uring import lib


async def test_numbers_of_memory() -> None:
    """What is beyond the memory is named with the memory's size."""
    error = refusal(lib.AU_BAD_LENGTH, lib.au_prepare_memory, (lib.AU_OP_READ, 3, b"", 10, 4, 20, 0, 0, 0))
    assert isinstance(error, ValueError)
    assert str(error) == "start=4 and length=20 reach beyond the memory of 10 bytes"


async def test_numbers_of_a_slot(ring: AsyncRing) -> None:
    """A registered buffer's size is looked up, as nobody gives it."""
    with ring.register_buffers(count=2, size=4096) as buffers:
        arguments = (lib.AU_OP_READ_FIXED, 3, buffers.raw, 1, 0, 5000, 0, 0)
        error = refusal(lib.AU_BAD_LENGTH, lib.au_prepare_fixed, arguments)
    assert str(error) == "start=0 and length=5000 reach beyond the memory of 4096 bytes"


async def test_number_of_a_group(ring: AsyncRing) -> None:
    """A group is named by its number."""
    group = ring.register_buffer_ring(count=2, size=64, group_id=7)
    error = refusal(lib.AU_BAD_INDEX, lib.au_prepare_select, (lib.AU_OP_RECV, 3, group, 64, 0, 0, 0))
    assert str(error) == "no such buffer on this ring (index 7)"
