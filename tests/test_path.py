"""Tests of Path: pathlib's names, awaited."""

import asyncio
from collections.abc import Callable
from pathlib import Path as Pure

import pytest
from test_binary_file import LOOPS

import aiouring
from aiouring import Path


@pytest.mark.needs_no_ring
def test_it_is_a_pure_path() -> None:
    """What needs no file system is pathlib's, and gives a Path again."""
    path = Path("/one") / "two.txt"
    for made in (path, path.parent, path.with_suffix(".md"), path.relative_to("/one"), "/x" / path):
        assert type(made) is Path
    assert str(path) == "/one/two.txt"
    assert path == Path("/one/two.txt")
    assert repr(path) == "Path('/one/two.txt')"


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_every_method(factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Pure) -> None:
    """Each does what pathlib's does."""

    async def main() -> None:
        folder = Path(tmp_path) / "new" / "folder"
        with pytest.raises(FileNotFoundError):
            await folder.mkdir()
        await folder.mkdir(parents=True)
        await folder.mkdir(exist_ok=True)
        await folder.mkdir(parents=True, exist_ok=True)
        with pytest.raises(FileExistsError):
            await folder.mkdir()
        file = folder / "file"
        assert not await file.exists()
        assert not await file.is_file()
        assert not await (file / "below").is_dir()
        assert await file.write_text("Größe", "utf-8") == 5
        assert await file.read_text("utf-8") == "Größe"
        assert await file.write_bytes(b"12345", atomic=True) == 5
        assert await file.write_text("12345", atomic=True) == 5
        assert await file.read_bytes() == b"12345"
        async with file.open("rb") as opened:
            assert isinstance(opened, aiouring.BinaryFile)
            assert await opened.read(2) == b"12"
        link = folder / "link"
        await link.symlink_to("file")
        await (folder / "other").hardlink_to(file)
        assert (await file.stat()).st_nlink == 2
        assert (await link.stat()).st_ino == (await file.lstat()).st_ino != (await link.lstat()).st_ino
        assert [await link.is_file(), await link.is_symlink(), await file.is_symlink()] == [True, True, False]
        assert [await folder.is_dir(), await folder.is_file(), await file.exists()] == [True, False, True]
        assert {path.name async for path in folder.iterdir()} == {"file", "link", "other"}
        await file.truncate(2)
        assert await link.read_bytes() == b"12"
        moved = await file.rename(folder / "moved")
        assert type(moved) is Path
        assert await (await moved.replace(folder / "again")).exists()
        for path in (folder / "again", link, folder / "other"):
            await path.unlink()
        await link.unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            await link.unlink()
        with pytest.raises(OSError, match="not empty") as caught:
            await folder.parent.rmdir()
        assert caught.value.filename == str(folder.parent)
        await folder.rmdir()
        with pytest.raises(FileExistsError):
            await (folder.parent / "file").write_bytes(b"")
            await (folder.parent / "file").mkdir(exist_ok=True)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
