"""Owns the chat server: what one says all others hear, and whoever reads slowly hurts nobody but himself.

    python examples/chat_server.py                  # then, several times elsewhere: nc 127.0.0.1 7777
    python examples/chat_server.py --slow skip --backlog 1000

The first line that a client sends is its name.  Each client has a line of messages of its own, of at most `--backlog`,
and a task that sends them.  Who speaks only puts his message in the others' lines, and never waits for them.  For one
whose line is full, because he does not read, either the connection is closed (`--slow drop`), or he misses messages
and is told how many (`--slow skip`).  So the server's memory is bounded by clients x backlog x the longest message.

Exit codes: 0, or 1 if the network failed, 2 for wrong options or no io_uring, 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import sys

import aiouring

LONGEST = 1024  # bytes of a message
PATIENCE = 5.0  # seconds that clients have, in the end, to take what is queued for them


class Client:
    """One who is here: his connection, and the messages that wait for him."""

    def __init__(self, name: str, connection: aiouring.Connection, backlog: int) -> None:
        self.name = name
        self.connection = connection
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue(backlog)
        self.missed = 0

    async def send_all(self) -> None:
        """Send what waits, as it comes, until cancelled."""
        while True:
            messages = [await self.waiting.get()]
            while not self.waiting.empty():
                messages.append(self.waiting.get_nowait())
            if self.missed:
                messages.append(b"* you missed %d messages\n" % self.missed)
                self.missed = 0
            await self.connection.send(messages)  # returns when the kernel has taken all of them


class Room:
    """All who are here."""

    def __init__(self, backlog: int, *, drop: bool) -> None:
        self.backlog = backlog
        self.drop = drop
        self.clients: set[Client] = set()
        self.messages = self.dropped = self.skipped = 0

    def __str__(self) -> str:
        return f"chat: {self.messages:,} messages, {self.dropped:,} clients dropped, {self.skipped:,} messages skipped"

    def say(self, message: bytes, speaker: Client | None = None) -> None:
        """Put a message in everybody's line but the speaker's; never waits."""
        self.messages += 1
        for client in list(self.clients):
            if client is not speaker:
                try:
                    client.waiting.put_nowait(message)
                except asyncio.QueueFull:
                    self.is_slow(client)

    def is_slow(self, client: Client) -> None:
        """One does not read what is sent to him."""
        if self.drop:
            self.dropped += 1
            self.clients.discard(client)
            client.connection.abort()  # his handler learns of it, and leaves
        else:
            self.skipped += 1
            client.missed += 1

    async def serve(self, connection: aiouring.Connection) -> None:
        """One client, from his name to his leaving."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            name = (await connection.receive_until(b"\n", limit=40)).strip().decode(errors="replace")
            client = Client(name or "somebody", connection, self.backlog)
            self.clients.add(client)
            self.say(f"* {client.name} is here\n".encode(), client)
            sending = asyncio.create_task(client.send_all())
            try:
                while True:
                    line = await connection.receive_until(b"\n", limit=LONGEST)
                    self.say(f"{client.name}: ".encode() + line, client)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.exception()  # it was lost, which the receive has said
                self.clients.discard(client)
                self.say(f"* {client.name} has left\n".encode(), client)


async def run(options: argparse.Namespace) -> int:
    """Listen until cancelled, then say goodbye."""
    room = Room(options.backlog, drop=options.slow == "drop")
    async with await aiouring.start_server(room.serve, options.host, options.port) as server:
        try:
            print("listening on {}:{}".format(*server.sockets[0].getsockname()[:2]), flush=True)
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            server.close()
            server.close_clients()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await server.wait_closed()
            server.abort_clients()
            print(room, flush=True)
    return 0


def main() -> int:
    """Run the server on the loop that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="A chat server that slow readers do not hold up.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7777, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--backlog", type=int, default=200, help="messages that may wait for a client (%(default)s)")
    parser.add_argument("--slow", choices=("drop", "skip"), default="drop", help="what then happens (%(default)s)")
    options = parser.parse_args()
    if not 0 <= options.port < 1 << 16:
        parser.error(f"--port {options.port} is outside 0 to {(1 << 16) - 1}")
    if options.backlog < 1:
        parser.error(f"--backlog {options.backlog} is less than 1")
    loop_factory = None
    if options.loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            parser.error("--loop uvloop needs uvloop, which is not installed: pip install uvloop")
        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(run(options))
    except KeyboardInterrupt:
        return 130
    except aiouring.RingUnavailableError as error:
        print(f"io_uring is not available here: {error.strerror}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
