"""Keys of tests, as files."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from upt_zoo.keys import PrivateKey, PublicKey
from upt_zoo.signatures import Signature


class Keys:
    """A key pair in two PEM files."""

    def __init__(self, folder: Path, name: str, *, password: str | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pem"
        encryption: KeySerializationEncryption = (
            BestAvailableEncryption(password.encode()) if password else NoEncryption()
        )
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        self.public.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    @property
    def id(self) -> str:
        return PublicKey.read(self.public).id

    def sign(self, name: str, digest: str) -> Signature:
        return PrivateKey.read(self.private, no_password).sign(name, digest)


def no_password() -> str:
    raise AssertionError
