"""The cluster's own certificate authority, and certificates for its components and users.

The API server takes a client for the subject of its certificate: the common name is the user, the
organisations are its groups.
"""

import datetime
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=30)
CLOCK_SKEW = datetime.timedelta(minutes=5)


class Authority:
    """Issues certificates into one directory, as NAME.crt and NAME.key. Its own are ca.*."""

    def __init__(self, directory: Path) -> None:
        """Make a new authority."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "latencyprobe-test-ca")])
        unsigned = self._unsigned(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._write("ca", self._key, unsigned.sign(self._key, hashes.SHA256()))

    def issue_client(self, name: str, *, user: str, groups: Sequence[str] = ()) -> None:
        """Issue a certificate to a client of the API server or of the kubelet."""
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, user),
            ]
        )
        self._issue(name, subject, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def issue_server(
        self, name: str, *, host_names: Sequence[str], addresses: Sequence[IPv4Address]
    ) -> None:
        """Issue a certificate to a server that is reached by these names and addresses."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives = x509.SubjectAlternativeName(
            [
                *(x509.DNSName(host_name) for host_name in host_names),
                *(x509.IPAddress(address) for address in addresses),
            ]
        )
        self._issue(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def issue_key_pair(self, name: str) -> None:
        """Write NAME.key and NAME.pub, without a certificate, to sign ServiceAccount tokens."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self._directory / f"{name}.pub").write_bytes(public)
        self._write_key(name, key)

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        unsigned = (
            self._unsigned(subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if alternatives:
            unsigned = unsigned.add_extension(alternatives, critical=False)
        self._write(name, key, unsigned.sign(self._key, hashes.SHA256()))

    def _unsigned(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + VALID)
        )

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self._write_key(name, key)
        (self._directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        path = self._directory / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
