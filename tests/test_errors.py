"""Tests of the exceptions: their types, and the sentences that explain a broken rule."""

import errno
import os

import pytest

import aiouring
from aiouring import _errors
from aiouring._errors import errno_of, failure, kernel_error, unsupported
from aiouring._uring import lib

pytestmark = pytest.mark.needs_no_ring

RULES = [
    (lib.AU_CLOSED, aiouring.RingClosedError, "closed"),
    (lib.AU_FORKED, aiouring.WrongContextError, "fork"),
    (lib.AU_WRONG_THREAD, aiouring.WrongContextError, "call_soon_threadsafe"),
    (lib.AU_DISABLED, aiouring.WrongContextError, r"call enable\(\)"),
    (lib.AU_FULL, aiouring.ResourceBusyError, "submission queue is full"),
    (lib.AU_BAD_LENGTH, ValueError, "start=2 and length=9 reach beyond the memory of 8 bytes"),
    (lib.AU_BAD_OFFSET, ValueError, "offset=-7 is negative"),
    (lib.AU_BAD_INDEX, ValueError, "index 3"),
    (lib.AU_NOT_LENT, ValueError, "buffer 3 is not lent"),
    (lib.AU_BAD_SLOT, OSError, "5 does not hold this file any more"),
    (lib.AU_REPLACED, ValueError, "buffer 3 has been replaced or removed"),
    (lib.AU_LATE_SLOT, ValueError, "a request on 5 cannot be linked, drained"),
    (lib.AU_NOT_IN_PARTS, ValueError, "an incremental group gives out its buffers in parts"),
    (lib.AU_RING_FD, ValueError, "descriptor 5 is an io_uring itself"),
    (lib.AU_FORBIDDEN, PermissionError, "filling: the restrictions that this ring was made with"),
    (lib.AU_TOO_MANY, ValueError, "cannot advance over 4 buffers: there are only 2 added"),
]
NUMBERS: dict[str, object] = {
    "start": 2,
    "length": 9,
    "capacity": 8,
    "offset": -7,
    "index": 3,
    "fd": 5,
    "advance": "4 buffers",
    "there": "2 added",
}


@pytest.mark.parametrize(("code", "kind", "text"), RULES)
def test_rules_are_explained(code: int, kind: type[Exception], text: str) -> None:
    """Each rule of the C core has its type and its sentence, with the numbers in it."""
    with pytest.raises(kind, match=text):
        raise failure(code, "filling", **NUMBERS)


def test_every_rule_is_tested() -> None:
    """No rule of the C core is without a sentence, or without a row above."""
    assert {code for code, _, _ in RULES} == set(_errors._RULES)


@pytest.mark.parametrize("code", sorted(_errors._RULES))
def test_a_number_that_is_not_known(code: int) -> None:
    """A sentence whose numbers nobody gave has question marks, not a KeyError."""
    assert "{" not in str(failure(code))


def test_what_a_later_kernel_has() -> None:
    """A feature that is not here names the version that has it, and the one that is running."""
    error = unsupported("flying", "9.1")
    assert type(error) is aiouring.UnsupportedKernelError
    assert str(error) == f"flying: needs Linux 9.1 or later, and this is {os.uname().release}"


def test_rules_are_no_errnos() -> None:
    """A rule's code lies outside what a kernel can answer."""
    assert all(code < -4095 for code in _errors._RULES)


@pytest.mark.parametrize("code", [0, 1])
def test_success_is_no_failure(code: int) -> None:
    """Making an exception for a success is our own mistake."""
    with pytest.raises(AssertionError):
        failure(code)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, PermissionError),
        (errno.ECONNRESET, ConnectionResetError),
        (errno.EPIPE, BrokenPipeError),
        (errno.EAGAIN, BlockingIOError),
        (errno.ENOENT, FileNotFoundError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.EFAULT, OSError),
    ],
)
def test_kernel_errors_have_their_subclass(number: int, kind: type[OSError]) -> None:
    """The kernel's refusals are what Python's own calls would raise, and say what was being done."""
    error = failure(-number, "reading")
    assert type(error) is kind
    assert isinstance(error, OSError)
    assert error.errno == number
    assert str(error).startswith(f"[Errno {number}] reading: ")


def test_kernel_error_without_an_action() -> None:
    """Where nothing is said about the action the text is the system's."""
    assert str(kernel_error(errno.EBADF)) == f"[Errno {errno.EBADF}] Bad file descriptor"


def test_lost_completions() -> None:
    """EBADR from io_uring means lost completions, whatever the system calls it."""
    assert "lost completions" in str(kernel_error(errno.EBADR, "io_uring_enter"))


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (aiouring.RingUnavailableError, OSError),
        (aiouring.RingClosedError, RuntimeError),
        (aiouring.WrongContextError, RuntimeError),
        (aiouring.UnsupportedKernelError, NotImplementedError),
        (aiouring.BuffersExhaustedError, RuntimeError),
        (aiouring.ResourceBusyError, RuntimeError),
    ],
)
def test_own_errors_have_a_builtin_base(kind: type[Exception], builtin: type[Exception]) -> None:
    """Each of our errors can be caught as ours and as what it is in Python's terms."""
    assert issubclass(kind, aiouring.AioUringError)
    assert issubclass(kind, builtin)


def test_unavailable_keeps_its_errno() -> None:
    """RingUnavailableError is a full OSError."""
    error = aiouring.RingUnavailableError(errno.ENOSYS, "no io_uring here")
    assert (error.errno, error.strerror) == (errno.ENOSYS, "no io_uring here")


def test_errno_of_a_result() -> None:
    """What the kernel calls an interrupted call among its own is EINTR; the rest is what it says."""
    assert errno_of(-512) == errno.EINTR
    assert errno_of(-errno.EINTR) == errno.EINTR
    assert errno_of(-errno.EIO) == errno.EIO
