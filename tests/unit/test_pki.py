"""Certificates that fit each other, in files that only their owner reads."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from latencyprobe.commands.pki import FilesExistError, initialise, pki_command
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME

AUTHORITIES = {"client-ca", "server-ca"}
SIDES = {"agent", "operator"}


def _names(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def test_init_writes_what_both_sides_need(tmp_path: Path) -> None:
    result = CliRunner().invoke(pki_command, ["init", str(tmp_path / "pki")])
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "pki").iterdir()}
    assert written == {f"{n}.{s}" for n in AUTHORITIES | SIDES for s in ("crt", "key")}
    assert _names(tmp_path / "pki/agent.crt") == [AGENT_NAME]
    assert _names(tmp_path / "pki/operator.crt") == [OPERATOR_NAME]


def test_only_their_owner_reads_keys(tmp_path: Path) -> None:
    keys = [path for path in initialise(tmp_path, days=1) if path.suffix == ".key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "agent.key").write_text("mine")
    with pytest.raises(FilesExistError, match=r"files exist: .*agent\.key"):
        initialise(tmp_path, days=1)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.key"]
    result = CliRunner().invoke(pki_command, ["init", str(tmp_path)])
    assert result.exit_code == 1
    assert "nothing was written" in result.output


@pytest.mark.parametrize(
    ("name", "authority", "purpose", "other"),
    [
        ("agent", "server-ca", ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH),
        ("operator", "client-ca", ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH),
    ],
)
def test_a_certificate_is_good_for_its_side_alone(
    tmp_path: Path, name: str, authority: str, purpose: ssl.Purpose, other: ssl.Purpose
) -> None:
    initialise(tmp_path, days=1)
    certificate = x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    oids = {oid.dotted_string for oid in usage}
    assert purpose.oid in oids
    assert other.oid not in oids
    for each in AUTHORITIES:
        issuer = x509.load_pem_x509_certificate((tmp_path / f"{each}.crt").read_bytes())
        if each == authority:
            certificate.verify_directly_issued_by(issuer)
        else:
            with pytest.raises(ValueError, match="does not match"):
                certificate.verify_directly_issued_by(issuer)


def test_secrets_have_the_names_and_files_that_the_pods_mount() -> None:
    arguments = ["secrets", "--namespace", "ours", "--agent-namespace", "theirs", "--days", "3"]
    items = json.loads(CliRunner().invoke(pki_command, arguments).stdout)["items"]
    places = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in items]
    assert places == [("theirs", "latencyprobe-agent-tls"), ("ours", "latencyprobe-operator-tls")]
    assert {tuple(item["stringData"]) for item in items} == {("ca.crt", "tls.crt", "tls.key")}


def test_each_secret_holds_the_authority_of_the_other_side() -> None:
    items = json.loads(CliRunner().invoke(pki_command, ["secrets"]).stdout)["items"]
    texts = [
        [x509.load_pem_x509_certificate(item["stringData"][key].encode()) for item in items]
        for key in ("ca.crt", "tls.crt")
    ]
    trusted, own = texts
    for certificate, authority in zip(own, reversed(trusted), strict=True):
        certificate.verify_directly_issued_by(authority)
    assert trusted[0] != trusted[1]


def test_the_key_of_the_authority_is_in_no_secret() -> None:
    items = json.loads(CliRunner().invoke(pki_command, ["secrets"]).stdout)["items"]
    texts = [item["stringData"] for item in items]
    authorities = [x509.load_pem_x509_certificate(each["ca.crt"].encode()) for each in texts]
    for each in texts:
        key = load_pem_private_key(each["tls.key"].encode(), password=None)
        assert key.public_key() not in [authority.public_key() for authority in authorities]
