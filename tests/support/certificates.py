"""A certificate authority for one test."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

__all__ = ["Certificate", "make_authority"]


class Certificate:
    """A certificate and its key, in two PEM files."""

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        issuer: Certificate | None = None,
        address: str = "127.0.0.1",
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        """Make one.

        :param issuer: signs it; itself where it is not given, as an authority
        :param address: the IP address of the server it is for
        :param key: its key; a new one where it is not given
        """
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name((issuer or self).subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
        )
        signed = builder.sign((issuer or self).key, hashes.SHA256())
        self.file, self.key_file = directory / f"{name}.pem", directory / f"{name}-key.pem"
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def make_authority(directory: Path) -> Certificate:
    """An authority, which servers and clients are certified by."""
    return Certificate(directory, "authority")
