"""Tests of what statx() found, as it is read out of the kernel's struct."""

import os
from typing import Any

import pytest

from aiouring import StatxAttributes, StatxMask, StatxResult
from aiouring._uring import ffi

pytestmark = pytest.mark.needs_no_ring


def answered(mask: StatxMask, **fields: Any) -> StatxResult:
    """A result as of a kernel that answered with these fields."""
    return StatxResult.from_kernel(ffi.new("struct au_statx *", {"mask": mask, **fields}))


def test_every_field_has_its_place() -> None:
    """No two fields are swapped."""
    numbers = {name: 1000 + at for at, name in enumerate(("nlink", "uid", "gid", "ino", "size", "blocks", "blksize"))}
    found = answered(StatxMask(0x7FF), mode=0o100644, dev_major=8, dev_minor=3, rdev_major=1, rdev_minor=5, **numbers)
    for name, value in numbers.items():
        assert getattr(found, f"st_{name}") == value
    assert (found.st_mode, found.st_dev, found.st_rdev) == (0o100644, os.makedev(8, 3), os.makedev(1, 5))


def test_times() -> None:
    """Nanoseconds are exact, also before 1970; seconds are rounded as os.stat() rounds them."""
    found = answered(
        StatxMask.BTIME,
        atime={"seconds": 1, "nanoseconds": 2},
        mtime={"seconds": -2, "nanoseconds": 500_000_000},
        ctime={"seconds": 1_700_000_000, "nanoseconds": 123_456_789},
        btime={"seconds": 4, "nanoseconds": 250_000_000},
    )
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) == (
        1_000_000_002,
        -1_500_000_000,
        1_700_000_000_123_456_789,
    )
    assert (found.st_mtime, found.st_birthtime, found.st_birthtime_ns) == (-1.5, 4.25, 4_250_000_000)
    assert found.st_ctime == 1_700_000_000 + 1e-9 * 123_456_789
    assert found.st_atime == 1 + 1e-9 * 2


def test_what_was_not_answered_is_none() -> None:
    """Zero is an answer of its own: no O_DIRECT on this file."""
    nothing = answered(StatxMask(0))
    extras = (
        "st_birthtime", "st_birthtime_ns", "mount_id", "dio_mem_align", "dio_offset_align", "dio_read_offset_align",
        "subvolume", "atomic_write_unit_min", "atomic_write_unit_max", "atomic_write_segments_max",
    )  # fmt: skip
    assert {name: getattr(nothing, name) for name in extras} == dict.fromkeys(extras)
    everything = answered(
        StatxMask(0x3FFFF), mnt_id=1, dio_mem_align=0, dio_offset_align=512, dio_read_offset_align=4, subvol=5,
        atomic_write_unit_min=6, atomic_write_unit_max=7, atomic_write_segments_max=8,
    )  # fmt: skip
    assert [getattr(everything, name) for name in extras] == [0.0, 0, 1, 0, 512, 4, 5, 6, 7, 8]
    assert answered(StatxMask.MNT_ID_UNIQUE, mnt_id=2**40).mount_id == 2**40


def test_attributes_and_unknown_bits() -> None:
    """Bits of a later kernel are kept."""
    found = answered(StatxMask(1 << 30), attributes=0x10 | 1 << 40, attributes_mask=0x30)
    assert found.mask == 1 << 30
    assert found.attributes & StatxAttributes.IMMUTABLE
    assert int(found.attributes) == 0x10 | 1 << 40
    assert found.attributes_mask == StatxAttributes.IMMUTABLE | StatxAttributes.APPEND
    assert found == found
    assert hash(found)
