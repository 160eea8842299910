"""Signatures of bundles: SHA256SUMS, a list of its files as ``sha256sum`` writes it, and the list's signature.

``SHA256SUMS.sig`` is the Ed25519 signature of the list, 64 octets, as ``openssl pkeyutl -sign -rawin`` writes it. A
list must be right and complete where it exists; a signature must be by a key that the site trusts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from model_zoo.bundle import BundleError, weights_digest

__all__ = ["LIST", "SIGNATURE", "check_signature", "read_public_key"]

LIST = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
_LONGEST_LIST = 2_000_000
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")


def check_signature(folder: Path, trusted: Sequence[Path], *, required: bool) -> str:
    """Return the name of the key that signed the bundle, empty for none. Raises BundleError with the reason."""
    listed, signature = folder / LIST, folder / SIGNATURE
    for name in (LIST, SIGNATURE):
        if elsewhere := [path for path in folder.rglob(name) if path.parent != folder]:
            raise BundleError(f"{elsewhere[0].relative_to(folder)}: {name} belongs beside configs, not in a folder")
    if required and not (listed.is_file() and signature.is_file()):
        raise BundleError(f"the bundle is not signed ({LIST} and {SIGNATURE}), and [models] require_signature is set")
    if listed.is_file():
        _check_list(folder, listed)
    if not signature.is_file() or not (trusted or required):
        return ""
    if not listed.is_file():
        raise BundleError(f"{SIGNATURE} signs {LIST}, which is not there")
    content, octets = listed.read_bytes(), signature.read_bytes()
    for path in trusted:
        if _is_signed_by(read_public_key(path), content, octets):
            return path.name
    raise BundleError(f"the signature is by none of the {len(trusted)} keys in [models] trusted_keys")


def _check_list(folder: Path, listed: Path) -> None:
    if listed.stat().st_size > _LONGEST_LIST:
        raise BundleError(f"{LIST} has more than {_LONGEST_LIST // 1_000_000} MB: no list of a bundle's files has")
    lines = listed.read_text(errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    listed_digests = {match[2]: match[1] for match in matches if match}
    if len(listed_digests) != len(lines):
        raise BundleError(f"{LIST} has lines that are no 'digest  file', or one file twice")
    present = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path not in (listed, folder / SIGNATURE)
    }
    if missing := sorted(listed_digests.keys() - present):
        raise BundleError(f"{LIST} names {missing[0]}, which is not there")
    if unknown := sorted(present - listed_digests.keys()):
        raise BundleError(f"{unknown[0]} is not in {LIST}")
    for name, digest in listed_digests.items():
        if weights_digest(folder / name) != digest:
            raise BundleError(f"{name} differs from its digest in {LIST}: it was changed after that was written")


def _is_signed_by(key: Ed25519PublicKey, content: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key in a file that the site trusts. Raises BundleError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise BundleError(f"[models] trusted_keys: {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"[models] trusted_keys: {path.name} holds no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"[models] trusted_keys: {path.name} is no Ed25519 key: 'openssl genpkey' makes one")
    return key
