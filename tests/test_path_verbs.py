"""Tests of the verbs on names: the same outcome and the same error as the functions of os, on real file systems."""

import asyncio
import contextlib
import errno
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RESTRICTED, RingFactory, open_files
from registered_slots import opened

import aiouring
from aiouring import AsyncRing, AtFlags, Opcode, RenameFlags, ResolveFlags, Restrictions, StatxAttributes, StatxMask
from aiouring._restrictions import ON_REQUEST

ALL = Restrictions.default(*ON_REQUEST)


@pytest.fixture
async def names(new_ring: RingFactory) -> AsyncRing:
    """A ring that may change names, also where rings are restricted."""
    made: AsyncRing = await (new_ring(restrictions=ALL) if RESTRICTED else new_ring())
    return made


async def same_error(verb: Awaitable[Any], function: Callable[[], Any]) -> OSError:
    """The error of a verb, which must be that of the function in kind, number, names and text."""
    with pytest.raises(OSError) as ours:
        await verb
    with pytest.raises(OSError) as theirs:
        function()
    found, expected = ours.value, theirs.value
    assert type(found) is type(expected)
    assert (found.errno, found.filename, found.filename2) == (expected.errno, expected.filename, expected.filename2)
    assert str(found) == str(expected)
    return found


# ---- names -----------------------------------------------------------------------------------------


