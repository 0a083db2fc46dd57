"""cosign's two commands for files, with a key in a PEM file and the options that we use.

The formats are those of cosign 2.6: an ECDSA signature over SHA-256 in base64, and a DSSE envelope.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def pre_authentication_encoding(payload: bytes) -> bytes:
    """Return the bytes that a DSSE envelope's signature covers (secure-systems-lab/dsse)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def main() -> None:
    """Sign a file or a statement."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    blob, attestation = commands.add_parser("sign-blob"), commands.add_parser("attest-blob")
    for command in (blob, attestation):
        command.add_argument("--yes", action="store_true", required=True)
        command.add_argument("--key", type=Path, required=True)
        command.add_argument("--output-signature", type=Path, required=True)
        command.add_argument("--tlog-upload", choices=["false"], required=True)
    blob.add_argument("file", type=Path)
    attestation.add_argument("--statement", type=Path, required=True)
    arguments = parser.parse_args()

    key = load_pem_private_key(arguments.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def sign(content: bytes) -> str:
        return base64.b64encode(key.sign(content, ec.ECDSA(SHA256()))).decode()

    if arguments.command == "sign-blob":
        arguments.output_signature.write_text(sign(arguments.file.read_bytes()))
        return
    payload = arguments.statement.read_bytes()
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": sign(pre_authentication_encoding(payload))}],
    }
    arguments.output_signature.write_text(json.dumps(envelope))


if __name__ == "__main__":
    main()
