"""Owns the certificates of the tests: an authority made for the run, and contexts that trust it."""

import ssl
from functools import cache

import trustme

NAME = "server.test"


#: Whom the contexts below trust.
AUTHORITY = trustme.CA()


@cache
def certificate(*names: str) -> trustme.LeafCert:
    """A certificate for `names` from that authority."""
    return AUTHORITY.issue_cert(*names)


def server_context(*names: str) -> ssl.SSLContext:
    """A server's, with a certificate for `names`, or for `NAME` and the local addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate(*(names or (NAME, "localhost", "127.0.0.1"))).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A client's, which trusts the authority and nobody else, and checks names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context
