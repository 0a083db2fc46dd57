"""Certificates for operator and agents, for clusters without cert-manager: `latencyprobe pki`.

Two authorities sign one certificate each. The agents trust only the authority of clients, which
signs the operator's certificate. The operator trusts only the authority of servers, which signs the
agents'. Each certificate also has the usage of its side alone. An agent's key lies on every node;
it does not open a connection to other agents.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME

_CA_DAYS = 3650
Secret = dict[str, Any]
_CLOCK_SKEW = datetime.timedelta(minutes=5)


class FilesExistError(Exception):
    """Certificates that already exist. `paths` holds their files."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        super().__init__(
            f"nothing was written, because files exist: {', '.join(map(str, paths))}; "
            "choose another directory or remove them"
        )


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate's text."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key's text."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """An authority that signs certificates. Its own is `credential`."""

    def __init__(self, name: str = "latencyprobe CA", *, days: int = _CA_DAYS) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        unsigned = _unsigned(self._name, self._name, key, key, days=days)
        signed = (
            unsigned.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.credential = Credential(signed, key)

    def issue(self, dns_name: str, *, server: bool, client: bool, days: int) -> Credential:
        """Sign a certificate for this name, valid as a server, as a client, or both."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * server
        purposes += [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        signed = (
            _unsigned(_common_name(dns_name), self._name, key, self.credential.key, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
            .sign(self.credential.key, hashes.SHA256())
        )
        return Credential(signed, key)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates of both sides.

    `client_authority` signed the operator's; `server_authority` the agents'.
    """

    client_authority: Credential
    server_authority: Credential
    agent: Credential
    operator: Credential


def make_certificates(*, days: int) -> Certificates:
    """Make new authorities, and sign certificates for operator and agents."""
    clients, servers = Authority("latencyprobe client CA"), Authority("latencyprobe server CA")
    return Certificates(
        client_authority=clients.credential,
        server_authority=servers.credential,
        agent=servers.issue(AGENT_NAME, server=True, client=False, days=days),
        operator=clients.issue(OPERATOR_NAME, server=False, client=True, days=days),
    )


def initialise(directory: Path, *, days: int) -> list[Path]:
    """Write new authorities, and certificates for operator and agents; return their files.

    Raise FilesExistError before writing if any of the files exists.
    """
    made = make_certificates(days=days)
    texts = _files(
        {
            "client-ca": made.client_authority,
            "server-ca": made.server_authority,
            "agent": made.agent,
            "operator": made.operator,
        }
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = {directory / name: text for name, text in texts.items()}
    existing = [path for path in paths if path.exists()]
    if existing:
        raise FilesExistError(existing)
    for path, text in paths.items():
        _write_new(path, text, mode=0o600 if path.suffix == ".key" else 0o644)
    return list(paths)


def _files(credentials: Mapping[str, Credential]) -> dict[str, bytes]:
    texts = {}
    for name, credential in credentials.items():
        texts[f"{name}.crt"] = credential.certificate_pem
        texts[f"{name}.key"] = credential.key_pem
    return texts


def _write_new(path: Path, text: bytes, *, mode: int) -> None:
    """Write a file that must not exist, at no time with more permissions than `mode`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)


def secrets(made: Certificates, *, operator_namespace: str, agent_namespace: str) -> list[Secret]:
    """Return the Secrets that operator and agents mount. Neither holds an authority's key."""
    return [
        _secret("latencyprobe-agent-tls", agent_namespace, made.client_authority, made.agent),
        _secret(
            "latencyprobe-operator-tls", operator_namespace, made.server_authority, made.operator
        ),
    ]


def _secret(name: str, namespace: str, trusted: Credential, credential: Credential) -> Secret:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "latencyprobe"},
        },
        "type": "kubernetes.io/tls",
        "stringData": {
            "ca.crt": trusted.certificate_pem.decode(),
            "tls.crt": credential.certificate_pem.decode(),
            "tls.key": credential.key_pem.decode(),
        },
    }


_DAYS = click.option(
    "--days",
    type=click.IntRange(1, _CA_DAYS),
    default=365,
    show_default=True,
    help="Days for which the certificates of operator and agents are valid.",
)


@click.group("pki")
def pki_command() -> None:
    """Make the certificates by which operator and agents authenticate each other."""


@pki_command.command("init")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@_DAYS
def init_command(directory: Path, days: int) -> None:
    """Write client-ca, server-ca, agent and operator (.crt and .key each) into DIRECTORY.

    Give client-ca.crt to the agents as --ca-file, and server-ca.crt to the operator. No existing
    file is replaced. Keep client-ca.key off the cluster: its holder can control every agent. The
    holder of server-ca.key can pretend to be one.
    """
    try:
        written = initialise(directory, days=days)
    except FilesExistError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"cannot write {error.filename or directory}: {error.strerror}"
        ) from None
    for path in written:
        click.echo(path)


@pki_command.command("secrets")
@click.option(
    "--namespace",
    "operator_namespace",
    default="latencyprobe-system",
    show_default=True,
    help="The operator's namespace.",
)
@click.option(
    "--agent-namespace",
    default="latencyprobe-agents",
    show_default=True,
    help="The agents' namespace.",
)
@_DAYS
def secrets_command(operator_namespace: str, agent_namespace: str, days: int) -> None:
    """Print the Secrets of operator and agents, with new certificates.

    Pipe them to `kubectl apply --server-side -f -`. Each call makes new authorities and discards
    their keys. Applying the Secrets again replaces the old ones without a restart. Operator and
    agents cannot connect until the kubelets have updated the files on both sides, a minute or two.
    """
    made = make_certificates(days=days)
    items = secrets(made, operator_namespace=operator_namespace, agent_namespace=agent_namespace)
    click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))
