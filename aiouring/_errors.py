"""Owns the exceptions, and the sentences that explain a rule the C core says was broken.

Who is at fault decides the type.  What the kernel refuses is an `OSError` with its errno.  A caller's
mistake is a `ValueError`, `TypeError` or one of the errors here, with the numbers in the text.  A bug
of ours is an `AssertionError`.
"""

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiouring._uring import lib

if TYPE_CHECKING:
    from aiouring._retired_buffers import RetiredBuffers


class AioUringError(Exception):
    """Base of this package's own exceptions; never raised itself."""


class RingUnavailableError(AioUringError, OSError):
    """This machine does not let us use io_uring; the text says why and how to change that."""


class RingClosedError(AioUringError, RuntimeError):
    """The ring, buffer table or buffer ring is closed, or was closed while this was waiting."""


class WrongContextError(AioUringError, RuntimeError):
    """The ring was used from another thread, another event loop, or a forked process."""


class UnsupportedKernelError(AioUringError, NotImplementedError):
    """This kernel does not have the feature; the text names the version that does."""


class FilesUpdateError(AioUringError, OSError):
    """The kernel refused one of several files; `updated` slots hold theirs, and the text says what is in the rest."""

    updated = 0


class BuffersExhaustedError(AioUringError, RuntimeError):
    """Every buffer is lent out, and the caller asked not to wait for one."""


class PartlyUpdatedError(AioUringError, OSError):
    """The kernel refused a buffer after it had replaced those of the slots `changed`, which are `retired` now.

    `errno` says why it refused slot `changed.stop`; that one and those behind it are as they were.
    """

    changed: range
    retired: "list[RetiredBuffers]"


class ResourceBusyError(AioUringError, RuntimeError):
    """Somebody, a task or the kernel, is still using what was to be used or released."""


def _forbidden(text: str) -> PermissionError:
    return PermissionError(errno.EACCES, text)


_RULES: dict[int, tuple[Callable[[str], Exception], str]] = {
    lib.AU_CLOSED: (RingClosedError, "the ring (or the buffers on it) has been closed"),
    lib.AU_FORKED: (
        WrongContextError,
        "this process is a fork of the one that made the ring; a ring does not survive fork(): make a new one here",
    ),
    lib.AU_WRONG_THREAD: (
        WrongContextError,
        (
            "the ring belongs to the thread that first used it and may be used from that thread only; "
            "from elsewhere go through loop.call_soon_threadsafe() or asyncio.run_coroutine_threadsafe()"
        ),
    ),
    lib.AU_DISABLED: (WrongContextError, "the ring was made disabled and has not been enabled yet: call enable()"),
    lib.AU_FULL: (ResourceBusyError, "the submission queue is full: submit, then try again"),
    lib.AU_BAD_LENGTH: (
        ValueError,
        "start={start} and length={length} reach beyond the memory of {capacity} bytes",
    ),
    lib.AU_BAD_OFFSET: (ValueError, "offset={offset} is negative; None means the file's own position"),
    lib.AU_BAD_INDEX: (ValueError, "no such buffer on this ring (index {index})"),
    lib.AU_NOT_LENT: (ValueError, "buffer {index} is not lent to you: it has been released already"),
    lib.AU_BAD_SLOT: (
        OSError,
        "{fd} does not hold this file any more: it was closed, replaced or unregistered; or it is another ring's",
    ),
    lib.AU_REPLACED: (
        ValueError,
        "buffer {index} has been replaced or removed since it was lent: this lease is plain memory, not registered",
    ),
    lib.AU_LATE_SLOT: (
        ValueError,
        (
            "a request on {fd} cannot be linked, drained (nor follow a request that is) or sent to a worker: the "
            "kernel would look the slot up later, when it may hold another file; use a descriptor"
        ),
    ),
    lib.AU_NOT_IN_PARTS: (
        ValueError,
        (
            "an incremental group gives out its buffers in parts, which only receives of bytes, and reads from pipes "
            "and sockets, can take: a read from a file, or a message, uses up more than it brings; use a group without "
            "incremental=True"
        ),
    ),
    lib.AU_RING_FD: (
        ValueError,
        "descriptor {fd} is an io_uring itself: a request on it would never complete",
    ),
    lib.AU_FORBIDDEN: (
        _forbidden,
        "{doing}: the restrictions that this ring was made with do not allow it: list it in their `registrations`",
    ),
    lib.AU_TOO_MANY: (ValueError, "cannot advance over {advance}: there are only {there}"),
}


_RESTART = 512  # ERESTARTSYS


def errno_of(result: int) -> int:
    """The errno that a negative result means.

    ERESTARTSYS is the kernel's own word for a call that a signal interrupted, and should not leave it.  It does where a
    worker is stopped while it opens a FIFO (Linux 6.18).
    """
    return errno.EINTR if result == -_RESTART else -result


def failure(code: int, doing: str = "", **numbers: Any) -> Exception:
    """The exception for a negative code from the C core: a rule of ours, or an errno of the kernel."""
    assert code < 0, code
    if code in _RULES:
        kind, text = _RULES[code]
        said = text.format_map(_Numbers(numbers, doing=doing))
        return OSError(errno.EBADF, said) if kind is OSError else kind(said)
    return kernel_error(-code, doing)


def kernel_error(number: int, doing: str = "") -> OSError:
    """The `OSError` (of the right subclass) for an errno, saying what was being done."""
    text = os.strerror(number)
    if number == errno.EBADR:
        text = "the kernel lost completions: the ring cannot be trusted any more"
    return OSError(number, f"{doing}: {text}" if doing else text)


def unsupported(what: str, since: str) -> UnsupportedKernelError:
    """The exception for something that a later kernel has; `since` is its version."""
    return UnsupportedKernelError(f"{what}: needs Linux {since} or later, and this is {os.uname().release}")


class _Numbers(dict[str, Any]):
    """The values for a rule's sentence; one that is not known reads as a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"


def note_written(error: BaseException, count: int | None) -> None:
    """Say on the exception that ends a write how many bytes had been written; None is unknown."""
    error.__dict__["written"] = count


def note_written_before(error: BaseException, count: int) -> None:
    """Add what requests before the one that ended with `error` had written; an error's own request wrote nothing."""
    last = error.__dict__.get("written", 0)
    note_written(error, None if last is None else count + last)


def bytes_written(error: BaseException) -> int | None:
    """How many bytes a write or send had written when it ended with `error`.

    Of a cancelled one, of what `asyncio.timeout()` made of that, and of an error half-way through `send_all()`: the
    next write goes on behind so many bytes.  None where it is not known: the exception is not a write's, or the kernel
    would not stop the write in time (`cancel_timeout`).
    """
    seen: BaseException | None = error
    while seen is not None:
        if "written" in seen.__dict__:
            count: int | None = seen.__dict__["written"]
            return count
        seen = seen.__cause__
    return None
