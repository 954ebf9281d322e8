"""Owns the flags of the verbs on files and on their names; every value comes from the compiled C header."""

import enum

from aiouring._uring import lib


class ResolveFlags(enum.IntFlag):
    """How `openat2()` may find a file from its name, `RESOLVE_*`.  See openat2(2)."""

    NO_XDEV = lib.AU_RESOLVE_NO_XDEV
    NO_MAGICLINKS = lib.AU_RESOLVE_NO_MAGICLINKS
    NO_SYMLINKS = lib.AU_RESOLVE_NO_SYMLINKS
    BENEATH = lib.AU_RESOLVE_BENEATH
    IN_ROOT = lib.AU_RESOLVE_IN_ROOT
    CACHED = lib.AU_RESOLVE_CACHED  # since Linux 5.12


class AtFlags(enum.IntFlag):
    """What a name stands for, `AT_*`: of `statx()`, `unlinkat()` (REMOVEDIR) and `linkat()` (SYMLINK_FOLLOW)."""

    SYMLINK_NOFOLLOW = lib.AU_AT_SYMLINK_NOFOLLOW
    REMOVEDIR = lib.AU_AT_REMOVEDIR
    SYMLINK_FOLLOW = lib.AU_AT_SYMLINK_FOLLOW
    NO_AUTOMOUNT = lib.AU_AT_NO_AUTOMOUNT
    EMPTY_PATH = lib.AU_AT_EMPTY_PATH
    STATX_FORCE_SYNC = lib.AU_AT_STATX_FORCE_SYNC
    STATX_DONT_SYNC = lib.AU_AT_STATX_DONT_SYNC


class RenameFlags(enum.IntFlag):
    """How `renameat()` treats what has the new name already, `RENAME_*`.  See renameat2(2)."""

    NOREPLACE = lib.AU_RENAME_NOREPLACE
    EXCHANGE = lib.AU_RENAME_EXCHANGE
    WHITEOUT = lib.AU_RENAME_WHITEOUT


class StatxMask(enum.IntFlag):
    """What `statx()` is asked for, and what it answered, `STATX_*`.  See statx(2)."""

    TYPE = lib.AU_STATX_TYPE
    MODE = lib.AU_STATX_MODE
    NLINK = lib.AU_STATX_NLINK
    UID = lib.AU_STATX_UID
    GID = lib.AU_STATX_GID
    ATIME = lib.AU_STATX_ATIME
    MTIME = lib.AU_STATX_MTIME
    CTIME = lib.AU_STATX_CTIME
    INO = lib.AU_STATX_INO
    SIZE = lib.AU_STATX_SIZE
    BLOCKS = lib.AU_STATX_BLOCKS
    BTIME = lib.AU_STATX_BTIME
    MNT_ID = lib.AU_STATX_MNT_ID  # since Linux 5.8
    DIOALIGN = lib.AU_STATX_DIOALIGN  # since Linux 6.1
    MNT_ID_UNIQUE = lib.AU_STATX_MNT_ID_UNIQUE  # since Linux 6.8
    SUBVOL = lib.AU_STATX_SUBVOL  # since Linux 6.10
    WRITE_ATOMIC = lib.AU_STATX_WRITE_ATOMIC  # since Linux 6.11
    DIO_READ_ALIGN = lib.AU_STATX_DIO_READ_ALIGN  # since Linux 6.14


class StatxAttributes(enum.IntFlag):
    """What is special about a file, `STATX_ATTR_*`."""

    COMPRESSED = lib.AU_STATX_ATTR_COMPRESSED
    IMMUTABLE = lib.AU_STATX_ATTR_IMMUTABLE
    APPEND = lib.AU_STATX_ATTR_APPEND
    NODUMP = lib.AU_STATX_ATTR_NODUMP
    ENCRYPTED = lib.AU_STATX_ATTR_ENCRYPTED
    AUTOMOUNT = lib.AU_STATX_ATTR_AUTOMOUNT
    MOUNT_ROOT = lib.AU_STATX_ATTR_MOUNT_ROOT
    VERITY = lib.AU_STATX_ATTR_VERITY
    DAX = lib.AU_STATX_ATTR_DAX
    WRITE_ATOMIC = lib.AU_STATX_ATTR_WRITE_ATOMIC


class ReadWriteFlags(enum.IntFlag):
    """How one read or write is done, `RWF_*`.  See preadv2(2).

    HIPRI is for rings that poll their device, which there are none of here.
    """

    HIPRI = lib.AU_RWF_HIPRI
    DSYNC = lib.AU_RWF_DSYNC
    SYNC = lib.AU_RWF_SYNC
    NOWAIT = lib.AU_RWF_NOWAIT
    APPEND = lib.AU_RWF_APPEND
    NOAPPEND = lib.AU_RWF_NOAPPEND  # since Linux 6.9
    ATOMIC = lib.AU_RWF_ATOMIC  # since Linux 6.11
    DONTCACHE = lib.AU_RWF_DONTCACHE  # since Linux 6.14


class FallocateFlags(enum.IntFlag):
    """What `fallocate()` does with a range, `FALLOC_FL_*`.  See fallocate(2)."""

    KEEP_SIZE = lib.AU_FALLOC_FL_KEEP_SIZE
    PUNCH_HOLE = lib.AU_FALLOC_FL_PUNCH_HOLE  # with KEEP_SIZE
    COLLAPSE_RANGE = lib.AU_FALLOC_FL_COLLAPSE_RANGE
    ZERO_RANGE = lib.AU_FALLOC_FL_ZERO_RANGE
    INSERT_RANGE = lib.AU_FALLOC_FL_INSERT_RANGE
    UNSHARE_RANGE = lib.AU_FALLOC_FL_UNSHARE_RANGE


class SyncFileRangeFlags(enum.IntFlag):
    """What `sync_file_range()` starts and waits for, `SYNC_FILE_RANGE_*`.  See sync_file_range(2)."""

    WAIT_BEFORE = lib.AU_SYNC_FILE_RANGE_WAIT_BEFORE
    WRITE = lib.AU_SYNC_FILE_RANGE_WRITE
    WAIT_AFTER = lib.AU_SYNC_FILE_RANGE_WAIT_AFTER
