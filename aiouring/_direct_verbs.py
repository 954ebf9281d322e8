"""Owns the verbs that make descriptors, ordinary ones or straight into the table of registered files."""

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aiouring._direct_descriptor import DirectDescriptor, Slot
from aiouring._driver import Driver
from aiouring._errors import RingClosedError, failure, kernel_error, unsupported
from aiouring._features import require
from aiouring._paths import Directory, Naming, StrPath, in_memory
from aiouring._registered_files import RegisteredFiles, number_of, update_error
from aiouring._request import Request
from aiouring._slot_requests import CloseSlot, Install, InstallArray, InstallConnection, Open, OpenPipe, Sources, Update
from aiouring._uring import ffi, lib
from aiouring._verbs import File, Verbs, kind_of, resolve

_UNREGISTERED = "the registered files were unregistered while their table was being changed"
_ALLOC = lib.AU_FILE_INDEX_ALLOC


class DirectVerbs(Verbs):
    """The part of `AsyncRing` that opens files and sockets, and fills the table of registered files."""

    async def openat(
        self,
        path: StrPath,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        dir_fd: File | None = None,
        background: bool = False,
    ) -> int:
        """Open a file; returns a close-on-exec descriptor.

        Args:
            path: relative to `dir_fd`, or to the working directory.
            flags: `os.O_RDONLY` and the like.
            mode: permissions of a file that is created, less the umask.
            dir_fd: an open directory.
            background: have a worker of the kernel open it, which may wait: for a FIFO's other end, for the server of a
                FUSE file system.  Otherwise, where the kernel has the name in its cache and `flags` has no O_CREAT and
                no O_TRUNC, the file is opened within the submission, in the loop's thread: a FUSE server holds that
                up, and a FIFO is opened as with O_NONBLOCK, which to write is ENXIO while nobody reads.

        A descriptor that comes together with a cancellation is closed.  Since Linux 5.6.  See io_uring_prep_openat(3).
        """
        name, directory = in_memory(path), Directory(dir_fd)
        request = Open(directory.number, directory.held, name)
        with Naming(request, path, directories=(directory,)):
            return await make(
                self._driver or self._bound(),
                request,
                "5.6",
                lib.au_prepare_path,
                lib.AU_OP_OPENAT,
                directory.number,
                name,
                ffi.NULL,
                ffi.NULL,
                mode,
                flags | os.O_CLOEXEC,
                -1,
                lib.AU_SQE_ASYNC if background else 0,
            )

    async def openat_direct(
        self,
        path: StrPath,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        dir_fd: File | None = None,
        index: int | None = None,
        background: bool = False,
    ) -> DirectDescriptor:
        """Open a file into the table of registered files, into slot `index`, or one that the kernel picks.

        Takes what `openat()` takes, without O_CLOEXEC, which a slot cannot have.

        Raises:
            OSError: ENFILE where no slot is free.
            ResourceBusyError: slot `index` holds a file, or a request in flight is changing it.

        A file that comes together with a cancellation is closed.  Since Linux 5.15, without `index` 5.19.  See
        io_uring_prep_openat_direct(3).
        """
        refuse_cloexec(flags, os.O_CLOEXEC, "O_CLOEXEC")
        name, directory = in_memory(path), Directory(dir_fd)
        driver, table = self._table()
        request = Install(table, index, directory.number, directory.held, name)
        with Naming(request, path, directories=(directory,)):
            await make(
                driver,
                request,
                "5.15",
                lib.au_prepare_path,
                lib.AU_OP_OPENAT,
                directory.number,
                name,
                ffi.NULL,
                ffi.NULL,
                mode,
                flags,
                request.slot,
                lib.AU_SQE_ASYNC if background else 0,
            )
        return request.claim()[0]

    async def socket_direct(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the standard library's name
        proto: int = 0,
        *,
        index: int | None = None,
    ) -> DirectDescriptor:
        """Make a socket in the table of registered files, in slot `index`, or one that the kernel picks.

        Raises what `openat_direct()` does.  Since Linux 5.19.  See io_uring_prep_socket_direct(3).
        """
        refuse_cloexec(type, socket.SOCK_CLOEXEC, "SOCK_CLOEXEC")
        driver, table = self._table()
        request = Install(table, index)
        await make(
            driver, request, "5.19", lib.au_prepare_slot, lib.AU_OP_SOCKET, family, type, proto, 0, request.slot, 0
        )
        return request.claim((family, int(type) & ~socket.SOCK_NONBLOCK, proto))[0]

    async def accept_direct(self, sock: File, *, index: int | None = None) -> DirectDescriptor:
        """Accept a connection into the table of registered files, into slot `index`, or one that the kernel picks.

        `sock` may be a direct descriptor itself.  A connection that comes together with a cancellation is closed.
        Where no slot is free (ENFILE) the kernel has taken the connection and closed it: keep slots free.

        Raises what `openat_direct()` does.  Since Linux 5.15, without `index` 5.19.  See
        io_uring_prep_accept_direct(3).
        """
        number, file, how = resolve(sock)
        driver, table = self._table()
        unknown = isinstance(sock, DirectDescriptor) and not sock.family
        kind = None if unknown else kind_of(sock, number)
        request = InstallConnection(table, index, number, file)
        await make(driver, request, "5.15", lib.au_prepare_slot, lib.AU_OP_ACCEPT, number, 0, 0, 0, request.slot, how)
        return request.claim(kind)[0]

    async def pipe(self, flags: int = 0) -> tuple[int, int]:
        """Make a pipe; returns the descriptors of its reading end and its writing end, close-on-exec.

        `flags` may have `os.O_DIRECT` and `os.O_NONBLOCK`.  Descriptors that come together with a cancellation are
        closed.  Since Linux 6.16.  See io_uring_prep_pipe(3).
        """
        require("pipes by request")
        array = ffi.new("int32_t[2]")
        request = OpenPipe(hold=array)
        prepare, wanted = lib.au_prepare_array, flags | os.O_CLOEXEC
        await (self._driver or self._bound()).perform(request, prepare, lib.AU_OP_PIPE, array, 2, -1, wanted, 0)
        return array[0], array[1]

    async def pipe_direct(
        self, flags: int = 0, *, index: int | None = None
    ) -> tuple[DirectDescriptor, DirectDescriptor]:
        """Make a pipe in the table: its ends in slots `index` and `index + 1`, or where there is room.

        Returns the reading end and the writing end.

        `flags` may have `os.O_DIRECT` and `os.O_NONBLOCK`.  Raises what `openat_direct()` does.  Since Linux 6.16.
        See io_uring_prep_pipe_direct(3).
        """
        refuse_cloexec(flags, os.O_CLOEXEC, "O_CLOEXEC")
        driver, table = self._table()
        array = ffi.new("int32_t[2]")
        request = InstallArray(table, index, hold=array, count=2)
        await make(driver, request, "6.16", lib.au_prepare_array, lib.AU_OP_PIPE, array, 2, request.slot, flags, 0)
        reader, writer = request.claim()
        return reader, writer

    async def files_update(self, index: int, files: Sequence[File | None]) -> int:
        """As `RegisteredFiles.update()`, without a system call of its own; returns how many entries there were.

        Until it ends the slots are in doubt: their direct descriptors cannot be used.  Those of slots that it turns
        out not to have changed can be used again afterwards.  Once submitted it is not undone by a cancellation.

        Raises what `RegisteredFiles.update()` does.  Since Linux 5.6.  See io_uring_prep_files_update(3).
        """
        driver, table = self._table()
        request = Update(table, index, files)
        count = len(files)
        try:
            done = await driver.perform(
                request, lib.au_prepare_array, lib.AU_OP_FILES_UPDATE, request.hold, count, index, 0, 0
            )
        except OSError as error:
            if not table.registered:
                raise RingClosedError(_UNREGISTERED) from None
            if error.errno == errno.EBADF:
                raise update_error(index, request.numbers, 0, -errno.EBADF) from None
            raise
        request.let_go()
        if not table.registered:
            raise RingClosedError(_UNREGISTERED)
        if done < count:
            raise update_error(index, request.numbers, done, 0)
        return done

    async def files_update_alloc(self, files: Sequence[File]) -> list[DirectDescriptor]:
        """Register more files, in slots that the kernel picks; returns the direct descriptors, in order.

        Fewer come back than were asked for where the table is full, or where one of the files is refused.  What comes
        together with a cancellation is unregistered again.

        Raises:
            OSError: not even the first: ENFILE where no slot is free, EBADF where the file is closed.

        Since Linux 5.19.  See io_uring_prep_files_update(3), IORING_FILE_INDEX_ALLOC.
        """
        driver, table = self._table()
        numbers = [number_of(file) for file in files]
        if not numbers or min(numbers) < 0:
            raise ValueError("files must be one or more files: the kernel picks the slots, so none is left out")
        array = ffi.new("int32_t[]", numbers)
        sources = Sources(files, numbers, array)
        request = InstallArray(table, None, file=sources, hold=array)
        opcode = lib.AU_OP_FILES_UPDATE
        await make(driver, request, "5.19", lib.au_prepare_array, opcode, array, len(numbers), _ALLOC, 0, 0)
        return request.claim()

    async def fixed_fd_install(self, descriptor: DirectDescriptor, *, cloexec: bool = True) -> int:
        """Make an ordinary descriptor of a direct one, which stays; returns it.

        One that comes together with a cancellation is closed.  Since Linux 6.8.  See
        io_uring_prep_fixed_fd_install(3).
        """
        if not isinstance(descriptor, DirectDescriptor):
            raise TypeError(f"a DirectDescriptor is needed, not {type(descriptor).__name__}")
        slot = descriptor.slot
        flags = 0 if cloexec else lib.AU_FIXED_FD_NO_CLOEXEC
        return await make(
            self._driver or self._bound(),
            Open(slot),
            "6.8",
            lib.au_prepare_slot,
            lib.AU_OP_FIXED_FD_INSTALL,
            slot,
            0,
            0,
            flags,
            -1,
            slot.how,
        )

    def _table(self) -> tuple[Driver, RegisteredFiles]:
        """The driver and its table; everything that would refuse a request is asked before a slot is reserved."""
        driver = self._driver or self._bound()
        driver.check()
        table = driver.registry.files
        if table is None or not table.registered:
            raise RingClosedError("this ring has no registered files: call register_files_sparse(count) first")
        return driver, table

    # The last of the verbs: from here on `socket` is not the module in this class.
    async def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the standard library's name
        proto: int = 0,
    ) -> socket.socket:
        """Make a socket, non-blocking and close-on-exec.

        One that comes together with a cancellation is closed.  Since Linux 5.19.  See io_uring_prep_socket(3).
        """
        kind = int(type) | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        driver = self._driver or self._bound()
        prepare = lib.au_prepare_slot
        fd = await make(driver, Open(), "5.19", prepare, lib.AU_OP_SOCKET, family, kind, proto, 0, -1, 0)
        made = socket.socket(family, int(type), proto, fileno=fd)
        made.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return made


