"""Owns `StatxResult`: what `statx()` found out about a file, in Python's numbers."""

import os
from dataclasses import dataclass
from typing import Any, Self

from aiouring._file_flags import StatxAttributes, StatxMask


@dataclass(frozen=True, slots=True)
class StatxResult:
    """What a file system says about a file: the fields of `os.stat_result`, and those that only statx(2) has.

    Sizes are in bytes, times in nanoseconds since 1970; `st_atime`, `st_mtime`, `st_ctime` and `st_birthtime` are the
    same in seconds.  A field that the kernel left out is None where statx(2) alone has it, else 0; `mask` says which
    it filled in.
    """

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_blksize: int  # the best size for I/O
    st_blocks: int  # of 512 bytes
    st_rdev: int
    st_birthtime_ns: int | None  # when the file was made
    mask: StatxMask
    attributes: StatxAttributes
    attributes_mask: StatxAttributes  # those that this file system knows of
    mount_id: int | None  # since Linux 5.8
    dio_mem_align: int | None  # what O_DIRECT wants of memory; 0: there is no O_DIRECT here.  Since Linux 6.1
    dio_offset_align: int | None  # ... of offsets and lengths
    dio_read_offset_align: int | None  # ... of a read's, where that is less.  Since Linux 6.14
    subvolume: int | None  # since Linux 6.10
    atomic_write_unit_min: int | None  # since Linux 6.11, these three
    atomic_write_unit_max: int | None
    atomic_write_segments_max: int | None

    @classmethod
    def from_kernel(cls, raw: Any) -> Self:
        """What a `struct au_statx` holds."""
        mask = StatxMask(raw.mask)
        direct, atomic = mask & StatxMask.DIOALIGN, mask & StatxMask.WRITE_ATOMIC
        return cls(
            st_mode=raw.mode,
            st_ino=raw.ino,
            st_dev=os.makedev(raw.dev_major, raw.dev_minor),
            st_nlink=raw.nlink,
            st_uid=raw.uid,
            st_gid=raw.gid,
            st_size=raw.size,
            st_atime_ns=_nanoseconds(raw.atime),
            st_mtime_ns=_nanoseconds(raw.mtime),
            st_ctime_ns=_nanoseconds(raw.ctime),
            st_blksize=raw.blksize,
            st_blocks=raw.blocks,
            st_rdev=os.makedev(raw.rdev_major, raw.rdev_minor),
            st_birthtime_ns=_nanoseconds(raw.btime) if mask & StatxMask.BTIME else None,
            mask=mask,
            attributes=StatxAttributes(raw.attributes),
            attributes_mask=StatxAttributes(raw.attributes_mask),
            mount_id=raw.mnt_id if mask & (StatxMask.MNT_ID | StatxMask.MNT_ID_UNIQUE) else None,
            dio_mem_align=raw.dio_mem_align if direct else None,
            dio_offset_align=raw.dio_offset_align if direct else None,
            dio_read_offset_align=raw.dio_read_offset_align if mask & StatxMask.DIO_READ_ALIGN else None,
            subvolume=raw.subvol if mask & StatxMask.SUBVOL else None,
            atomic_write_unit_min=raw.atomic_write_unit_min if atomic else None,
            atomic_write_unit_max=raw.atomic_write_unit_max if atomic else None,
            atomic_write_segments_max=raw.atomic_write_segments_max if atomic else None,
        )

    @property
    def st_atime(self) -> float:
        """When the file was last read, in seconds."""
        return _seconds(self.st_atime_ns)

    @property
    def st_mtime(self) -> float:
        """When its content last changed, in seconds."""
        return _seconds(self.st_mtime_ns)

    @property
    def st_ctime(self) -> float:
        """When its content or what is recorded about it last changed, in seconds."""
        return _seconds(self.st_ctime_ns)

    @property
    def st_birthtime(self) -> float | None:
        """When the file was made, in seconds; None where that is not known."""
        return None if self.st_birthtime_ns is None else _seconds(self.st_birthtime_ns)


def _nanoseconds(time: Any) -> int:
    return int(time.seconds * 1_000_000_000 + time.nanoseconds)


def _seconds(nanoseconds: int) -> float:
    return nanoseconds // 1_000_000_000 + 1e-9 * (nanoseconds % 1_000_000_000)  # rounded as os.stat() does
