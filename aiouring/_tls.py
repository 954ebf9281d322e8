"""Owns `Engine`: TLS over memory.  Ciphertext and plaintext go in and out as bytes; nothing here waits or sends.

How this fits together

1. Ciphertext that arrives is fed, and `decrypt()` says what can be read of it: all of it, so nothing that is complete
   stays inside.  What it leads to (the handshake's next message, an answer to a key update, an alert) is ciphertext to
   be sent, as what `encrypt()` makes is: `take()` it after either.
2. What was decrypted before an error, or before the end, is returned first; the error is `failure` from then on, and
   raised by the next call.  Nothing more need arrive for that: whoever decrypts has to look.
3. The end is the peer's close-notify, and nothing else: a stream that breaks off without it is an `ssl.SSLEOFError`.
   It ends one direction only: what we send may go on, and so may what the peer sends after ours.
"""

import errno
import ssl
from dataclasses import dataclass

from aiouring._errors import kernel_error

#: The most plaintext that one TLS record holds.
RECORD = 16 * 1024

#: Seconds, where the caller says nothing; as in asyncio.
HANDSHAKE_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """What a connection needs to know to begin TLS; times are in seconds."""

    context: ssl.SSLContext
    server_side: bool
    server_hostname: str | None
    handshake_timeout: float
    shutdown_timeout: float

    def __post_init__(self) -> None:
        if not isinstance(self.context, ssl.SSLContext):
            raise TypeError(f"an ssl.SSLContext is needed, not {type(self.context).__name__}")
        if self.context.protocol == (ssl.PROTOCOL_TLS_CLIENT if self.server_side else ssl.PROTOCOL_TLS_SERVER):
            # wrap_bio() would say so of each connection, and a server accept one after the other for nothing.
            ours, other = ("server", "client") if self.server_side else ("client", "server")
            raise ValueError(f"the ssl.SSLContext is a {other}'s (PROTOCOL_TLS_{other.upper()}): this end is a {ours}")
        if self.server_side and self.server_hostname:
            raise ValueError("server_hostname= is the client's: it names whom to reach, and whom to be answered by")
        if not self.server_side and self.context.check_hostname and not self.server_hostname:
            # wrap_bio() would say nothing, and any name would do.
            raise ValueError(
                "server_hostname= is needed: the context's check_hostname compares the certificate with it"
            )
        for name in ("handshake_timeout", "shutdown_timeout"):
            if not getattr(self, name) > 0:  # nor is it without a number, NaN
                raise ValueError(f"ssl_{name}={getattr(self, name)} is not more than 0 seconds")


def settings_of(
    *,
    context: ssl.SSLContext | bool | None,
    server_side: bool,
    host: str | None,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> TLSSettings | None:
    """What the arguments `ssl=` and so on of an opened connection or of a server mean; None is no TLS."""
    if context is None or context is False:
        for name, value in (
            ("server_hostname", server_hostname),
            ("ssl_handshake_timeout", handshake_timeout),
            ("ssl_shutdown_timeout", shutdown_timeout),
        ):
            if value is not None:
                raise ValueError(f"{name}={value!r} means something with ssl= only")
        return None
    if context is True:
        if server_side:
            raise TypeError("a server needs an ssl.SSLContext with its certificate: ssl=True is for clients")
        context = ssl.create_default_context()
    if server_hostname is None and not server_side:
        server_hostname = host
    return TLSSettings(
        context,
        server_side,
        server_hostname,
        HANDSHAKE_TIMEOUT if handshake_timeout is None else handshake_timeout,
        SHUTDOWN_TIMEOUT if shutdown_timeout is None else shutdown_timeout,
    )


class Engine:
    """One end of one TLS connection."""

    __slots__ = ("_incoming", "_outgoing", "_read", "ended", "failure", "feed", "object", "said_goodbye", "shaken")

    def __init__(self, settings: TLSSettings) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = settings.context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=settings.server_side,
            server_hostname=settings.server_hostname or None,
        )
        self.feed = self._incoming.write  # ciphertext has arrived: bytes, which are copied
        self._read = self.object.read
        self.failure: Exception | None = None  # what the next call of `decrypt()` raises
        self.shaken = False  # the handshake is over
        self.ended = False  # the peer's close-notify has come
        self.said_goodbye = False  # ours is among what is to be sent, or was

    def __repr__(self) -> str:
        state = "shaking hands" if not self.shaken else "ended" if self.ended else "open"
        return f"<Engine {state}, {self._outgoing.pending} bytes to send>"

    def feed_eof(self) -> None:
        """No more will come."""
        self._incoming.write_eof()

    def decrypt(self) -> bytes:
        """All that can be read now; before the handshake is over, go on with that.

        Raises:
            ssl.SSLError: what has gone wrong, after everything that came before; an alert may have to be sent.
        """
        if self.failure is not None:
            raise self.failure
        if not self.shaken and not self._shake():
            return b""
        parts: list[bytes] = []
        incoming = self._incoming
        try:
            while not self.ended:
                data = self._read(RECORD)
                if not data:
                    self.ended = True
                    break
                parts.append(data)
                if not incoming.pending and not incoming.eof:
                    break  # the next read would raise, which takes longer
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.failure = _truncated(error) if isinstance(error, ssl.SSLEOFError) else error
            if not parts:
                raise self.failure from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _shake(self) -> bool:
        """Go on with the handshake; whether it is over."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.shaken = True
        return True

    def encrypt(self, data: bytes | memoryview) -> int:
        """Make `data` ciphertext; returns how many bytes of it, a record's at most.

        0 where the peer has to be heard of first, which has asked for a new handshake (TLS 1.2 can do that).

        Raises:
            BrokenPipeError: the peer's stream has ended without a close-notify.
        """
        try:
            return self.object.write(data)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLEOFError:
            what = "sending to a peer whose stream ended without its close-notify"
            raise kernel_error(errno.EPIPE, what) from None

    def close_notify(self) -> None:
        """Tell the peer that nothing more will come; all that can be decrypted must have been, or it is lost."""
        if self.said_goodbye:
            return
        self.said_goodbye = True
        try:  # noqa: SIM105 - the rest says more this way
            self.object.unwrap()
        except ssl.SSLError:
            pass  # it would like to hear the peer's as well (SSLWantReadError), or there is nobody to tell

    @property
    def to_send(self) -> int:
        """Bytes of ciphertext that wait to be taken."""
        return self._outgoing.pending

    def take(self) -> bytes:
        """The ciphertext to send."""
        return self._outgoing.read()


def _truncated(error: ssl.SSLEOFError) -> ssl.SSLEOFError:
    return ssl.SSLEOFError(
        error.errno,
        "the stream ended without the peer's close-notify: what came may not be all that it sent",
    )
