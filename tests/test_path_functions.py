"""Tests of the functions on files by name: the outcome and the errors of those in os and pathlib."""

import asyncio
import errno
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RESTRICTED, RingFactory
from file_systems import mounted

import aiouring
from aiouring import Restrictions
from aiouring._raw_file import RawFile
from aiouring._restrictions import ON_REQUEST


@pytest.fixture
async def names(new_ring: RingFactory) -> aiouring.AsyncRing:
    """A ring that may change names, also where rings are restricted."""
    made: aiouring.AsyncRing = await (
        new_ring(restrictions=Restrictions.default(*ON_REQUEST)) if RESTRICTED else new_ring()
    )
    return made


async def same_error(verb: Awaitable[Any], function: Callable[[], Any]) -> None:
    """The awaitable fails as the function does: kind, number, names."""
    with pytest.raises(OSError) as ours:
        await verb
    with pytest.raises(OSError) as theirs:
        function()
    found, expected = ours.value, theirs.value
    assert type(found) is type(expected)
    assert (found.errno, found.filename, found.filename2) == (expected.errno, expected.filename, expected.filename2)


async def test_whole_files(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Bytes and text, written and read at once; errors are those of pathlib."""
    path = tmp_path / "file"
    for content in (b"", b"x", os.urandom(100_000), os.urandom(3_000_000)):
        assert await aiouring.write_bytes(path, content, ring=names) == len(content)
        assert path.read_bytes() == content
        assert await aiouring.read_bytes(str(path), ring=names) == content
        assert await aiouring.write_bytes(path, bytearray(content), atomic=True, ring=names) == len(content)
        assert path.read_bytes() == content
    assert await aiouring.write_text(path, "Größe\n", "latin-1", newline="\r\n", ring=names) == 6
    assert path.read_bytes() == b"Gr\xf6\xdfe\r\n"
    assert await aiouring.read_text(path, "latin-1", ring=names) == "Größe\n"
    assert await aiouring.write_text(path, "ö", "ascii", "replace", atomic=True, ring=names) == 1
    assert path.read_bytes() == b"?"
    for atomic in (False, True):
        for wrong in (5, None, "text"):
            with pytest.raises(TypeError):
                await aiouring.write_bytes(path, wrong, atomic=atomic, ring=names)
        with pytest.raises(TypeError, match="str, not bytes"):
            await aiouring.write_text(path, b"x", atomic=atomic, ring=names)  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            await aiouring.write_text(path, "ö", "ascii", atomic=atomic, ring=names)
    missing = tmp_path / "missing" / "file"
    await same_error(aiouring.read_bytes(missing, ring=names), missing.read_bytes)
    await same_error(aiouring.read_text(tmp_path, ring=names), tmp_path.read_text)
    await same_error(aiouring.write_bytes(missing, b"", ring=names), lambda: missing.write_bytes(b""))
    await same_error(aiouring.write_bytes(missing, b"", atomic=True, ring=names), lambda: missing.write_bytes(b""))


async def test_atomic_writes(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """The file is replaced, with its permissions, where a link leads to it; nothing else is left in the directory."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    before = path.stat().st_ino
    assert await aiouring.write_bytes(tmp_path / "link", b"new", atomic=True, ring=names) == 3
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    assert await aiouring.write_bytes(tmp_path / "made", b"new", atomic=True, ring=names) == 3
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "made"]


