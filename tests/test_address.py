"""Tests of the packing of socket addresses, against what Python's own sockets hand to the kernel."""

import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from aiouring._address import SUN_PATH_BYTES, pack_address, unpack_address
from aiouring._uring import ffi

pytestmark = pytest.mark.needs_no_ring


def connect(sock: socket.socket, packed: bytes) -> None:
    """Connect by the packed bytes, as io_uring's CONNECT would."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), packed, len(packed)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_ipv4() -> None:
    """An IPv4 address: family in the machine's order, port and address in the network's, eight zeros."""
    packed = pack_address(socket.AF_INET, ("192.0.2.1", 8080))
    assert packed == struct.pack("=H", socket.AF_INET) + b"\x1f\x90\xc0\x00\x02\x01" + bytes(8)


@pytest.mark.parametrize(
    ("address", "flow", "scope"),
    [(("2001:db8::1", 8080), 0, 0), (("2001:db8::1", 8080, 0xABCDE), 0xABCDE, 0), (("fe80::1", 8080, 0, 3), 0, 3)],
)
def test_ipv6(address: tuple[Any, ...], flow: int, scope: int) -> None:
    """An IPv6 address has a flow label in the network's order, and a scope in the machine's."""
    packed = pack_address(socket.AF_INET6, address)
    family, port = struct.unpack("=H", packed[:2])[0], struct.unpack("!H", packed[2:4])[0]
    assert (family, port) == (socket.AF_INET6, 8080)
    assert struct.unpack("!I", packed[4:8])[0] == flow
    assert socket.inet_ntop(socket.AF_INET6, packed[8:24]) == address[0]
    assert struct.unpack("=I", packed[24:])[0] == scope
    assert len(packed) == 28


def test_ipv6_scope_by_name() -> None:
    """A scope may be written behind the address, as an interface's name or number."""
    index = socket.if_nametoindex("lo")
    for name in ("lo", str(index)):
        assert pack_address(socket.AF_INET6, (f"fe80::1%{name}", 1))[24:] == struct.pack("=I", index)
    with pytest.raises(OSError):
        pack_address(socket.AF_INET6, ("fe80::1%no-such-interface", 1))


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_kernel_reads_it_as_pythons(family: int, host: str) -> None:
    """The kernel connects to the packed address as to the one that Python packs."""
    with socket.socket(family) as listener, socket.socket(family) as sock:
        try:
            listener.bind((host, 0))
        except OSError as error:
            pytest.skip(f"no {host} here: {error}")
        listener.listen()
        connect(sock, pack_address(family, listener.getsockname()))
        assert sock.getpeername() == listener.getsockname()


@pytest.mark.parametrize("kind", ["path", "bytes", "Path", "abstract", "abstract with zeros", "longest"])
def test_unix_paths_reach_their_listener(tmp_path: Path, kind: str) -> None:
    """A path, or an abstract name, in any of the ways Python takes it, leads where Python's connect() leads."""
    unique = f"aiouring test {os.getpid()}"
    path: Any = {
        "path": str(tmp_path / "s"),
        "bytes": bytes(tmp_path / "s"),
        "Path": tmp_path / "s",
        "abstract": f"\0{unique}",
        "abstract with zeros": f"\0{unique}\0\0".encode(),
        "longest": str(tmp_path / "s").ljust(SUN_PATH_BYTES - 1, "s"),
    }[kind]
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        listener.bind(os.fspath(path))
        listener.listen()
        connect(sock, pack_address(socket.AF_UNIX, path))
        assert sock.getpeername() == listener.getsockname()


@pytest.mark.parametrize(
    ("family", "address", "error"),
    [
        (socket.AF_INET, ("localhost", 80), OSError),
        (socket.AF_INET, ("::1", 80), OSError),
        (socket.AF_INET6, ("127.0.0.1", 80), OSError),
        (socket.AF_INET, ("127.0.0.1", -1), ValueError),
        (socket.AF_INET, ("127.0.0.1", 65536), ValueError),
        (socket.AF_INET, ("127.0.0.1", "80"), TypeError),
        (socket.AF_INET, ("127.0.0.1",), ValueError),
        (socket.AF_INET, "127.0.0.1:80", ValueError),
        (socket.AF_INET, None, TypeError),
        (socket.AF_INET, (None, 80), TypeError),
        (socket.AF_INET6, ("::1",), ValueError),
        (socket.AF_UNIX, "s" * SUN_PATH_BYTES, ValueError),
        (socket.AF_UNIX, ("127.0.0.1", 80), TypeError),
        (socket.AF_NETLINK, (0, 0), ValueError),
    ],
)
def test_what_is_refused(family: int, address: Any, error: type[Exception]) -> None:
    """A host that needs resolving is an OSError (the caller resolves it), a wrong shape the caller's mistake."""
    with pytest.raises(error):
        pack_address(family, address)


@pytest.mark.parametrize("address", [("::1", 80, 2**32), ("::1", 80, 0, -1), ("::1", 80, 0, 2**32)])
def test_numbers_that_do_not_fit(address: tuple[Any, ...]) -> None:
    """A flow label or scope beyond 32 bits is the caller's mistake."""
    with pytest.raises(ValueError):
        pack_address(socket.AF_INET6, address)


def test_longest_abstract_name() -> None:
    """An abstract name needs no zero at its end, and may be as long as the kernel's field."""
    name = f"\0aiouring test {os.getpid()}".ljust(SUN_PATH_BYTES, "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        listener.bind(name)
        listener.listen()
        connect(sock, pack_address(socket.AF_UNIX, name))


def test_memory_for_the_kernel_is_exact() -> None:
    """A C array made of the packed bytes has their length: no zero is added."""
    packed = pack_address(socket.AF_INET, ("127.0.0.1", 80))
    assert ffi.sizeof(ffi.from_buffer(packed)) == len(packed) == 16


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("192.0.2.1", 8080)),
        (socket.AF_INET6, ("2001:db8::1", 8080, 0xABCDE, 0)),
        (socket.AF_INET6, ("fe80::1", 1, 0, 3)),
        (socket.AF_UNIX, "/run/some socket"),
        (socket.AF_UNIX, b"\0abstract\0name"),
        (socket.AF_UNIX, "s" * (SUN_PATH_BYTES - 1)),
    ],
)
def test_unpacked_is_what_was_packed(family: int, address: Any) -> None:
    """There and back, as Python's socket module writes it."""
    assert unpack_address(pack_address(family, address)) == address


def test_unpacking_what_has_no_name() -> None:
    """No address is None, an unnamed Unix socket's is empty, an unknown family's stays bytes."""
    family = struct.pack("=H", socket.AF_UNIX)
    assert unpack_address(b"") is None
    assert unpack_address(family) == ""
    assert unpack_address(family + "ä".encode() + b"\0rest") == "ä"
    assert unpack_address(struct.pack("=H", 99) + b"abc") == (99, b"abc")
    assert unpack_address(struct.pack("=H", socket.AF_INET) + b"ab") == (socket.AF_INET, b"ab"), "cut off"