async def test_names_in_every_form(names: AsyncRing, tmp_path: Path) -> None:
    """A path is a str, bytes or PathLike; anything else, and a null byte, is refused before it is submitted."""
    (tmp_path / "fünf").write_bytes(b"12345")
    for path in (tmp_path / "fünf", str(tmp_path / "fünf"), os.fsencode(tmp_path / "fünf")):
        assert (await names.statx(path)).st_size == 5
    for verb in (
        names.statx("a\0b"), names.openat("a\0b"), names.openat2(b"a\0b"), names.unlinkat("a\0b"),
        names.mkdirat("a\0b"), names.renameat("a", "a\0b"), names.linkat("a\0b", "a"), names.symlinkat("a\0b", "a"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="null byte"):
            await verb
    for wrong in (5.5, None, ["a"]):
        with pytest.raises(TypeError):
            await names.unlinkat(wrong)  # type: ignore[arg-type]


async def test_errors_are_those_of_os(names: AsyncRing, tmp_path: Path) -> None:
    """Kind, errno, filename, filename2 and text are what os raises for the same mistake."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    (tmp_path / "file").touch()
    none, folder, file = tmp_path / "none", str(tmp_path / "folder"), os.fsencode(tmp_path / "file")
    await same_error(names.openat(none), lambda: os.open(none, os.O_RDONLY))
    await same_error(names.openat2(none), lambda: os.open(none, os.O_RDONLY))
    await same_error(names.openat2(folder, os.O_RDWR), lambda: os.open(folder, os.O_RDWR))
    await same_error(names.statx(none), lambda: os.stat(none))
    await same_error(names.statx(file + b"/x"), lambda: os.stat(file + b"/x"))
    await same_error(names.unlinkat(none), lambda: os.unlink(none))
    await same_error(names.unlinkat(folder), lambda: os.unlink(folder))
    await same_error(names.unlinkat(folder, AtFlags.REMOVEDIR), lambda: os.rmdir(folder))
    await same_error(names.unlinkat(file, AtFlags.REMOVEDIR), lambda: os.rmdir(file))
    await same_error(names.mkdirat(folder), lambda: os.mkdir(folder))
    await same_error(names.renameat(none, file), lambda: os.rename(none, file))
    await same_error(names.renameat(folder, file), lambda: os.rename(folder, file))
    await same_error(names.renameat(file, "/dev/shm/x"), lambda: os.rename(file, "/dev/shm/x"))
    await same_error(names.linkat(none, "x"), lambda: os.link(none, "x"))
    await same_error(names.linkat(file, folder), lambda: os.link(file, folder))
    await same_error(names.symlinkat("anything", file), lambda: os.symlink("anything", file))
    await same_error(names.mkdirat("x" * 300), lambda: os.mkdir("x" * 300))
    await same_error(names.statx("x" * 5000), lambda: os.stat("x" * 5000))
    await same_error(names.statx(""), lambda: os.stat(""))


async def test_directories(names: AsyncRing, tmp_path: Path) -> None:
    """Every verb takes directories, by number and by object, for each of its names."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path / "b", os.O_PATH | os.O_DIRECTORY)

    class Held:
        def fileno(self) -> int:
            return b

    os.close(await names.openat2("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=a))
    assert stat.S_IMODE((await names.statx("file", dir_fd=a)).st_mode) == 0o600
    await names.linkat("file", "linked", src_dir_fd=a, dst_dir_fd=Held())
    await names.renameat("file", "renamed", src_dir_fd=a, dst_dir_fd=Held())
    await names.symlinkat("renamed", "symbolic", dir_fd=Held())
    await names.mkdirat("folder", 0o700, dir_fd=Held())
    assert sorted(os.listdir(tmp_path / "b")) == ["folder", "linked", "renamed", "symbolic"]
    assert os.listdir(a) == []
    assert (await names.statx("symbolic", dir_fd=b)).st_nlink == 2
    assert stat.S_ISLNK((await names.statx("symbolic", AtFlags.SYMLINK_NOFOLLOW, dir_fd=b)).st_mode)
    await names.linkat("symbolic", "followed", AtFlags.SYMLINK_FOLLOW, src_dir_fd=b, dst_dir_fd=a)
    assert stat.S_ISREG(os.lstat(tmp_path / "a" / "followed").st_mode)
    await names.unlinkat("folder", AtFlags.REMOVEDIR, dir_fd=b)
    for name in ("linked", "renamed", "symbolic"):
        await names.unlinkat(name, dir_fd=b)
    assert os.listdir(tmp_path / "b") == []
    os.close(a)
    os.close(b)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await names.mkdirat("x", dir_fd=a)
    with names.register_files([0]) as files:
        with pytest.raises(TypeError, match="takes no direct descriptor for dir_fd"):
            await names.unlinkat("x", dir_fd=files[0])
        with pytest.raises(TypeError, match="takes no direct descriptor for statx"):
            await names.statx(files[0])


async def test_e12_a_directory_that_is_closed_meanwhile(names: AsyncRing, tmp_path: Path) -> None:
    """The kernel looks directories up in a worker, later: a number that is another directory by then is never met."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    other = os.open(tmp_path / "other", os.O_RDONLY)
    for at in range(20):
        for folder in ("mine", "other"):
            (tmp_path / folder / f"victim{at}").touch()
        mine = os.open(tmp_path / "mine", os.O_RDONLY)
        removing = asyncio.create_task(names.unlinkat(f"victim{at}", dir_fd=mine))
        opening = asyncio.create_task(names.openat2("made", os.O_CREAT | os.O_WRONLY, dir_fd=mine))
        await asyncio.sleep(0)
        names._driver.submit_queued()  # type: ignore[union-attr]
        os.dup2(other, mine)
        await removing
        os.close(await opening)
        os.close(mine)
    assert sorted(os.listdir(tmp_path / "mine")) == ["made"]
    assert len(os.listdir(other)) == 20
    os.close(other)


# ---- openat2 ---------------------------------------------------------------------------------------


async def test_openat2_stays_within_bounds(ring: AsyncRing, tmp_path: Path) -> None:
    """What leads out of the directory, over a symbolic link or a mount is refused, as asked."""
    (tmp_path / "inside").write_bytes(b"x")
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "in").symlink_to("inside")
    folder = os.open(tmp_path, os.O_RDONLY)
    beneath, without = ResolveFlags.BENEATH, ResolveFlags.NO_SYMLINKS
    os.close(await ring.openat2("in", resolve=beneath, dir_fd=folder))
    os.close(await ring.openat2("inside", resolve=beneath | without, dir_fd=folder))
    for name, way, expected in (
        ("out", beneath, errno.EXDEV),
        ("../x", beneath, errno.EXDEV),
        ("/etc/passwd", beneath, errno.EXDEV),
        ("in", without, errno.ELOOP),
        ("out", ResolveFlags.IN_ROOT, errno.ENOENT),
        ("/proc/self/fd/0", ResolveFlags.NO_MAGICLINKS, errno.ELOOP),
        ("/dev/null", ResolveFlags.NO_XDEV, errno.EXDEV),
    ):
        with pytest.raises(OSError) as caught:
            await ring.openat2(name, resolve=way, dir_fd=folder)
        assert (caught.value.errno, caught.value.filename) == (expected, name), name
    os.close(folder)
    with pytest.raises(OSError) as caught:
        await ring.openat2("x", 1 << 30)
    assert caught.value.errno == errno.EINVAL


async def test_openat2_makes_files(ring: AsyncRing, tmp_path: Path) -> None:
    """The mode counts where a file is made, with or without a name, and is no mistake where none is."""
    number = await ring.openat2(tmp_path / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    assert stat.S_IMODE(os.fstat(number).st_mode) == 0o640
    assert not os.get_inheritable(number)
    os.close(number)
    number = await ring.openat2(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert os.fstat(number).st_nlink == 0
    os.close(number)
    os.close(await ring.openat2(tmp_path / "new", os.O_RDONLY, 0o777))


async def test_openat2_direct(ring: AsyncRing, tmp_path: Path) -> None:
    """A file goes into a slot, and its mistakes leave the slot free."""
    (tmp_path / "file").write_bytes(b"direct")
    with ring.register_files_sparse(2):
        made = await ring.openat2_direct(tmp_path / "file", resolve=ResolveFlags.NO_SYMLINKS, index=1)
        assert await ring.read(made, memory := bytearray(9), 0) == 6
        assert memory[:6] == b"direct"
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none"))):
            await ring.openat2_direct(tmp_path / "none", index=0)
        made = await ring.openat2_direct(tmp_path / "file")
        assert made.index == 0
        with pytest.raises(ValueError, match="O_CLOEXEC"):
            await ring.openat2_direct(tmp_path / "file", os.O_CLOEXEC)


async def test_a7_a_cancelled_open_leaks_nothing(ring: AsyncRing, tmp_path: Path) -> None:
    """Opens that are cancelled at any moment leave no descriptor, neither of the file nor of the directory."""
    (tmp_path / "file").touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    files = open_files()
    for turns in range(30):
        task = asyncio.create_task(ring.openat2("file", resolve=ResolveFlags.BENEATH, dir_fd=folder))
        for _ in range(turns // 3):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            os.close(await task)
    assert open_files() == files
    os.close(folder)


# ---- statx -----------------------------------------------------------------------------------------


async def test_statx_agrees_with_stat(ring: AsyncRing, tmp_path: Path) -> None:
    """Every field of os.stat_result is there, with its value, for files, folders, links and devices."""
    (tmp_path / "file").write_bytes(b"x" * 12345)
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "file", tmp_path, tmp_path / "link", Path("/dev/null"), Path("/proc/self/status")):
        for follow in (True, False):
            expected = os.stat(path, follow_symlinks=follow)
            found = await ring.statx(path, AtFlags(0) if follow else AtFlags.SYMLINK_NOFOLLOW)
            for name in dir(expected):
                if name.startswith("st_") and "atime" not in name:
                    assert getattr(found, name) == getattr(expected, name), name
    os.utime(tmp_path / "file", ns=(123456789123456789, -1_500_000_000))
    found, expected = await ring.statx(tmp_path / "file"), os.stat(tmp_path / "file")
    assert (found.st_atime_ns, found.st_mtime_ns) == (expected.st_atime_ns, expected.st_mtime_ns)
    assert (found.st_atime, found.st_mtime) == (expected.st_atime, expected.st_mtime)
    assert os.path.samestat(found, expected)  # type: ignore[arg-type]


async def test_statx_says_more_than_stat(ring: AsyncRing, tmp_path: Path) -> None:
    """When a file was made, its mount, its attributes, and what O_DIRECT needs; None where it was not asked for."""
    (tmp_path / "file").touch()
    found = await ring.statx(tmp_path / "file")
    assert found.mask & StatxMask.BTIME
    assert abs((found.st_birthtime or 0) - found.st_mtime) < 10
    assert found.dio_mem_align is not None
    assert found.dio_offset_align is not None
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert found.mount_id in [int(fields[0]) for fields in mounts]
    root = await ring.statx("/")
    assert root.attributes & root.attributes_mask & StatxAttributes.MOUNT_ROOT
    little = await ring.statx(tmp_path / "file", mask=StatxMask.SIZE | StatxMask.TYPE)
    assert (little.dio_mem_align, little.subvolume, little.atomic_write_unit_max) == (None, None, None)
    assert (await ring.statx("/dev/null")).dio_mem_align in (None, 0)


async def test_statx_of_an_open_file(ring: AsyncRing, tmp_path: Path) -> None:
    """By descriptor or object, also where the file has no name any more; a closed one is EBADF."""
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"four")
        file.flush()
        os.unlink(tmp_path / "file")
        for form in (file, file.fileno()):
            found = await ring.statx(form)
            assert (found.st_size, found.st_nlink, found.st_ino) == (4, 0, os.fstat(file.fileno()).st_ino)
        number = os.dup(file.fileno())
    os.close(number)
    with pytest.raises(OSError) as caught:
        await ring.statx(number)
    assert caught.value.errno == errno.EBADF
    reader, writer = os.pipe()
    assert stat.S_ISFIFO((await ring.statx(reader)).st_mode)
    os.close(reader)
    os.close(writer)


async def test_e12_statx_of_a_file_that_is_closed_meanwhile(ring: AsyncRing, tmp_path: Path) -> None:
    """The worker may meet another file under the number: that is EBADF, never the other's size."""
    other = opened(tmp_path / "other", b"other")
    for _ in range(20):
        mine = os.open(tmp_path / "mine", os.O_CREAT | os.O_RDWR)
        task = asyncio.create_task(ring.statx(mine))
        await asyncio.sleep(0)
        ring._driver.submit_queued()  # type: ignore[union-attr]
        os.dup2(other, mine)
        try:
            assert (await task).st_size == 0, "the worker was quicker"
        except OSError as error:
            assert "closed while" in str(error)  # noqa: PT017 - either is right
        os.close(mine)
    os.close(other)


# ---- changing names --------------------------------------------------------------------------------


async def test_rename(names: AsyncRing, tmp_path: Path) -> None:
    """Replaces by default; NOREPLACE refuses, EXCHANGE swaps."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    b.write_text("b")
    await names.renameat(a, b, RenameFlags.EXCHANGE)
    assert (a.read_text(), b.read_text()) == ("b", "a")
    with pytest.raises(FileExistsError) as caught:
        await names.renameat(a, b, RenameFlags.NOREPLACE)
    assert (caught.value.filename, caught.value.filename2) == (str(a), str(b))
    await names.renameat(a, b)
    assert b.read_text() == "b"
    assert not a.exists()
    await names.renameat(b, a, RenameFlags.NOREPLACE)
    assert a.read_text() == "b"


async def test_making_and_removing_many(names: AsyncRing, tmp_path: Path) -> None:
    """A hundred of each at once, more than the workers can take at a time."""
    await asyncio.gather(*(names.mkdirat(tmp_path / f"d{at}") for at in range(100)))
    await asyncio.gather(*(names.symlinkat(f"d{at}", tmp_path / f"s{at}") for at in range(100)))
    found = await asyncio.gather(*(names.statx(tmp_path / f"s{at}") for at in range(100)))
    assert len({each.st_ino for each in found}) == 100
    await asyncio.gather(*(names.unlinkat(tmp_path / f"s{at}") for at in range(100)))
    await asyncio.gather(*(names.unlinkat(tmp_path / f"d{at}", AtFlags.REMOVEDIR) for at in range(100)))
    assert os.listdir(tmp_path) == []


async def test_the_mode_of_a_directory(names: AsyncRing, tmp_path: Path) -> None:
    """The umask is the process's, as for os.mkdir."""
    old = os.umask(0o027)
    try:
        await names.mkdirat(tmp_path / "folder", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


async def test_cancelled_changes_are_done_or_not(names: AsyncRing, tmp_path: Path) -> None:
    """A cancelled request is over when CancelledError leaves: nothing changes afterwards, and nothing is left open."""
    folder = os.open(tmp_path, os.O_RDONLY)
    files = open_files()
    for at in range(40):
        task = asyncio.create_task(names.mkdirat(f"d{at}", dir_fd=folder))
        for _ in range(at % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or (tmp_path / f"d{at}").exists()
        before = sorted(os.listdir(folder))
        await names.nop()
        assert sorted(os.listdir(folder)) == before
    assert open_files() == files
    os.close(folder)


async def test_names_are_not_changed_by_default_restrictions(profile: str) -> None:
    """A ring restricted to the default set says which operation it forbids, and about which file."""
    async with AsyncRing(task_run=profile, restrictions=True) as ring:  # type: ignore[arg-type]
        assert (await ring.statx("/")).st_mode
        with pytest.raises(PermissionError, match="forbid the operation UNLINKAT") as caught:
            await ring.unlinkat("/nowhere/x")
        assert caught.value.filename == "/nowhere/x"
    async with AsyncRing(task_run=profile, restrictions=Restrictions.default(Opcode.UNLINKAT)) as ring:  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            await ring.unlinkat("/nowhere/x")


async def test_a_closed_ring(tmp_path: Path) -> None:
    """After the close each verb says so, and the duplicates of directories are closed."""
    ring = AsyncRing()
    await ring.nop()
    folder = os.open(tmp_path, os.O_RDONLY)
    await ring.aclose()
    files = open_files()
    for verb in (ring.mkdirat("x", dir_fd=folder), ring.openat2("x", dir_fd=folder), ring.statx(folder)):
        with pytest.raises(aiouring.RingClosedError):
            await verb
    assert open_files() == files
    os.close(folder)
