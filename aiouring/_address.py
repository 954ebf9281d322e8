"""Owns the packing of socket addresses into the bytes the kernel takes (`struct sockaddr_*`), and back."""

import os
import socket
import struct
from typing import Any

SUN_PATH_BYTES = 108


def pack_address(family: int, address: Any) -> bytes:
    """`address` as Python's `socket` module writes it, as a `struct sockaddr` of `family`.

    Raises `OSError` where the host is not a numeric address, `TypeError` or `ValueError` for other shapes.
    """
    if family == socket.AF_INET:
        host, port = address
        return struct.pack("=H", family) + struct.pack("!H", _port(port)) + socket.inet_pton(family, host) + bytes(8)
    if family == socket.AF_INET6:
        host, port, flow, scope = (*address, 0, 0)[:4]
        if "%" in host:
            host, _, name = host.partition("%")
            scope = int(name) if name.isdigit() else socket.if_nametoindex(name)
        head = struct.pack("=H", family) + struct.pack("!HI", _port(port), _field("flow label", flow, 32))
        return head + socket.inet_pton(family, host) + struct.pack("=I", _field("scope id", scope, 32))
    if family == socket.AF_UNIX:
        path = os.fsencode(address)
        abstract = path[:1] in (b"", b"\0")  # an empty one has the kernel choose, where it is bound
        most = SUN_PATH_BYTES if abstract else SUN_PATH_BYTES - 1
        if len(path) > most:
            raise ValueError(f"a Unix socket path of {len(path)} bytes is too long: at most {most}")
        return struct.pack("=H", family) + path + (b"" if abstract else b"\0")
    raise ValueError(f"addresses of socket family {family} are not supported: AF_INET, AF_INET6 and AF_UNIX are")


def unpack_address(packed: bytes) -> Any:
    """The address in a `struct sockaddr`, as Python's `socket` module writes it; None where there is none.

    A Unix address is a path, `bytes` where it is abstract, or empty where the socket has none.  Of a family that is
    not known here it is the family and the bytes.
    """
    if len(packed) < 2:
        return None
    family = struct.unpack("=H", packed[:2])[0]
    if family == socket.AF_INET and len(packed) >= 8:
        return socket.inet_ntop(family, packed[4:8]), struct.unpack("!H", packed[2:4])[0]
    if family == socket.AF_INET6 and len(packed) >= 28:
        port, flow = struct.unpack("!HI", packed[2:8])
        return socket.inet_ntop(family, packed[8:24]), port, flow, struct.unpack("=I", packed[24:28])[0]
    if family == socket.AF_UNIX:
        path = packed[2:]
        return path if path[:1] == b"\0" else os.fsdecode(path.partition(b"\0")[0])
    return family, packed[2:]


def _port(port: int) -> int:
    return _field("port", port, 16)


def _field(name: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} {value} is outside 0 to {(1 << bits) - 1}")
    return value
