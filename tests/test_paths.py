"""Tests of names and directories as they are handed to the kernel."""

import os
from pathlib import Path

import pytest
from conftest import open_files

from aiouring._paths import Directory, Naming, PathRequest, in_memory, name_files
from aiouring._uring import ffi, lib

pytestmark = pytest.mark.needs_no_ring


def test_names_in_memory() -> None:
    """Every form of a name is its bytes and a null byte; one that has a null byte itself is refused."""
    for name in ("ä/b", "ä/b".encode(), Path("ä/b")):
        assert bytes(ffi.buffer(in_memory(name))) == "ä/b".encode() + b"\0"
    assert bytes(ffi.buffer(in_memory("\udcff"))) == b"\xff\0"
    with pytest.raises(ValueError, match=r"the target has a null byte in it: 'a\\x00b'"):
        in_memory("a\0b", "target")
    with pytest.raises(TypeError):
        in_memory(5)  # type: ignore[arg-type]


def test_a_directory_is_a_duplicate(tmp_path: Path) -> None:
    """It is another descriptor of the same directory, closed once, by itself at the latest when it is dropped."""
    number = os.open(tmp_path, os.O_RDONLY)
    files = open_files()
    directory = Directory(number)
    assert directory.held is directory
    assert directory.fileno() != number
    assert os.path.samestat(os.fstat(directory.fileno()), os.fstat(number))
    assert not os.get_inheritable(directory.fileno())
    directory.close()
    directory.close()
    assert open_files() == files
    Directory(number)
    assert open_files() == files
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Directory(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Directory(-1)


def test_the_working_directory_is_not_held() -> None:
    """It has the kernel's number for it, and there is nothing to close."""
    directory = Directory(None)
    assert (directory.number, directory.held) == (lib.AU_AT_FDCWD, None)
    directory.close()


def test_directories_are_kept_by_a_request_in_flight(tmp_path: Path) -> None:
    """The end of the `with` block closes them if the request has ended; else they are the request's."""
    number = os.open(tmp_path, os.O_RDONLY)
    directory = Directory(number)
    request = PathRequest(directory)
    request.ended = False
    with Naming(request, "x", directories=(directory,)):
        pass
    assert directory.number >= 0
    request.ended = True
    with pytest.raises(OSError) as caught, Naming(request, "x", b"y", directories=(directory,)):
        raise OSError(1, "why")
    assert (caught.value.filename, caught.value.filename2) == ("x", b"y")
    assert directory.number < 0
    os.close(number)


def test_a_name_that_is_there_stays() -> None:
    """An error that names its file is left alone; others are raised as they are."""
    request = PathRequest()
    with pytest.raises(OSError) as caught, Naming(request, "x", directories=()):
        raise OSError(1, "why", "z")
    assert caught.value.filename == "z"
    with pytest.raises(KeyError), Naming(request, "x", directories=()):
        raise KeyError
    error = OSError(1, "why")
    name_files(error, Path("a"))
    assert (error.filename, error.filename2) == ("a", None)
