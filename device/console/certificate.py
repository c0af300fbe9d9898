"""A self-signed TLS certificate, made once where the settings name none; browsers ask about it the first time."""

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from firmware_config.files import PRIVATE, write_atomically

DAYS: Final = 3650


def make_certificate(certificate: Path, key: Path, names: list[str]) -> None:
    """Write a certificate for these names and addresses, and its private key; FileError when that fails."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RespSAM console")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        # a box without a clock battery may start in the past
        .not_valid_before(now - timedelta(days=DAYS))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_alternative_names(names), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(key, secret, PRIVATE)
    write_atomically(certificate, made.public_bytes(pem))


def _alternative_names(names: list[str]) -> Any:
    """The certificate's extension for these names and addresses."""
    from cryptography import x509

    def general(name: str) -> Any:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    return x509.SubjectAlternativeName([general(name) for name in names])
