"""Tests of what a Ring registers: the same as on AsyncRing, one table of each kind, and nobody to wait on."""

import os

import pytest

import aiouring
from aiouring import Ring
from aiouring._setup import TaskRun


def test_every_kind_at_once(profile: TaskRun) -> None:
    """A ring has buffers, a buffer ring, files and a region at the same time."""
    with Ring(8, cq_entries=16, task_run=profile) as ring, open(os.devnull) as file:
        buffers = ring.register_buffers(count=2, size=64)
        group = ring.register_buffer_ring(count=2, size=64)
        files = ring.register_files([file, None])
        region = ring.register_region(4096)
        assert (len(buffers), len(group), len(files), len(region.view)) == (2, 2, 2, 4096)


def test_one_table_of_each_kind(profile: TaskRun) -> None:
    """A second table of buffers or files, or a second region, is refused while the first is there."""
    with Ring(8, cq_entries=16, task_run=profile) as ring:
        ring.register_buffers_sparse(2)
        ring.register_files_sparse(2)
        ring.register_region(4096)
        for again in (
            lambda: ring.register_buffers(count=1, size=64),
            lambda: ring.register_buffers_sparse(2),
            lambda: ring.register_files_sparse(2),
            lambda: ring.register_region(4096),
        ):
            with pytest.raises(aiouring.ResourceBusyError, match="already"):
                again()
