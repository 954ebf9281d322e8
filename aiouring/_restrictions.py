"""Owns `Restrictions`: what a ring may be asked for, once it is enabled; the kernel refuses everything else.

A restricted ring is a second lock: code that got hold of the ring, or of memory it is filled from, can do no more
with it than was foreseen.  It restrains the ring, not the process, which can make another one (KERNEL.md C11).

What the kernel filters where nothing was listed depends on its version.  On Linux 6.18 a list of operations alone
forbids every registration, and the other way round (measured); later kernels filter only what was listed.  So both
lists always go to the kernel, and neither is ever empty: what is unrestricted is listed in full, the flags that are
allowed stand in for no operation, and enabling the ring, which has happened by then, for no registration.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Self

from aiouring._abi import Opcode, Registration, SubmissionFlags
from aiouring._uring import lib

_EVERY_FLAG = ~SubmissionFlags(0)
_NO_FLAG = SubmissionFlags(0)
_REGISTRATIONS_MAX = 64  # more than any kernel has; see CoreRing._restrict()

#: What `AsyncRing` may ask for: moving bytes, opening and closing, waiting and cancelling.  Not: commands to drivers,
#: messages to other rings.
_OPERATIONS = frozenset(
    {
        Opcode.NOP,
        Opcode.READV, Opcode.WRITEV, Opcode.FSYNC, Opcode.READ_FIXED, Opcode.WRITE_FIXED, Opcode.READ, Opcode.WRITE,
        Opcode.READV_FIXED, Opcode.WRITEV_FIXED, Opcode.READ_MULTISHOT,
        Opcode.SENDMSG, Opcode.RECVMSG, Opcode.SEND, Opcode.RECV, Opcode.SEND_ZC, Opcode.SENDMSG_ZC,
        Opcode.ACCEPT, Opcode.CONNECT, Opcode.SHUTDOWN, Opcode.SOCKET, Opcode.BIND, Opcode.LISTEN,
        Opcode.OPENAT, Opcode.OPENAT2, Opcode.PIPE, Opcode.CLOSE, Opcode.STATX, Opcode.FTRUNCATE, Opcode.FALLOCATE,
        Opcode.SYNC_FILE_RANGE, Opcode.FADVISE, Opcode.MADVISE, Opcode.GETXATTR, Opcode.FGETXATTR,
        Opcode.SPLICE, Opcode.TEE, Opcode.FUTEX_WAIT, Opcode.FUTEX_WAKE, Opcode.FUTEX_WAITV,
        Opcode.FILES_UPDATE, Opcode.FIXED_FD_INSTALL,
        Opcode.POLL_ADD, Opcode.POLL_REMOVE, Opcode.TIMEOUT, Opcode.TIMEOUT_REMOVE, Opcode.LINK_TIMEOUT,
        Opcode.ASYNC_CANCEL,
    }
)  # fmt: skip

#: What there are verbs for and what a ring is not given by default: changes of names and of attributes, messages to
#: other rings, commands to drivers (socket options), children of the process.
ON_REQUEST = frozenset(
    {
        Opcode.RENAMEAT, Opcode.UNLINKAT, Opcode.MKDIRAT, Opcode.LINKAT, Opcode.SYMLINKAT,
        Opcode.SETXATTR, Opcode.FSETXATTR, Opcode.MSG_RING, Opcode.URING_CMD, Opcode.WAITID,
    }
)  # fmt: skip
_REGISTRATIONS = frozenset(Registration) - {Registration.REGISTER_RESTRICTIONS, Registration.REGISTER_ENABLE_RINGS}

#: Without these an AsyncRing could neither wake its loop nor stop what it started.
NEEDED_OPERATIONS = frozenset({Opcode.ASYNC_CANCEL, Opcode.POLL_ADD})
NEEDED_REGISTRATIONS = frozenset({Registration.REGISTER_EVENTFD, Registration.UNREGISTER_EVENTFD})


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What a ring allows; given to `Ring` or `AsyncRing` when it is made, and in force from its enabling on.

    Args:
        opcodes: the operations that are allowed; None allows all.
        registrations: what may be registered and unregistered after the ring is enabled; None allows all.
        flags_allowed: the flags that a submission may have.
        flags_required: the flags that every submission must have.

    A request that is not allowed completes with EACCES, a registration fails with it: `PermissionError`, with a text
    that names what was forbidden.  What this kernel does not know is left out.
    Since Linux 5.10.  See io_uring_register_restrictions(3).
    """

    opcodes: Set[Opcode] | None = None
    registrations: Set[Registration] | None = None
    flags_allowed: SubmissionFlags = _EVERY_FLAG
    flags_required: SubmissionFlags = _NO_FLAG

    def __post_init__(self) -> None:
        for name, kind in (("opcodes", Opcode), ("registrations", Registration)):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, frozenset(map(kind, given)))
        if self.flags_required & ~self.flags_allowed:
            raise ValueError(f"{self.flags_required & ~self.flags_allowed!r} is required and not allowed")

    @classmethod
    def default(cls, *more: Opcode) -> Self:
        """What `AsyncRing` and everything made on it needs to move bytes, the operations in `more`, and nothing else.

        To be asked for are changes to names of files and their attributes (`Opcode.RENAMEAT`, `Opcode.UNLINKAT`,
        `Opcode.MKDIRAT` ...), messages to other rings (`Opcode.MSG_RING`: `msg_ring()`), commands to drivers
        (`Opcode.URING_CMD`: socket options), and waiting for children (`Opcode.WAITID`).
        """
        return cls(opcodes=_OPERATIONS.union(more), registrations=_REGISTRATIONS)

    def entries(self, known: Set[int]) -> Iterator[tuple[int, int]]:
        """The kernel's list of this, (kind, value) each; of the opcodes only those in `known`."""
        operations = known if self.opcodes is None else known & self.opcodes
        registrations = range(_REGISTRATIONS_MAX) if self.registrations is None else self.registrations
        yield from ((lib.AU_RESTRICTION_SQE_OP, opcode) for opcode in sorted(operations))
        yield lib.AU_RESTRICTION_SQE_FLAGS_ALLOWED, self.flags_allowed
        yield lib.AU_RESTRICTION_SQE_FLAGS_REQUIRED, self.flags_required
        for registration in sorted({*registrations, Registration.REGISTER_ENABLE_RINGS}):
            yield lib.AU_RESTRICTION_REGISTER_OP, registration

    def objection(self, opcode: int, flags: int = 0) -> str:
        """Why a request is not allowed, for an error's text; empty if it is."""
        if self.opcodes is not None and opcode not in self.opcodes:
            known = opcode in frozenset(Opcode)
            name = Opcode(opcode).name if known else str(opcode)
            easily = "" if opcode in _OPERATIONS or not known else f", or use Restrictions.default(Opcode.{name})"
            return f"the operation {name} (list it in their `opcodes`{easily})"
        given = SubmissionFlags(flags & _EVERY_FLAG)
        if given & ~self.flags_allowed:
            return f"the submission flag {given & ~self.flags_allowed!r}"
        if self.flags_required & ~given:
            return f"a request without the submission flag {self.flags_required & ~given!r}"
        return ""

    def check_enough_for_async(self) -> None:
        """Refuse what would leave an `AsyncRing` unable to wake its loop or to cancel."""
        operations = NEEDED_OPERATIONS - (NEEDED_OPERATIONS if self.opcodes is None else self.opcodes)
        registrations = NEEDED_REGISTRATIONS - (
            NEEDED_REGISTRATIONS if self.registrations is None else self.registrations
        )
        missing = sorted(each.name for each in (*operations, *registrations))
        if missing or self.flags_required:
            what = f"{', '.join(missing)} in its restrictions" if missing else "no flags to be required"
            raise ValueError(f"an AsyncRing needs {what}; Restrictions.default() has all that it may need")
