"""Tests of the sockets that a server listens on: hosts, ports, Unix paths, given sockets, and what is refused."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from aiouring._listening import Hosts, UnixListener, listen, listen_on

pytestmark = pytest.mark.needs_no_ring


async def listen_with(hosts: Hosts, port: "int | str | None", **options: Any) -> list[socket.socket]:
    """The sockets, with the options of start_server()."""
    defaults: dict[str, Any] = {
        "family": 0,
        "flags": socket.AI_PASSIVE,
        "backlog": 5,
        "reuse_address": True,
        "reuse_port": False,
    }
    return await listen(hosts, port, **(defaults | options))


def close_all(listeners: list[socket.socket]) -> list[Any]:
    """Close them; returns where they listened."""
    addresses = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


async def test_hosts() -> None:
    """One host, several, one of them twice: a socket for each address, with the options that were asked for."""
    listeners = await listen_with(["127.0.0.1", "127.0.0.2", "127.0.0.1"], 0)
    for listener in listeners:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert [host for host, _ in close_all(listeners)] == ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(ValueError, match="no host"):
        await listen_with([], 0)


@pytest.mark.parametrize("hosts", [None, ""])
async def test_all_interfaces(hosts: Hosts) -> None:
    """None and the empty string are every interface; IPv4 and IPv6 have a socket each, where there are both."""
    listeners = await listen_with(hosts, None)
    families = {listener.family for listener in listeners}
    assert socket.AF_INET in families
    assert {host for host, _ in close_all(listeners)} <= {"0.0.0.0", "::"}
    listeners = await listen_with(hosts, 0, family=socket.AF_INET)
    assert [host for host, _ in close_all(listeners)] == ["0.0.0.0"]


async def test_one_port_shared() -> None:
    """With reuse_port a second server may have the port; without, it is refused, and the error says where."""
    first = await listen_with("127.0.0.1", 0, reuse_port=True)
    port = first[0].getsockname()[1]
    second = await listen_with("127.0.0.1", port, reuse_port=True)
    assert close_all(second) == [("127.0.0.1", port)]
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}") as caught:
        await listen_with(["127.0.0.2", "127.0.0.1"], port)  # the first of them is closed again: the oracle looks
    assert caught.value.errno == errno.EADDRINUSE
    close_all(first)


async def test_addresses_that_this_machine_does_not_have() -> None:
    """They are left out where there are others, and an error where there are none."""
    listeners = await listen_with(["192.0.2.1", "127.0.0.1"], 0)
    assert [host for host, _ in close_all(listeners)] == ["127.0.0.1"]
    with pytest.raises(OSError, match=r"192\.0\.2\.1") as caught:
        await listen_with("192.0.2.1", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_given_socket() -> None:
    """A bound stream socket listens afterwards; anything else is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert listen_on(sock, 5) is sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="stream socket"):
        listen_on(datagrams, 5)
    with pytest.raises(TypeError, match="not int"):
        listen_on(5, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_a_unix_path(tmp_path: Path, kind: Any) -> None:
    """The path is made and removed; an older socket's is replaced, and its server then leaves it alone."""
    path = tmp_path / "socket"
    first = UnixListener(kind(str(path)), 5)
    second = UnixListener(kind(str(path)), 5)
    first.remove_path()
    first.socket.close()
    assert path.is_socket()
    second.remove_path()
    assert not path.exists()
    second.remove_path()
    second.socket.close()


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    """What is no socket is not replaced; the error names the path, and what followed it later is not removed."""
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match=str(path)) as caught:
        UnixListener(path, 5)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match="too long"):
        UnixListener("x" * 200, 5)
    listener = UnixListener(tmp_path / "socket", 5)
    (tmp_path / "socket").unlink()
    (tmp_path / "socket").write_text("precious")
    listener.remove_path()
    assert (tmp_path / "socket").read_text() == "precious"
    listener.socket.close()


def test_an_abstract_name() -> None:
    """A name that begins with a zero byte is in no file system."""
    listener = UnixListener(f"\0aiouring-{os.getpid()}", 5)
    listener.remove_path()
    listener.socket.close()
