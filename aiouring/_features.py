"""Owns `FEATURES`: what later kernels brought, how to tell whether this one has it, and the error where it has not.

Each feature is asked for on a throw-away ring, so that no ring in use is changed by the question: by the list of
operations, by a feature bit, or by a call that a kernel which has the feature refuses in another way than one which
does not know it (EINVAL).  Version numbers are never compared: distributions take features back to older kernels.

A module that needs a feature calls `require()` before it changes anything.
"""

import errno
from collections.abc import Callable
from typing import NamedTuple

from aiouring._abi import Features, Opcode
from aiouring._errors import unsupported
from aiouring._ring import CoreRing
from aiouring._uring import ffi, lib

_NOWHERE = 0xFFFFFFFF  # a descriptor, or a place in a table, that cannot be


class Feature(NamedTuple):
    """Something a kernel may have."""

    since: str  # the first Linux that has it
    here: Callable[["_Asked"], bool]


class _Asked:
    """A throw-away ring, and what it has answered."""

    def __init__(self, ring: CoreRing) -> None:
        self.ring = ring
        self.opcodes = ring.probe_opcodes()

    def register(self, opcode: int, *words: int, count: int = 1) -> int:
        """The kernel's answer to a registration whose argument is `words` of 32 bits, then zeros."""
        argument = ffi.new("uint32_t[64]", list(words))
        return lib.au_ring_register(self.ring.raw, opcode, argument, count)

    def accepts(self, opcode: int, undo: int, *words: int, count: int = 1, undo_words: tuple[int, ...] = ()) -> bool:
        """Whether a registration is accepted; it is undone at once."""
        if self.register(opcode, *words, count=count) < 0:
            return False
        if undo_words:
            self.register(undo, *undo_words)
        else:
            lib.au_ring_register(self.ring.raw, undo, ffi.NULL, 0)
        return True


def _opcode(opcode: Opcode) -> Callable[[_Asked], bool]:
    return lambda asked: opcode in asked.opcodes


def _bit(bit: Features) -> Callable[[_Asked], bool]:
    return lambda asked: bit in asked.ring.features


def _answers(answer: int, opcode: int, *words: int, count: int = 1) -> Callable[[_Asked], bool]:
    return lambda asked: asked.register(opcode, *words, count=count) == -answer


def _group(flags: int) -> Callable[[_Asked], bool]:
    """Register group 1 with one entry in the kernel's memory: struct au_buf_reg in words."""
    register, unregister = lib.AU_REGISTER_PBUF_RING, lib.AU_UNREGISTER_PBUF_RING
    return lambda asked: asked.accepts(register, unregister, 0, 0, 1, 1 | flags << 16, undo_words=(0, 0, 0, 1))


def _sparse(register: int, unregister: int) -> Callable[[_Asked], bool]:
    """A table with one empty slot, by the 32 bytes of struct io_uring_rsrc_register: the count, the flag SPARSE."""
    return lambda asked: asked.accepts(register, unregister, 1, 1, count=32)


_REPLACE = 2  # IORING_REGISTER_DST_REPLACE

