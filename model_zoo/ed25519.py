"""Ed25519 signatures, checked only (RFC 8032, 5.1.7): all that enters is public, so the time it takes tells nothing.

Keys are files as ``openssl pkey -pubout`` writes them (RFC 8410). Nothing here signs: ``openssl pkeyutl -sign`` does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

__all__ = ["is_signed_by", "public_key"]

p = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # order of the base point
d = -121665 * pow(121666, -1, p) % p
_ROOT_OF_MINUS_ONE = pow(2, (p - 1) // 4, p)
_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, 4: SubjectPublicKeyInfo of id-Ed25519, 32 octets follow
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", re.DOTALL)

Point = tuple[int, int, int, int]
"""(X, Y, Z, T): x = X/Z, y = Y/Z, x y = T/Z (RFC 8032, 5.1.4)."""


def public_key(pem: str) -> bytes:
    """The 32 octets of an Ed25519 key in PEM. Raises ValueError for any other."""
    found = _PEM.search(pem)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if len(der) != 44 or not der.startswith(_PREFIX):
        raise ValueError("no Ed25519 public key in PEM: 'openssl pkey -pubout' writes one")
    return der[len(_PREFIX) :]


def is_signed_by(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether [S]B = R + [k]A holds, with R and S of the signature (64 octets) and A the key (32 octets)."""
    if len(signature) != 64 or len(key) != 32:
        return False
    R, A = _decoded(signature[:32]), _decoded(key)
    S = int.from_bytes(signature[32:], "little")
    if R is None or A is None or S >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    return _equal(_times(S, _BASE), _sum(R, _times(k, A)))


def _decoded(octets: bytes) -> Point | None:
    """RFC 8032, 5.1.3."""
    y = int.from_bytes(octets, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    u, v = (y * y - 1) % p, (d * y * y + 1) % p
    x = u * pow(v, 3, p) * pow(u * pow(v, 7, p), (p - 5) // 8, p) % p
    if (v * x * x + u) % p == 0:
        x = x * _ROOT_OF_MINUS_ONE % p
    if y >= p or (v * x * x - u) % p or (x == 0 and sign):
        return None
    x = p - x if x & 1 != sign else x
    return x, y, 1, x * y % p


def _sum(P: Point, Q: Point) -> Point:
    """RFC 8032, 5.1.4."""
    A = (P[1] - P[0]) * (Q[1] - Q[0]) % p
    B = (P[1] + P[0]) * (Q[1] + Q[0]) % p
    C = 2 * d * P[3] * Q[3] % p
    D = 2 * P[2] * Q[2] % p
    E, F, G, H = B - A, D - C, D + C, B + A
    return E * F % p, G * H % p, F * G % p, E * H % p


def _times(n: int, P: Point) -> Point:
    total = (0, 1, 1, 0)
    while n:
        total = _sum(total, P) if n & 1 else total
        P, n = _sum(P, P), n >> 1
    return total


def _equal(P: Point, Q: Point) -> bool:
    return (P[0] * Q[2] - Q[0] * P[2]) % p == 0 and (P[1] * Q[2] - Q[1] * P[2]) % p == 0


def _base() -> Point:
    """y = 4/5 with the even x (RFC 8032, 5.1)."""
    found = _decoded((4 * pow(5, -1, p) % p).to_bytes(32, "little"))
    if found is None:
        raise ArithmeticError("the base point is not on the curve")
    return found


_BASE = _base()
