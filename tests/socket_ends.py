"""Two connected sockets of every kind that has messages or addresses, for the tests of messages."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Pair = tuple[socket.socket, socket.socket]
KINDS = ["IPv4", "IPv6", "Unix", "abstract", "unnamed", "stream", "TCP", "seqpacket"]


def make_ends(kind: str, tmp_path: Path) -> Iterator[Pair]:
    """Two connected sockets."""
    if kind == "TCP":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            left = socket.create_connection(listener.getsockname())
            right = listener.accept()[0]
    elif kind in ("unnamed", "stream", "seqpacket"):
        types = {"unnamed": socket.SOCK_DGRAM, "stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
        left, right = socket.socketpair(socket.AF_UNIX, types[kind])
    else:
        family = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}.get(kind, socket.AF_UNIX)
        left, right = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for number, end in enumerate((left, right)):
            names: dict[str, Any] = {
                "IPv4": ("127.0.0.1", 0),
                "IPv6": ("::1", 0),
                "Unix": str(tmp_path / f"{number}"),
                "abstract": f"\0aiouring {os.getpid()} {number}",
            }
            end.bind(names[kind])
        left.connect(right.getsockname())
        right.connect(left.getsockname())
    with left, right:
        for end in (left, right):
            end.setblocking(False)
        yield left, right
