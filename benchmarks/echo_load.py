"""Owns the echo benchmark's load: many connections, one message in flight on each, every echo compared."""

import os
import select
import socket
from types import TracebackType
from typing import Self

CONNECTIONS = 64
SIZE = 512
PATIENCE = 20.0  # seconds without any echo after which a server is taken for dead
CHECKS = 4  # messages of random content on each connection


class Load:
    """Connections to an echo server on the loopback interface; use it with `with`."""

    def __init__(self, port: int) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(CONNECTIONS):
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._epoll.close()
        for sock in self._sockets.values():
            sock.close()

    def check(self) -> None:
        """Exchange messages that are never the same twice, so that a stale or crossed echo is seen."""
        for _ in range(CHECKS):
            self.exchange(CONNECTIONS)

    def exchange(self, count: int) -> None:
        """Send `count` messages, the next on a connection when the echo of the last is there; returns at the end.

        Raises:
            RuntimeError: an echo differs from its message, or more came back than was sent.
            TimeoutError: no echo for a long time.
        """
        messages = {fd: os.urandom(SIZE) for fd in self._sockets}
        poll, read, write = self._epoll.poll, os.read, os.write
        for fd, message in messages.items():
            write(fd, message)
        unsent, unanswered = count - len(messages), count
        while unanswered > 0:
            ready = poll(PATIENCE)
            if not ready:
                raise TimeoutError(f"{unanswered} of {count} echoes did not come")
            for fd, _ in ready:
                message = messages[fd]
                data = read(fd, SIZE)
                if data != message:
                    self._complete(fd, data, message)
                unanswered -= 1
                if unsent > 0:
                    unsent -= 1
                    if write(fd, message) != SIZE:
                        raise RuntimeError("the socket took part of a message")
        self._see_nothing_more()

    def _complete(self, fd: int, data: bytes, message: bytes) -> None:
        """The echo came in pieces, or is wrong."""
        while len(data) < SIZE and message.startswith(data):
            if not select.select([fd], [], [], PATIENCE)[0]:
                raise TimeoutError(f"{len(data)} of {SIZE} bytes of an echo came")
            piece = os.read(fd, SIZE - len(data))
            if not piece:
                break
            data += piece
        if data != message:
            raise RuntimeError(f"the echo of {SIZE} bytes is {len(data)} bytes, or differs")

    def _see_nothing_more(self) -> None:
        for sock in self._sockets.values():
            try:
                data = sock.recv(SIZE)
            except BlockingIOError:
                continue
            raise RuntimeError(f"{len(data)} bytes more than were sent" if data else "the server hung up")
