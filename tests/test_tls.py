"""Tests of Engine: TLS over memory, without a ring, a loop or a socket."""

import ssl
from random import Random

import pytest
from tls_certificates import NAME, client_context, server_context

from aiouring._tls import RECORD, Engine, TLSSettings, settings_of

pytestmark = pytest.mark.needs_no_ring


def engines(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Engine, Engine]:
    """A server's and a client's, before their handshake."""
    context = client_context()
    context.maximum_version = context.minimum_version = version
    server = Engine(TLSSettings(server_context(), True, None, 1, 1))
    return server, Engine(TLSSettings(context, False, NAME, 1, 1))


def carry(one: Engine, other: Engine, size: int = 1 << 20) -> bytes:
    """Bring what one has to say to the other, `size` bytes at a time; returns what the other reads."""
    data, got = one.take(), b""
    for at in range(0, len(data), size):
        other.feed(data[at : at + size])
        got += other.decrypt()
    return got


def shake(server: Engine, client: Engine, size: int = 1 << 20) -> None:
    """The handshake, and the tickets after it."""
    assert client.decrypt() == b""
    while not (server.shaken and client.shaken):
        assert carry(client, server, size) == b""
        assert carry(server, client, size) == b""
    assert not client.to_send


def write(engine: Engine, data: bytes) -> None:
    """Encrypt all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[engine.encrypt(rest) :]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_any_pieces(version: ssl.TLSVersion, size: int) -> None:
    """However ciphertext is cut in pieces, the handshake succeeds, and every byte comes."""
    server, client = engines(version)
    shake(server, client, size)
    message = Random(1).randbytes(5000)
    write(client, message)
    assert carry(client, server, size) == message
    for letter in b"tiny":
        write(server, bytes([letter]))
    assert carry(server, client, size) == b"tiny"
    assert "open" in repr(server)


def test_nothing_whole_stays_inside() -> None:
    """All records of a piece are returned together, and none of them is kept for a later call."""
    server, client = engines()
    shake(server, client)
    for _ in range(100):
        write(client, b"x")
    write(client, b"y" * 10 * RECORD)
    assert carry(client, server) == b"x" * 100 + b"y" * 10 * RECORD
    assert server.decrypt() == b""


def test_each_direction_ends_alone() -> None:
    """A close-notify ends what comes; what goes can go on, and ends with our own."""
    server, client = engines()
    shake(server, client)
    write(client, b"question")
    client.close_notify()
    client.close_notify()
    assert carry(client, server) == b"question"
    assert server.ended
    assert "ended" in repr(server)
    assert server.decrypt() == b""
    write(server, b"answer")
    assert carry(server, client) == b"answer"
    assert not client.ended
    server.close_notify()
    assert carry(server, client) == b""
    assert client.ended
    server.feed_eof()
    assert server.decrypt() == b""


@pytest.mark.parametrize("whole", [True, False])
def test_a_cut_is_told_after_what_came_before(whole: bool) -> None:
    """The end without a close-notify is an SSLEOFError, after every whole record, and again whenever it is asked."""
    server, client = engines()
    shake(server, client)
    write(client, b"first")
    data = client.take()
    write(client, b"second")
    more = client.take()
    server.feed(data + (b"" if whole else more[:-1]))
    server.feed_eof()
    assert server.decrypt() == b"first"
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError, match="close-notify"):
            server.decrypt()


def test_forged_bytes() -> None:
    """A record that was changed is an error after what came before it; the peer gets an alert, and fails by that."""
    server, client = engines()
    shake(server, client)
    write(client, b"good")
    good = client.take()
    write(client, b"bad")
    bad = bytearray(client.take())
    bad[-1] ^= 1
    server.feed(good + bad)
    assert server.decrypt() == b"good"
    assert server.failure is not None
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        server.decrypt()
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        carry(server, client)


def test_a_handshake_that_breaks_off() -> None:
    """The end in the middle of a handshake is the ssl module's own error."""
    server, client = engines()
    client.decrypt()
    server.feed(client.take()[:50])
    assert server.decrypt() == b""
    assert "shaking" in repr(server)
    server.feed_eof()
    with pytest.raises(ssl.SSLEOFError):
        server.decrypt()


def test_goodbye_without_a_handshake() -> None:
    """There is nobody to say it to, and that is no error."""
    server, client = engines()
    client.close_notify()
    server.close_notify()
    assert not server.to_send


def test_what_the_arguments_mean() -> None:
    """ssl= and its companions become settings; what makes no sense is refused by name."""

    def settings(context: ssl.SSLContext | bool | None, **options: object) -> TLSSettings | None:
        given: dict[str, object] = {
            "server_side": False,
            "host": None,
            "server_hostname": None,
            "handshake_timeout": None,
            "shutdown_timeout": None,
        }
        return settings_of(context=context, **(given | options))  # type: ignore[arg-type]

    assert settings(None) is None
    assert settings(False) is None
    found = settings(True, host="example.org")
    assert found is not None
    assert (found.server_hostname, found.handshake_timeout, found.shutdown_timeout) == ("example.org", 60, 30)
    assert found.context.verify_mode == ssl.CERT_REQUIRED
    found = settings(client_context(), host="example.org", server_hostname="other.org", handshake_timeout=5)
    assert found is not None
    assert (found.server_hostname, found.handshake_timeout) == ("other.org", 5)
    careless = client_context()
    careless.check_hostname = False
    assert settings(careless) is not None
    assert settings(careless, server_hostname="") is not None
    for name in (None, ""):
        with pytest.raises(ValueError, match="check_hostname"):
            settings(client_context(), server_hostname=name)
    with pytest.raises(TypeError, match="int"):
        settings(5, host="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_h3_nothing_is_encrypted_for_a_peer_whose_stream_was_cut(version: ssl.TLSVersion) -> None:
    """OpenSSL may refuse that once it has read the end: to a sender that is a peer who is gone, as on any socket."""
    server, client = engines(version)
    shake(server, client)
    client.feed_eof()
    with pytest.raises(ssl.SSLEOFError):
        client.decrypt()
    with pytest.raises(BrokenPipeError, match="close-notify"):
        write(client, b"to nobody")