async def test_an_atomic_write_hides_what_was_hidden(
    names: aiouring.AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file beside a private one is as private, from the first byte that is written into it."""
    path, seen = tmp_path / "secret", []
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_at = RawFile.write_at

    async def look(raw: RawFile, data: Any, offset: int) -> int:
        seen.append(os.fstat(raw.fileno()).st_mode & 0o777)
        return await write_at(raw, data, offset)

    monkeypatch.setattr(RawFile, "write_at", look)
    mask = os.umask(0)
    try:
        await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
    finally:
        os.umask(mask)
    assert seen == [0o600]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
@pytest.mark.parametrize("mode", [0o640, 0o4755, 0o2750, 0o6711, 0o604])
async def test_an_atomic_write_keeps_the_owner(names: aiouring.AsyncRing, tmp_path: Path, mode: int) -> None:
    """Owner, group and all permissions are those of the file whose place is taken."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    path.chmod(mode)
    await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12345, 23456, mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
@pytest.mark.parametrize(
    ("mode", "no_owner", "neither"),
    [
        (0o644, 0o644, 0o644),
        (0o640, 0o640, 0o600),
        (0o6775, 0o775, 0o755),
        (0o670, 0o670, 0o600),
        (0o604, 0o604, 0o604),
    ],
)
async def test_an_atomic_write_gives_nobody_more_rights(
    names: aiouring.AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, no_owner: int, neither: int
) -> None:
    """Where owner or group cannot be kept, no set-ID bit stays, and the new group may do what both others might."""
    path, fchown = tmp_path / "file", os.fchown

    def refusing(fd: int, owner: int, group: int) -> None:
        if owner != -1 or not groups:
            raise PermissionError(errno.EPERM, "not allowed")
        fchown(fd, owner, group)

    monkeypatch.setattr(os, "fchown", refusing)
    for groups, expected in ((True, no_owner), (False, neither)):
        path.unlink(missing_ok=True)
        path.write_bytes(b"old")
        os.chown(path, 12345, 23456)
        path.chmod(mode)
        await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 23456 if groups else 0)
        assert found.st_mode & 0o7777 == expected


#: An access control list: the owner and user 12345 may read and write, the group nothing, others read.
LISTED = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *entry) for entry in [(1, 6, -1), (2, 6, 12345), (4, 0, -1), (16, 6, -1), (32, 4, -1)]
)


def have_list(path: Path, kind: str) -> None:
    """Give a file or a directory that list."""
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", LISTED)
    except OSError as error:
        pytest.skip(f"this file system has no access control lists: {error}")


