"""Makes TLS options for clients from the files that Celery's settings name."""

from __future__ import annotations

from typing import Any

from OpenSSL import crypto
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.filepath import FilePath

from twistedcelery.errors import ConfigurationError

__all__ = ["client_tls"]


def client_tls(
    host: str,
    *,
    setting: str,
    ca_certs: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    verify: bool = True,
    check_hostname: bool = True,
) -> Any:
    """Options for `twisted.internet.endpoints.wrapClientTLS`.

    :param host: the name that the server's certificate must have
    :param setting: which of Celery's settings names the files, for errors
    :param ca_certs: a PEM file of the authorities to trust; the system's where it is not given
    :param certfile: a PEM file of the client's own certificate
    :param keyfile: its key, where that is in another file
    :param verify: whether the server's certificate is verified
    :param check_hostname: whether its name is
    :raises ConfigurationError: for a file that cannot be used
    """
    try:
        trust = None
        if ca_certs:
            trust = trustRootFromCertificates(_certificates(ca_certs, setting))
        own = None
        if certfile:
            pem = FilePath(certfile).getContent()
            if keyfile:
                pem += b"\n" + FilePath(keyfile).getContent()
            own = PrivateCertificate.loadPEM(pem)
    except (OSError, crypto.Error) as problem:
        raise ConfigurationError(f"{setting} names a file that cannot be used: {problem}") from problem
    if verify and check_hostname:
        return optionsForClientTLS(host, trustRoot=trust, clientCertificate=own)
    identity = {} if own is None else {"privateKey": own.privateKey.original, "certificate": own.original}
    if verify:
        return CertificateOptions(trustRoot=trust or platformTrust(), **identity)
    return CertificateOptions(verify=False, **identity)


def _certificates(path: str, setting: str) -> list[Certificate]:
    """Every certificate of a PEM bundle.

    :raises ConfigurationError: when there is none
    """
    end = b"-----END CERTIFICATE-----"
    parts = FilePath(path).getContent().split(end)[:-1]
    if not parts:
        raise ConfigurationError(f"{setting} names a file that has no certificate: {path}")
    return [Certificate.loadPEM(part + end + b"\n") for part in parts]