async def close_slot(driver: Driver, slot: Slot) -> None:
    """Close a slot by a request, which names it by its index alone; what is in flight on it has been stopped."""
    if slot.table is not driver.registry.files:
        raise failure(lib.AU_BAD_SLOT, fd=slot)
    request = CloseSlot(slot)
    await driver.perform(request, lib.au_prepare_slot, lib.AU_OP_CLOSE, 0, 0, 0, 0, slot.index, 0)
    request.let_go()


async def make(driver: Driver, request: Request, since: str, prepare: Callable[..., int], *arguments: Any) -> int:
    """Perform a request that makes a descriptor; the kernel's reasons against it, in words."""
    try:
        return await driver.perform(request, prepare, *arguments)
    except OSError as error:
        table = getattr(request, "table", None)
        if table is not None and not table.registered and error.errno in (errno.ENFILE, errno.ENXIO):
            raise RingClosedError(_UNREGISTERED) from None
        if error.errno == errno.ENFILE and table is not None:
            raise kernel_error(
                errno.ENFILE,
                f"no slot is free in the range {table.statistics().allocation_range} of {table!r}",
            ) from None
        if error.errno == errno.EINVAL:
            _explain(driver, arguments, since)
        raise


def _explain(driver: Driver, arguments: tuple[Any, ...], since: str) -> None:
    """Where the kernel said EINVAL because it is too old, raise `UnsupportedKernelError`."""
    supported = driver.ring.probe_opcodes()
    if arguments[0] not in supported:
        raise unsupported("this operation", since) from None
    if _ALLOC in arguments and lib.AU_OP_SOCKET not in supported:  # it came with the same release
        raise unsupported("having the kernel pick a slot (name one with index=)", "5.19") from None


def refuse_cloexec(flags: int, bit: int, name: str) -> None:
    """Refuse a flag that a slot cannot have."""
    if flags & bit:
        raise ValueError(f"{name}: a slot is in no table of descriptors that exec() could pass on; leave it out")