async def test_an_atomic_write_keeps_an_access_control_list(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What the mode says of the group is then what those named in the list may do; the group has what it had."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    have_list(path, "access")
    assert path.stat().st_mode & 0o777 == 0o664
    await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
    assert path.stat().st_mode & 0o777 == 0o664
    assert os.getxattr(path, "system.posix_acl_access") == LISTED


async def test_an_atomic_write_makes_no_access_control_list(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """The directory's, for what is made in it, gives nobody rights to a file that had none of it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o660)
    have_list(tmp_path, "default")
    await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
    assert path.stat().st_mode & 0o777 == 0o660
    assert "system.posix_acl_access" not in os.listxattr(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
async def test_an_atomic_write_that_keeps_list_but_not_group(
    names: aiouring.AsyncRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new group, and whoever is named, may do no more than others."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 0, 23456)
    have_list(path, "access")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not allowed")

    monkeypatch.setattr(os, "fchown", refused)
    await aiouring.write_bytes(path, b"new", atomic=True, ring=names)
    assert path.stat().st_mode & 0o777 == 0o644


async def test_an_atomic_write_that_fails(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """On a full disk, or cancelled at any moment, the old contents stay, and no temporary file does."""
    with mounted("tmpfs", tmp_path / "small", "-o", "size=1m") as small:
        path = small / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError) as caught:
            await aiouring.write_bytes(path, bytes(2 << 20), atomic=True, ring=names)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert os.listdir(small) == ["file"]
        for turns in range(30):
            task = asyncio.create_task(aiouring.write_bytes(path, b"new" * turns, atomic=True, ring=names))
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            task.cancel()
            await asyncio.wait([task])
            assert os.listdir(small) == ["file"]
            assert path.read_bytes() in (b"old", *(b"new" * turn for turn in range(turns + 1)))


async def test_asking(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """stat() has what os.stat() has; exists() is False whenever it cannot be found out."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    for follow in (True, False):
        found, expected = (
            await aiouring.stat(tmp_path / "link", follow_symlinks=follow, ring=names),
            os.stat(tmp_path / "link", follow_symlinks=follow),
        )
        for field in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_size", "st_mtime_ns", "st_uid", "st_blocks"):
            assert getattr(found, field) == getattr(expected, field)
    await same_error(aiouring.stat(tmp_path / "none", ring=names), lambda: os.stat(tmp_path / "none"))
    for name in ("file", "link", "broken", "none", "file/none", "n\0", ".", "x" * 300):
        assert await aiouring.exists(tmp_path / name, ring=names) == os.path.exists(tmp_path / name), name
    assert sorted(await aiouring.listdir(tmp_path)) == ["broken", "file", "link"]
    await same_error(aiouring.listdir(path), lambda: os.listdir(path))


async def test_names(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """Renaming, linking, removing and truncating, relative to a directory or not."""
    directory = os.open(tmp_path, os.O_RDONLY)
    await aiouring.write_bytes(tmp_path / "a", b"12345", ring=names)
    await aiouring.link(tmp_path / "a", tmp_path / "b", ring=names)
    await aiouring.symlink("b", tmp_path / "c", ring=names)
    await aiouring.rename("a", "d", src_dir_fd=directory, dst_dir_fd=directory, ring=names)
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "d"]
    await aiouring.replace(tmp_path / "d", tmp_path / "b", ring=names)  # two names of one file: both stay
    await aiouring.remove("d", dir_fd=directory, ring=names)
    assert (tmp_path / "c").read_bytes() == b"12345"
    await aiouring.truncate(tmp_path / "c", 3, ring=names)
    assert (tmp_path / "b").read_bytes() == b"123"
    await aiouring.sync_directory(tmp_path, ring=names)
    with pytest.raises(NotADirectoryError):
        await aiouring.sync_directory(tmp_path / "b", ring=names)
    none = tmp_path / "none"
    await same_error(aiouring.remove(none, ring=names), lambda: os.remove(none))
    await same_error(aiouring.rename(none, "x", ring=names), lambda: os.rename(none, "x"))
    await same_error(aiouring.truncate(none, 0, ring=names), lambda: os.truncate(none, 0))
    await same_error(aiouring.link(none, "x", ring=names), lambda: os.link(none, "x"))
    await same_error(aiouring.symlink("x", tmp_path / "b", ring=names), lambda: os.symlink("x", tmp_path / "b"))
    os.close(directory)


async def test_directories(names: aiouring.AsyncRing, tmp_path: Path) -> None:
    """One, many at once, those that are there, and those that cannot be."""
    deep = tmp_path / "one" / "two" / "three"
    await aiouring.makedirs(deep, 0o700, ring=names)
    assert deep.stat().st_mode & 0o777 == 0o700
    await aiouring.makedirs(deep, exist_ok=True, ring=names)
    await aiouring.makedirs(f"{deep}/four/", ring=names)
    await same_error(aiouring.makedirs(deep, ring=names), lambda: os.makedirs(deep))
    (deep / "file").write_bytes(b"")
    for path in (deep / "file", deep / "file" / "below"):
        for exist_ok in (False, True):
            with pytest.raises(OSError) as ours:
                await aiouring.makedirs(path, exist_ok=exist_ok, ring=names)
            with pytest.raises(OSError) as theirs:
                os.makedirs(path, exist_ok=exist_ok)
            assert (ours.value.errno, ours.value.filename) == (theirs.value.errno, theirs.value.filename)
    await asyncio.gather(
        *(aiouring.makedirs(tmp_path / "x" / "y" / str(at % 3), 0o755, True, ring=names) for at in range(20))
    )
    await aiouring.mkdir(tmp_path / "m", 0o711, ring=names)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o711
    await aiouring.rmdir(tmp_path / "m", ring=names)
    await same_error(aiouring.rmdir(deep, ring=names), lambda: os.rmdir(deep))
    await same_error(aiouring.mkdir(deep, ring=names), lambda: os.mkdir(deep))


@pytest.mark.parametrize("path", ["", "/proc/no/such", "dangling/below"])
async def test_directories_that_cannot_be_made_end(
    names: aiouring.AsyncRing, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the directory above is there and the kernel still finds no place for a name, that is the answer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    async with asyncio.timeout(5):
        await same_error(aiouring.makedirs(path, ring=names), lambda: os.makedirs(path))


async def test_default_restrictions(profile: str, tmp_path: Path) -> None:
    """A restricted ring opens, asks and truncates, and refuses to change names, saying so."""
    (tmp_path / "file").write_bytes(b"12345")
    async with aiouring.AsyncRing(task_run=profile, restrictions=True) as ring:  # type: ignore[arg-type]
        await aiouring.truncate(tmp_path / "file", 4, ring=ring)
        assert await aiouring.read_bytes(tmp_path / "file", ring=ring) == b"1234"
        assert await aiouring.exists(tmp_path / "file", ring=ring)
        with pytest.raises(PermissionError, match="UNLINKAT"):
            await aiouring.remove(tmp_path / "file", ring=ring)
