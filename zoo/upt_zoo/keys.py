"""Keys on the curve P-256, in PEM files, and what they say of signatures.

It knows no stores and no remotes. What a signature is stands in ``upt_zoo.signatures``; the
arithmetic is that of the library ``cryptography``.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from upt_zoo.errors import InvalidInput, Untrusted
from upt_zoo.signatures import Signature, payload_of

_MAX_KEY_BYTES = 64 * 1024
_ECDSA = ec.ECDSA(SHA256())
_EXPECTED = "expected a PEM file with {} on the curve P-256"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A key that signatures are checked with; ``label`` is how its owner calls it."""

    label: str
    _key: ec.EllipticCurvePublicKey

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file.

        Raises:
            InvalidInput: it cannot be read, or is another kind of key.
        """
        try:
            key = load_pem_public_key(_read(path))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(f"{path}: {_EXPECTED.format('a public key')}") from error
        if not (isinstance(key, ec.EllipticCurvePublicKey) and _is_p256(key)):
            raise InvalidInput(f"{path}: {_EXPECTED.format('a public key')}, got another kind")
        return cls(label=path.name, _key=key)

    @property
    def id(self) -> str:
        """``sha256:`` and the sha256 of the key's SubjectPublicKeyInfo in DER."""
        return _id(self._key)

    def has_signed(self, signature: Signature) -> bool:
        """Tell whether this key made the signature."""
        try:
            self._key.verify(signature.signature, signature.payload, _ECDSA)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKey:
    """A key that signs."""

    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def read(cls, path: Path, ask: Callable[[], str]) -> Self:
        """Read a PEM file; ``ask`` is called for the password if there is one.

        Raises:
            InvalidInput: it cannot be read, is another kind of key, or has another password.
        """
        data = _read(path)
        try:
            try:
                key = load_pem_private_key(data, password=None)
            except TypeError:  # the library's way to say that there is a password
                key = load_pem_private_key(data, password=ask().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(
                f"{path}: {_EXPECTED.format('a private key')}, and its password if it has one"
            ) from error
        if not (isinstance(key, ec.EllipticCurvePrivateKey) and _is_p256(key)):
            raise InvalidInput(f"{path}: {_EXPECTED.format('a private key')}, got another kind")
        return cls(_key=key)

    @property
    def id(self) -> str:
        """The id of its public key."""
        return _id(self._key.public_key())

    def sign(self, name: str, digest: str) -> Signature:
        """Sign the adapter ``name`` whose manifest has that digest."""
        payload = payload_of(name, digest, self.id)
        return Signature(payload=payload, signature=self._key.sign(payload, _ECDSA))


def signer_of(
    reference: str, digest: str, signatures: Sequence[Signature], keys: Sequence[PublicKey]
) -> PublicKey:
    """Return the first of the keys that has signed a manifest; ``reference`` is for the error.

    Raises:
        Untrusted: there is no signature, or none of that manifest by one of the keys.
    """
    signers = [(each, key) for key in keys for each in signatures if key.has_signed(each)]
    for signature, key in signers:
        if signature.digest == digest:
            return key
    wanted = f"expected a signature of {digest} by {' or '.join(key.label for key in keys)}"
    if signers:
        other, key = signers[0]
        raise Untrusted(f"{reference}: {wanted}; what {key.label} has signed is {other.digest}")
    if signatures:
        others = ", ".join(sorted({each.key_id or "an unnamed key" for each in signatures}))
        raise Untrusted(f"{reference}: {wanted}, got only signatures that say to be by {others}")
    raise Untrusted(f"{reference}: {wanted}, got none; `upt-zoo sign` and `upt-zoo push` add one")


def _read(path: Path) -> bytes:
    """Read a key, which may come through a pipe."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidInput(f"{path}: the key cannot be read: {error.strerror}") from error


def _is_p256(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> bool:
    return isinstance(key.curve, ec.SECP256R1)


def _id(key: ec.EllipticCurvePublicKey) -> str:
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(info).hexdigest()}"
