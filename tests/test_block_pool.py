"""Tests of the blocks for direct files: registered where that can be, plain pages elsewhere, never waited for."""

from pathlib import Path

import pytest
from conftest import RingFactory

import aiouring
from aiouring._block_pool import COUNT, SIZE, block_pool


async def test_registered_then_plain(ring: aiouring.AsyncRing) -> None:
    """As many as are registered are lent first; the next are plain pages, which are used again."""
    pool = block_pool(ring)
    assert block_pool(ring) is pool
    blocks = [pool.lend() for _ in range(COUNT + 2)]
    assert [block.lease is not None for block in blocks] == [True] * COUNT + [False] * 2
    plain = blocks[-1].memory
    for block in blocks:
        with block:
            pass
    again = [pool.lend() for _ in range(COUNT + 1)]
    assert again[-1].memory == plain
    for block in again:
        with block:
            pass
    assert ring._driver is not None
    assert ring._driver.registry.buffers is not None
    assert ring._driver.registry.buffers.statistics().in_use == 0


async def test_where_nothing_can_be_registered(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """A ring whose table is the caller's works with plain pages; memory that the kernel may have is not used again."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    with ring.register_buffers(count=1, size=4096):
        pool = block_pool(ring)
        with pytest.raises(ZeroDivisionError):
            with pool.lend() as block:
                assert block.lease is None
                _ = 1 / 0
        assert pool.lend().memory != block.memory
        async with aiouring.open(tmp_path / "file", "rb", direct=True, ring=ring) as file:
            assert await file.read() == b"x" * 5000


async def test_a_table_that_was_unregistered(new_ring: RingFactory, tmp_path: Path) -> None:
    """Who takes the ring's table away leaves plain pages."""
    ring = await new_ring()
    (tmp_path / "file").write_bytes(b"x" * 5000)
    async with aiouring.open(tmp_path / "file", "r+b", direct=True, ring=ring) as file:
        assert await file.read(100) == b"x" * 100
        ring._driver.registry.buffers.unregister()
        assert await file.read() == b"x" * 4900
        await file.seek(0)
        await file.write(b"y" * 4096)
    assert (tmp_path / "file").read_bytes() == b"y" * 4096 + b"x" * 904
    assert block_pool(ring).lend().lease is None


@pytest.mark.needs_no_ring
def test_sizes() -> None:
    """Half of what a process may lock by default, in whole pages."""
    assert COUNT * SIZE == 4 << 20
    assert SIZE % 4096 == 0
