"""Tests of examples/copy_tree.py: everything arrives, and what cannot be copied is said."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "copy_tree.py"


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the example; a warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def tree(path: Path) -> dict[str, tuple[int, object]]:
    """Everything in a directory: its permissions, and what is in it."""
    found: dict[str, tuple[int, object]] = {}
    for each in sorted(path.rglob("*")):
        content = os.readlink(each) if each.is_symlink() else each.read_bytes() if each.is_file() else None
        found[str(each.relative_to(path))] = (each.lstat().st_mode, content)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with files of many sizes, in directories, and links."""
    choose = random.Random(30)
    folder = tmp_path / "source"
    for number, size in enumerate([0, 1, 4096, 70_000, 3_000_000] * 5):
        path = folder / f"{number % 4}" / f"{number % 3}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(choose.randbytes(size))
        path.chmod(choose.choice([0o600, 0o644, 0o755]))
    (folder / "link").symlink_to("0/0")
    (folder / "broken").symlink_to("nowhere")
    (folder / "empty").mkdir(0o700)
    (folder / "1" / "0").chmod(0o555)
    return folder


@pytest.mark.parametrize("options", [(), ("--direct", "--files", "16")])
def test_everything_arrives(source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Files, directories, links and permissions, and nothing said."""
    done = run(*options, source, tmp_path / "made" / "copy")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tree(tmp_path / "made" / "copy") == tree(source)


def test_what_cannot_be_copied(source: Path, tmp_path: Path) -> None:
    """A pipe is left out and named, and the rest is copied."""
    expected = tree(source)
    os.mkfifo(source / "pipe")
    done = run(source, tmp_path / "copy")
    assert done.returncode == 1
    assert done.stderr == f"left out: '{source / 'pipe'}' is neither a file, a directory nor a link\n"
    assert tree(tmp_path / "copy") == expected


@pytest.mark.needs_no_ring
def test_wrong_options(source: Path, tmp_path: Path) -> None:
    """What would not end well is refused."""
    for arguments, text in (
        ((tmp_path / "none", tmp_path / "copy"), "is not a directory"),
        ((source, source / "copy"), "the copy would be copied"),
        (("--files", "0", source, tmp_path / "copy"), "a number from 1"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert text in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["source"]
