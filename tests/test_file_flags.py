"""Tests of the flags of file verbs: one source, and the values that Python knows by another name."""

import enum
import re

import pytest

from aiouring import _file_flags
from aiouring._uring import lib

pytestmark = pytest.mark.needs_no_ring

FACES = {
    "ResolveFlags": "AU_RESOLVE_",
    "AtFlags": "AU_AT_(?!FDCWD)",
    "RenameFlags": "AU_RENAME_",
    "StatxMask": "AU_STATX_(?!ATTR_)",
    "StatxAttributes": "AU_STATX_ATTR_",
    "ReadWriteFlags": "AU_RWF_(?!SHIFT|MASK)",
    "FallocateFlags": "AU_FALLOC_FL_",
    "SyncFileRangeFlags": "AU_SYNC_FILE_RANGE_",
}


@pytest.mark.parametrize("name", FACES)
def test_flags_take_their_values_from_c(name: str) -> None:
    """Each member has the value of the constant with its name, and no constant lacks its member."""
    face = getattr(_file_flags, name)
    compiled = {re.sub(FACES[name], "", each): getattr(lib, each) for each in dir(lib) if re.match(FACES[name], each)}
    assert {each: member.value for each, member in face.__members__.items()} == compiled


def test_every_face_is_tested() -> None:
    """No class of flags was left out above."""
    faces = {
        name
        for name, value in vars(_file_flags).items()
        if isinstance(value, type) and issubclass(value, enum.IntFlag) and value.__module__ == _file_flags.__name__
    }
    assert faces == set(FACES)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        (_file_flags.AtFlags.REMOVEDIR, 0x200),
        (_file_flags.AtFlags.EMPTY_PATH, 0x1000),
        (_file_flags.FallocateFlags.PUNCH_HOLE, 2),
        (_file_flags.ResolveFlags.BENEATH, 8),
        (_file_flags.StatxMask.DIOALIGN, 0x2000),
        (_file_flags.StatxAttributes.DAX, 0x200000),
    ],
)
def test_values(member: enum.IntFlag, value: int) -> None:
    """They are the kernel's."""
    assert member.value == value
