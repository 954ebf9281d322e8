"""Tests of what a kernel has: every feature is asked for without a trace, and its absence names a version."""

import errno
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import open_files
from injected_faults import real_register, replaced

import aiouring
from aiouring import _features
from aiouring._features import FEATURES, require
from aiouring._ring import CoreRing
from aiouring._uring import lib


@pytest.fixture(autouse=True)
def ask_again() -> Iterator[None]:
    """Each test asks the kernel itself, and leaves no answer of an older one behind."""
    _features.forget()
    yield
    _features.forget()


#: A registration that an older kernel answers with EINVAL, and what it then lacks.
OLDER = {
    lib.AU_REGISTER_CLONE_BUFFERS: {"cloning buffers", "cloning buffers in part"},
    lib.AU_REGISTER_PBUF_RING: {"buffer rings in kernel memory", "incremental buffer rings"},
    lib.AU_REGISTER_PBUF_STATUS: {"buffer ring status"},
    lib.AU_REGISTER_BUFFERS2: {"sparse buffer tables"},
    lib.AU_REGISTER_FILES2: {"sparse file tables"},
    lib.AU_REGISTER_FILE_ALLOC_RANGE: {"file allocation range"},
    lib.AU_REGISTER_CLOCK: {"clocks"},
    lib.AU_REGISTER_MEM_REGION: {"memory regions", "registered waits"},
    lib.AU_REGISTER_RESTRICTIONS: {"restrictions"},
}


def test_all_are_here() -> None:
    """The kernel under test has every feature, as 6.15 and later ones do."""
    here = _features.ask()
    if missing := set(FEATURES) - here:
        pytest.skip(f"this kernel lacks {missing}")
    for name in FEATURES:
        require(name)


@pytest.mark.parametrize("opcode", OLDER)
def test_an_older_kernel(opcode: int) -> None:
    """What an older kernel does not know is missing, and nothing else; the error names the version that has it."""
    before = _features.ask()
    _features.forget()

    def older(fd: int, asked: int, *rest: Any) -> int:
        return -errno.EINVAL if asked == opcode else real_register(fd, asked, *rest)

    with replaced(do_register=older):
        for name in OLDER[opcode]:
            since = re.escape(FEATURES[name].since)
            with pytest.raises(aiouring.UnsupportedKernelError, match=rf"{name}: needs Linux {since} or later"):
                require(name)
        assert _features.ask() == before - OLDER[opcode]


def test_asking_leaves_nothing() -> None:
    """Asking opens nothing that stays, pins nothing, and finds the same each time."""
    files = open_files()
    assert len({_features.ask() for _ in range(10)}) == 1
    assert open_files() == files


def test_the_kernel_is_asked_once() -> None:
    """The answer is kept for the process."""
    require("eventfd")

    def never(*_: Any) -> int:
        raise AssertionError("asked again")

    with replaced(do_register=never, setup=never):
        for name in FEATURES:
            require(name)


def test_features_without_an_opcode_of_their_own() -> None:
    """Features that come with an operation or a bit are found by those."""
    with CoreRing(2, cq_entries=4) as ring:
        asked = _features._Asked(ring)
        asked.opcodes = frozenset()
        ring.raw.features = 0
        missing = {name for name, feature in FEATURES.items() if not feature.here(asked)}
    assert missing == {
        "registered buffers", "vectored fixed I/O", "installing registered files", "zero-copy send",
        "zero-copy sendmsg", "zero-copy sendmsg of registered buffers", "buffer tags", "bundles",
        "waits with a timeout", "minimum waits", "absolute waits", "multishot accept",
        "multishot receive", "multishot poll", "bind and listen", "making directories and links",
        "extended attributes", "truncating by request", "messages between rings", "socket options",
        "multishot read", "waiting for children", "futexes", "pipes by request",
    }  # fmt: skip


@pytest.mark.needs_no_ring
def test_versions_look_like_versions() -> None:
    """Each feature has the version of a kernel, and a name that reads well in "...: needs Linux 6.13"."""
    for name, feature in FEATURES.items():
        assert re.fullmatch(r"[56]\.\d+", feature.since)
        assert name == name.strip()
