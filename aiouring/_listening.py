"""Owns the sockets that a server listens on: made for hosts, for a Unix path, or given."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable

from aiouring._opening import AddressInfo, find_addresses, send_at_once

#: One host, several, or None for all interfaces.
Hosts = str | Iterable[str] | None


async def listen(
    hosts: Hosts,
    port: int | str | None,
    *,
    family: int,
    flags: int,
    backlog: int,
    reuse_address: bool,
    reuse_port: bool,
) -> list[socket.socket]:
    """One listening socket for each address of the hosts.  With port 0 each gets a port of its own."""
    names = [hosts or None] if hosts is None or isinstance(hosts, str) else [host or None for host in hosts]
    if not names:
        raise ValueError("there is no host to listen on")
    found = await asyncio.gather(
        *(find_addresses(name, port or 0, family=family, proto=0, flags=flags) for name in names)
    )
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for info in dict.fromkeys(info for infos in found for info in infos):
            try:
                listeners.append(_listener(info, backlog, reuse_address=reuse_address, reuse_port=reuse_port))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # a name may have addresses that this machine does not: IPv6, where it is off
        if missing is not None and not listeners:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listener(info: AddressInfo, backlog: int, *, reuse_address: bool, reuse_port: bool) -> socket.socket:
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)
    try:
        if reuse_address:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        send_at_once(sock)
        try:
            sock.bind(address)
            sock.listen(backlog)
        except OSError as error:
            text = f"cannot listen on {address[0]} port {address[1]}: {error.strerror}"
            raise OSError(error.errno, text) from None
    except BaseException:
        sock.close()
        raise
    return sock


def listen_on(sock: socket.socket, backlog: int) -> socket.socket:
    """A given socket, listening; the server owns it from here on."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"sock= is a socket.socket, not {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"a server needs a stream socket, not {sock.type!r}")
    sock.listen(backlog)
    send_at_once(sock)
    return sock


async def open_listeners(
    hosts: Hosts,
    port: int | str | None,
    sock: socket.socket | None,
    path: str | bytes | os.PathLike[str] | None,
    *,
    family: int,
    flags: int,
    backlog: int,
    reuse_address: bool,
    reuse_port: bool,
) -> "tuple[list[socket.socket], UnixListener | None]":
    """The sockets of a server that listens on exactly one of a host and port, `sock` and `path`."""
    if sum([hosts is not None or port is not None, sock is not None, path is not None]) != 1:
        raise ValueError("a server listens on a host and port, or on sock=, or on path=: give exactly one of these")
    if sock is not None:
        return [listen_on(sock, backlog)], None
    if path is not None:
        unix = UnixListener(path, backlog)
        return [unix.socket], unix
    listeners = await listen(
        hosts,
        port,
        family=family,
        flags=flags,
        backlog=backlog,
        reuse_address=reuse_address,
        reuse_port=reuse_port,
    )
    return listeners, None


class UnixListener:
    """A listening Unix socket and the path that it made, which is removed with it if it is still its own."""

    def __init__(self, path: str | bytes | os.PathLike[str], backlog: int) -> None:
        self._path = os.fspath(path)
        self._identity: tuple[int, int] | None = None
        abstract = self._path[:1] in ("\0", b"\0")
        if not abstract:
            self._remove_stale()
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            try:
                self.socket.bind(self._path)
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {self._path!r}: {error.strerror or error}") from None
            self.socket.listen(backlog)
            if not abstract:
                self._identity = self._look()
        except BaseException:
            self.socket.close()
            raise

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None

    def _remove_stale(self) -> None:
        """A socket that is at the path already is taken for a dead server's, as asyncio does."""
        if self._look() is not None:
            os.remove(self._path)  # noqa: PTH107 - it may be bytes

    def remove_path(self) -> None:
        """Remove the path, unless somebody else listens there by now; idempotent.

        Before the socket is closed: as long as it is open, nobody else's file can have its number.
        """
        if self._identity is not None and self._look() == self._identity:
            with contextlib.suppress(OSError):
                os.remove(self._path)  # noqa: PTH107 - it may be bytes
        self._identity = None
