"""Tests of the verbs on extended attributes."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from conftest import RESTRICTED, RingFactory

import aiouring
from aiouring import AsyncRing, Restrictions
from aiouring._restrictions import ON_REQUEST


@pytest.fixture
async def names(new_ring: RingFactory) -> AsyncRing:
    """A ring that may set attributes, also where rings are restricted."""
    options = {"restrictions": Restrictions.default(*ON_REQUEST)} if RESTRICTED else {}
    made: AsyncRing = await new_ring(**options)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file on a file system that has extended attributes."""
    made = tmp_path / "file"
    made.touch()
    try:
        os.setxattr(made, "user.there", b"value")
    except OSError as error:
        pytest.skip(f"no extended attributes under {tmp_path}: {error}")
    return made


async def test_of_a_name_and_of_an_open_file(names: AsyncRing, path: Path) -> None:
    """What one form sets the other reads, and os sees it."""
    with path.open("r+b") as file:
        assert await names.getxattr(path, "user.there") == await names.fgetxattr(file, b"user.there") == b"value"
        await names.setxattr(str(path), "user.a", b"")
        await names.fsetxattr(file.fileno(), "user.b", memoryview(b"xbx")[1:2])
        assert (os.getxattr(path, "user.a"), os.getxattr(path, "user.b")) == (b"", b"b")
        assert await names.getxattr(os.fsencode(path), "user.a") == b""
        with names.register_files([file]) as files:
            await names.fsetxattr(files[0], "user.b", bytearray(b"slot"))
            assert await names.fgetxattr(files[0], "user.b") == b"slot"


async def test_sizes(names: AsyncRing) -> None:
    """Values longer than the first try's buffer come whole; on tmpfs, which has room for the longest."""
    path = Path(f"/dev/shm/aiouring-test-{os.getpid()}")
    path.touch()
    try:
        for size in (255, 256, 257, 3000, 65536):
            try:
                os.setxattr(path, "user.long", bytes(size))
            except OSError as error:
                pytest.skip(f"/dev/shm takes no such attribute: {error}")
            await names.setxattr(path, "user.long", bytes([size % 251]) * size)
            assert await names.getxattr(path, "user.long") == bytes([size % 251]) * size
            with path.open("rb") as file:
                assert await names.fgetxattr(file, "user.long") == bytes([size % 251]) * size
        with pytest.raises(OSError) as caught:
            await names.setxattr(path, "user.long", bytes(65537))
        assert (caught.value.errno, caught.value.filename) == (errno.E2BIG, str(path))
    finally:
        path.unlink()


async def test_flags_and_refusals(names: AsyncRing, path: Path) -> None:
    """XATTR_CREATE, XATTR_REPLACE, no such attribute, no such file: the errors of os, with the file's name."""
    with pytest.raises(FileExistsError) as caught:
        await names.setxattr(path, "user.there", b"x", os.XATTR_CREATE)
    assert caught.value.filename == str(path)
    for verb in (names.setxattr(path, "user.none", b"x", os.XATTR_REPLACE), names.getxattr(path, "user.none")):
        with pytest.raises(OSError) as failed:
            await verb
        assert (failed.value.errno, failed.value.filename) == (errno.ENODATA, str(path))
    with pytest.raises(FileNotFoundError) as missing:
        await names.getxattr("/none", "user.a")
    assert missing.value.filename == "/none"
    with pytest.raises(OSError) as failed:
        await names.getxattr(path, "nonsense")
    assert failed.value.errno == errno.ENOTSUP
    with path.open() as file:
        with pytest.raises(OSError) as failed:
            await names.fgetxattr(file, "user.none")
        assert failed.value.errno == errno.ENODATA
        number = file.fileno()
    with pytest.raises(OSError) as failed:
        await names.fsetxattr(number, "user.a", b"")
    assert failed.value.errno == errno.EBADF
    for verb in (names.getxattr(path, "a\0b"), names.fsetxattr(0, "a\0b", b"")):
        with pytest.raises(ValueError, match="the name has a null byte"):
            await verb


async def test_b5_the_value_is_held_until_the_end(names: AsyncRing, path: Path) -> None:
    """A bytearray cannot be resized while it is being set, and can afterwards, whether it went well or not."""
    value = bytearray(b"held")
    with path.open("r+b") as file:
        for verb in (
            names.setxattr(path, "user.a", value),
            names.fsetxattr(file, "user.a", value),
            names.setxattr("/none", "user.a", value),
        ):
            task = asyncio.create_task(verb)
            await asyncio.sleep(0)
            with pytest.raises(BufferError):
                value.append(1)
            await asyncio.wait([task])
            value.append(1)
            value.pop()
            task.exception()


async def test_e6_an_older_kernel(names: AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no such operations each verb says since when."""
    monkeypatch.setattr("aiouring._features._here", frozenset())
    for verb in (
        names.getxattr("x", "y"), names.setxattr("x", "y", b""), names.fgetxattr(0, "y"), names.fsetxattr(0, "y", b""),
    ):  # fmt: skip
        with pytest.raises(aiouring.UnsupportedKernelError, match="extended attributes: needs Linux 5.19"):
            await verb
