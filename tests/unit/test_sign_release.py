"""Signatures and provenance of a release, from archives to a verification of both."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.patience import patient
from tests.unit.fake_cosign import PAYLOAD_TYPE, pre_authentication_encoding
from tools.images.components import ROOT

BUILDER = "https://example.org/builder"
FAKE_COSIGN = Path(__file__).with_name("fake_cosign.py")
READ_BY_THE_SCRIPT = (
    "requirements-build.lock",
    "operator/requirements.lock",
    "operator/Containerfile",
    "node_agent/requirements.lock",
    "node_agent/Containerfile",
    "latencyprobe/__init__.py",
)


class Checkout:
    """A committed checkout with what the script reads, and a cosign with a key."""

    def __init__(self, root: Path) -> None:
        self.root, self.dist = root, root / "dist"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.dist.mkdir(parents=True)
        shutil.copytree(
            ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in READ_BY_THE_SCRIPT:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        self._git("init", "--quiet")
        self._git("add", ".")
        self._git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=a")
        self.revision = self._git("rev-parse", "HEAD")
        # Neither is tracked.
        (root / ".venv").symlink_to(sys.prefix)
        (root / "key.pem").write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        cosign = root / "bin/cosign"
        cosign.parent.mkdir()
        cosign.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_COSIGN} "$@"\n')
        cosign.chmod(0o755)

    def write_archive(self, component: str, revision: str) -> Path:
        """Write an archive with the parts of an image that the provenance names."""
        manifest = json.dumps(
            {"annotations": {"org.opencontainers.image.revision": revision}, "layers": []}
        ).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        name = f"example.org/latencyprobe-{component}:1"
        index = {
            "manifests": [
                {
                    "digest": f"sha256:{digest}",
                    "annotations": {"org.opencontainers.image.ref.name": name},
                }
            ]
        }
        path = self.dist / f"latencyprobe-{component}-amd64.tar"
        with tarfile.open(path, "w") as tar:
            for file, content in (
                ("./index.json", json.dumps(index).encode()),
                (f"./blobs/sha256/{digest}", manifest),
            ):
                member = tarfile.TarInfo(file)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        (self.dist / f"latencyprobe-{component}-amd64.cdx.json").write_text("{}")
        return path

    def sign(self) -> subprocess.CompletedProcess[str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [
                self.root / "tools/sign-release",
                self.root / "key.pem",
                BUILDER,
                self.dist,
                "--tlog-upload=false",
            ],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(60),
        )

    def verify(self, signature: str, content: bytes) -> None:
        """Check a signature as a user with the public key does; raises InvalidSignature."""
        public = self.key.public_key()
        public.verify(base64.b64decode(signature), content, ec.ECDSA(SHA256()))

    def statement(self) -> Any:
        """Return the statement in the signed envelope."""
        envelope = json.loads((self.dist / "provenance.sig").read_text())
        assert envelope["payloadType"] == PAYLOAD_TYPE
        payload = base64.b64decode(envelope["payload"])
        (signature,) = envelope["signatures"]
        self.verify(signature["sig"], pre_authentication_encoding(payload))
        return json.loads(payload)

    def _git(self, *arguments: str) -> str:
        answer = subprocess.run(
            ["git", "-C", self.root, *arguments], capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_every_archive_and_bill_has_a_signature_that_verifies(checkout: Checkout) -> None:
    archives = [checkout.write_archive(name, checkout.revision) for name in ("operator", "agent")]
    signed = checkout.sign()
    assert signed.returncode == 0, signed.stderr
    bills = checkout.dist.glob("*.cdx.json")
    for path in (*archives, *bills):
        signature = path.with_name(path.name + ".sig").read_text()
        checkout.verify(signature, path.read_bytes())
        with pytest.raises(InvalidSignature):
            checkout.verify(signature, path.read_bytes() + b"x")


def test_the_signed_provenance_names_files_images_commit_and_locks(checkout: Checkout) -> None:
    archive = checkout.write_archive("agent", checkout.revision)
    signed = checkout.sign()
    assert signed.returncode == 0, signed.stderr
    statement = checkout.statement()
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert subjects[archive.name] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert subjects["latencyprobe-agent-amd64.cdx.json"] == hashlib.sha256(b"{}").hexdigest()
    with tarfile.open(archive) as tar:
        assert f"./blobs/sha256/{subjects['example.org/latencyprobe-agent:1']}" in tar.getnames()
    predicate = statement["predicate"]
    assert predicate["runDetails"]["builder"]["id"] == BUILDER
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"] == {"revision": checkout.revision}
    inputs = {each["name"]: each["digest"] for each in definition["resolvedDependencies"]}
    assert inputs.pop("source") == {"gitCommit": checkout.revision}
    for name, digest in inputs.items():
        content = (checkout.root / name).read_bytes()
        assert digest == {"sha256": hashlib.sha256(content).hexdigest()}
    assert {"operator/requirements.lock", "node_agent/requirements.lock"} <= inputs.keys()


def test_archives_of_another_commit_are_not_signed(checkout: Checkout) -> None:
    checkout.write_archive("agent", "0" * 40)
    signed = checkout.sign()
    assert signed.returncode == 1
    assert f"was built from {'0' * 40}, but the checkout is at {checkout.revision}; run" in (
        signed.stderr
    )
    assert list(checkout.dist.glob("*.sig")) == []


def test_a_checkout_with_changes_is_not_signed(checkout: Checkout) -> None:
    checkout.write_archive("agent", checkout.revision)
    with (checkout.root / "operator/requirements.lock").open("a") as lock:
        lock.write("evil==1\n")
    signed = checkout.sign()
    assert signed.returncode == 1
    assert f"the checkout is at {checkout.revision}-dirty; commit its changes" in signed.stderr
    assert list(checkout.dist.glob("*.sig")) == []


def test_without_archives_there_is_nothing_to_sign(checkout: Checkout) -> None:
    signed = checkout.sign()
    assert signed.returncode == 1
    assert "no archives in" in signed.stderr


@pytest.mark.parametrize("arguments", [(), ("", "", "dist")])
def test_without_a_key_the_usage_is_shown(arguments: tuple[str, ...]) -> None:
    answer = subprocess.run(
        [ROOT / "tools/sign-release", *arguments], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "tools/sign-release KEY BUILDER" in answer.stderr
