"""The address that is bound, and TLS for both protocols."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any

from redline.errors import InputError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or the addresses of a name.

    Raises:
        InputError: the name has no address.

    Example:
        >>> is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, False)
    """
    return not _remote(host)


def _remote(host: str) -> list[str]:
    try:
        # asyncio takes "" for every interface.
        found = {str(info[4][0]) for info in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError) as error:
        raise InputError(f"the host {host!r} has no address: {error}") from None
    return sorted(
        name for name in found if not ipaddress.ip_address(name.partition("%")[0]).is_loopback
    )


def check_bind(host: str, *, allow_remote: bool, control: bool = False) -> None:
    """Refuse an address that others can reach, unless the operator said so.

    Raises:
        InputError: `host` is not loopback and `allow_remote` is False, it has no address, or the
            control plane would be open to others without a key.
    """
    remote = _remote(host)
    if remote and not allow_remote:
        raise InputError(
            f"the host {host!r} is reachable by other machines ({remote[0]})",
            hint="--allow-remote serves there all the same; give --api-key-file and --tls-cert too",
        )
    if remote and control:
        raise InputError(
            "an open control plane is for loopback only",
            hint="give --admin-key-file instead of --allow-control",
        )


def tls_context(cert: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """A context for HTTPS of TLS 1.2 or newer; with `ca`, clients need a certificate of it (mTLS).

    Raises:
        InputError: a file that cannot be read or does not fit the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("certificate or key", cert, error) from None
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("CA file", ca, error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def grpc_credentials(cert: Path, key: Path, ca: Path | None = None) -> Any:
    """The same for gRPC.

    Raises:
        InputError: as tls_context, which has the last word on whether the files fit.
    """
    import grpc  # type: ignore[import-untyped, unused-ignore]

    tls_context(cert, key, ca)
    roots = ca.read_bytes() if ca else None
    pair = (key.read_bytes(), cert.read_bytes())
    return grpc.ssl_server_credentials(
        [pair], root_certificates=roots, require_client_auth=ca is not None
    )


def _no_password() -> str:
    raise InputError("the TLS key is encrypted", hint="openssl pkey -in KEY -out PLAIN decrypts it")


def _unusable(what: str, path: Path, error: OSError) -> InputError:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return InputError(f"the TLS {what} cannot be used: {reason}", where=str(path))
