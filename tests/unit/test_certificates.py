"""The validity of a certificate, read from its file without a library of certificates."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from latencyprobe.exposition.certificates import CertificateTimes
from latencyprobe.process.certificates import Validity, first_to_end

KEYS = (
    ec.generate_private_key(ec.SECP256R1()),
    rsa.generate_private_key(public_exponent=65537, key_size=2048),
)
BEGIN = datetime.datetime(1960, 1, 1, tzinfo=datetime.UTC)


def certificate(end: datetime.datetime, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    """A certificate that ends then, with a long name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n" * 60)])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return signed.public_bytes(Encoding.PEM).decode()


# After 2049 the form of the time is another one.
@given(
    st.integers(0, 7_258_118_400),
    st.sampled_from(KEYS),
)
def test_the_validity_is_that_of_the_certificate(
    tmp_path_factory: pytest.TempPathFactory,
    end: int,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
    path = tmp_path_factory.mktemp("certificate") / "tls.crt"
    path.write_text(certificate(datetime.datetime.fromtimestamp(end, datetime.UTC), key))
    assert first_to_end(path) == Validity(end, BEGIN.timestamp())


def test_of_several_certificates_the_earliest_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    ends = [datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2040, 2030, 2060)]
    path.write_text("a comment\n" + "".join(certificate(end, KEYS[0]) for end in ends))
    assert first_to_end(path) == Validity(ends[1].timestamp(), BEGIN.timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n",
    ],
)
def test_a_file_without_a_certificate_has_no_end(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tls.crt"
    path.write_text(text)
    assert first_to_end(path) is None


def test_a_missing_file_has_no_series(tmp_path: Path) -> None:
    registry, path = CollectorRegistry(), tmp_path / "tls.crt"
    registry.register(CertificateTimes("agent", {"own": path}))

    def value(time: str) -> float | None:
        name = f"agent_certificate_{time}_timestamp_seconds"
        return registry.get_sample_value(name, {"certificate": "own"})

    assert (value("begin"), value("end")) == (None, None)

    end = datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC)
    path.write_text(certificate(end, KEYS[0]))
    assert (value("begin"), value("end")) == (BEGIN.timestamp(), end.timestamp())