FEATURES: dict[str, Feature] = {
    "registered buffers": Feature("5.1", _opcode(Opcode.READ_FIXED)),
    "sparse buffer tables": Feature("5.19", _sparse(lib.AU_REGISTER_BUFFERS2, lib.AU_UNREGISTER_BUFFERS)),
    "buffer tags": Feature("5.13", _bit(Features.RSRC_TAGS)),
    "cloning buffers": Feature("6.12", _answers(errno.EBADF, lib.AU_REGISTER_CLONE_BUFFERS, _NOWHERE)),
    "cloning buffers in part": Feature(
        "6.13", _answers(errno.EBADF, lib.AU_REGISTER_CLONE_BUFFERS, _NOWHERE, _REPLACE)
    ),
    "vectored fixed I/O": Feature("6.15", _opcode(Opcode.READV_FIXED)),
    "buffer rings": Feature("5.19", _answers(errno.ENOENT, lib.AU_UNREGISTER_PBUF_RING, 0, 0, 0, 1)),
    "buffer rings in kernel memory": Feature("6.4", _group(lib.AU_PBUF_RING_MMAP)),
    "incremental buffer rings": Feature("6.12", _group(lib.AU_PBUF_RING_MMAP | lib.AU_PBUF_RING_INC)),
    "buffer ring status": Feature("6.8", _answers(errno.ENOENT, lib.AU_REGISTER_PBUF_STATUS, 1)),
    "bundles": Feature("6.10", _bit(Features.RECVSEND_BUNDLE)),
    "registered files": Feature("5.1", lambda _: True),
    "sparse file tables": Feature("5.19", _sparse(lib.AU_REGISTER_FILES2, lib.AU_UNREGISTER_FILES)),
    "file allocation range": Feature(
        "6.0", _answers(errno.EOVERFLOW, lib.AU_REGISTER_FILE_ALLOC_RANGE, _NOWHERE, _NOWHERE, count=0)
    ),
    "installing registered files": Feature("6.8", _opcode(Opcode.FIXED_FD_INSTALL)),
    "eventfd": Feature("5.2", lambda _: True),
    "silent eventfd": Feature("5.8", lambda asked: lib.au_ring_silence(asked.ring.raw, 1) == 0),
    "waits with a timeout": Feature("5.11", _bit(Features.EXT_ARG)),
    "minimum waits": Feature("6.12", _bit(Features.MIN_TIMEOUT)),
    "absolute waits": Feature("6.12", _bit(Features.MIN_TIMEOUT)),  # came with the same release
    "clocks": Feature("6.12", _answers(0, lib.AU_REGISTER_CLOCK, 1, count=0)),  # 1 is CLOCK_MONOTONIC
    "memory regions": Feature("6.13", _answers(errno.EFAULT, lib.AU_REGISTER_MEM_REGION)),
    "registered waits": Feature("6.13", _answers(errno.EFAULT, lib.AU_REGISTER_MEM_REGION)),
    "restrictions": Feature("5.10", _answers(errno.EBADFD, lib.AU_REGISTER_RESTRICTIONS)),
    "multishot accept": Feature("5.19", _opcode(Opcode.SOCKET)),  # the same release
    "multishot receive": Feature("6.0", _opcode(Opcode.SEND_ZC)),  # the same release
    "multishot poll": Feature("5.13", _bit(Features.RSRC_TAGS)),  # the same release
    "bind and listen": Feature("6.11", _opcode(Opcode.BIND)),
    "making directories and links": Feature("5.15", _opcode(Opcode.MKDIRAT)),
    "extended attributes": Feature("5.19", _opcode(Opcode.GETXATTR)),
    "truncating by request": Feature("6.9", _opcode(Opcode.FTRUNCATE)),
    "messages between rings": Feature("5.18", _opcode(Opcode.MSG_RING)),
    "socket options": Feature("6.7", _opcode(Opcode.FUTEX_WAIT)),  # the same release
    "multishot read": Feature("6.7", _opcode(Opcode.READ_MULTISHOT)),
    "waiting for children": Feature("6.7", _opcode(Opcode.WAITID)),
    "futexes": Feature("6.7", _opcode(Opcode.FUTEX_WAIT)),
    "pipes by request": Feature("6.16", _opcode(Opcode.PIPE)),
    "zero-copy send": Feature("6.0", _opcode(Opcode.SEND_ZC)),
    "zero-copy sendmsg": Feature("6.1", _opcode(Opcode.SENDMSG_ZC)),
    "zero-copy sendmsg of registered buffers": Feature("6.15", _opcode(Opcode.READV_FIXED)),  # the same release
}

_here: frozenset[str] | None = None  # found once for the process: the kernel stays what it is


def ask() -> frozenset[str]:
    """The names of the features that this kernel has; raises `OSError` where no ring can be made."""
    global _here
    with CoreRing(2, cq_entries=4) as ring:
        asked = _Asked(ring)
        _here = frozenset(name for name, feature in FEATURES.items() if feature.here(asked))
    return _here


def has(name: str) -> bool:
    """Whether this kernel has the feature."""
    return name in (ask() if _here is None else _here)


def require(name: str) -> None:
    """Raise `UnsupportedKernelError`, with the version that has it, unless this kernel has the feature."""
    if not has(name):
        raise unsupported(name, FEATURES[name].since)


def forget() -> None:
    """Ask again the next time; for tests that play an older kernel."""
    global _here
    _here = None
