"""Owns `waitid`: waiting for children without SIGCHLD, a thread or a child watcher.

A child's state is told once, and whoever is told has reaped it.  So that none is lost with a cancellation, the kernel's
request only looks (WNOWAIT), and the child is reaped here, at once and without waiting, when its state has come to the
task that asked.  Somebody else may have reaped it in between, as asyncio does with its subprocesses: where one child
was asked for that is ChildProcessError, else the wait goes on.
"""

import os

from aiouring._features import require
from aiouring._request import Request
from aiouring._uring import ffi, lib
from aiouring._verbs import File, Verbs, resolve


class ProcessVerbs(Verbs):
    """The part of `AsyncRing` that waits for children."""

    async def waitid(self, idtype: int, id: File, options: int) -> "os.waitid_result | None":  # noqa: A002 - os.waitid's
        """Wait until a child has ended, or was stopped or continued; what `os.waitid()` returns.

        Args:
            idtype: `os.P_PID`, `os.P_PGID`, `os.P_ALL` or `os.P_PIDFD`.
            id: the process, the group, 0; or a descriptor from `os.pidfd_open()`.
            options: what to wait for: `os.WEXITED`, `os.WSTOPPED`, `os.WCONTINUED`; with `os.WNOWAIT` the child can
                still be waited for afterwards, with `os.WNOHANG` the answer is None where there is nothing to tell.

        A cancelled wait takes no child's state along: it is there for the next.

        Raises:
            ChildProcessError: there is no such child, or somebody else has reaped it.  asyncio reaps the processes
                that it starts: await those, or give WNOWAIT here.
            OSError: EINVAL where `options` are not such.

        Since Linux 6.7.  See io_uring_prep_waitid(3) and waitid(2).
        """
        require("waiting for children")
        if idtype == os.P_PIDFD:
            number, file, how = resolve(id)
        elif isinstance(id, int):
            number, file, how = id, None, 0
        else:
            raise TypeError(
                f"idtype={idtype} goes with a number, not with {type(id).__name__}: P_PIDFD is for descriptors"
            )
        info, driver = ffi.new("char[]", lib.au_siginfo_size()), self._driver or self._bound()
        arguments = (lib.AU_OP_WAITID, number, idtype, info, options | os.WNOWAIT, how)
        while True:
            await driver.perform(
                Request(number if file is not None else -1, file, info), lib.au_prepare_waitid, *arguments
            )
            fields = ffi.new("int32_t[5]")
            lib.au_siginfo_read(info, fields)
            pid = fields[0]
            if not pid:
                return None  # WNOHANG
            if options & os.WNOWAIT:
                return os.waitid_result(ffi.unpack(fields, 5))
            try:
                reaped = os.waitid(os.P_PID, pid, options | os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            except ChildProcessError:
                if idtype in (os.P_PID, os.P_PIDFD):
                    raise
                continue
            if reaped is not None:
                return reaped
