"""A small provider of OpenID Connect on loopback, which can be told to do wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

__all__ = ["CLIENT_ID", "SECRET", "IdentityProvider", "run_provider"]

CLIENT_ID, SECRET = "dicomnode", "a secret: of the client"


@dataclass
class IdentityProvider:
    """The provider: ``claims`` of whoever logs in, and changes of what it says.

    ``changed``: claims of the id token that are not as they should be; ``signs_with``: "key", "other key", "secret"
    or "nothing".
    """

    now: Callable[[], datetime]
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "4711", "name": "Anna^Beta", "roles": ["readers"]})
    changed: dict[str, Any] = field(default_factory=dict)
    signs_with: str = "key"
    methods: tuple[str, ...] = ("client_secret_basic",)
    metadata: dict[str, Any] = field(default_factory=dict)
    fails_with: int = 0
    seen_methods: list[str] = field(default_factory=list)
    issuer: str = ""
    stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.key, self.other_key = make_keys()
        self._requests: dict[str, dict[str, str]] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint_auth_methods_supported": list(self.methods),
        } | self.metadata

    def authorize(self, query: dict[str, str]) -> str:
        """Return the address that the person is sent back to."""
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert query["client_id"] == CLIENT_ID
        code = f"code-{len(self._requests)}"
        self._requests[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def give_tokens(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """Return the tokens for a code, once; None where the client or its verifier is wrong."""
        request = self._requests.pop(form.get("code", ""), None)
        if request is None or not self._is_client(form, authorization):
            return None
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if challenge.decode() != request["code_challenge"] or form["redirect_uri"] != request["redirect_uri"]:
            return None
        return {"access_token": "x", "token_type": "Bearer", "id_token": self._sign(request["nonce"])}

    def _is_client(self, form: dict[str, str], authorization: str) -> bool:
        kind, _, encoded = authorization.partition(" ")
        if kind == "Basic":
            self.seen_methods.append("client_secret_basic")
            name, _, secret = base64.b64decode(encoded).decode().partition(":")
            return (unquote(name), unquote(secret)) == (CLIENT_ID, SECRET)
        self.seen_methods.append("client_secret_post")
        return (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, SECRET)

    def _sign(self, nonce: str) -> str:
        at = int(self.now().timestamp())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": at, "exp": at + 300, "nonce": nonce}
        claims |= self.claims | self.changed
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.signs_with == "nothing":
            parts = ({"alg": "none", "typ": "JWT"}, claims)
            encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
            return ".".join([*encoded, ""])
        if self.signs_with == "secret":
            return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET.encode() * 2))
        key = self.key if self.signs_with == "key" else self.other_key
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)


@contextmanager
def run_provider(now: Callable[[], datetime]) -> Iterator[IdentityProvider]:
    """Run a provider on a free port of loopback."""
    provider = IdentityProvider(now)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": provider}))
    provider.issuer = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    provider.stop = stop
    try:
        yield provider
    finally:
        stop()


class _Handler(BaseHTTPRequestHandler):
    provider: IdentityProvider

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if self.provider.fails_with:
            self._answer(self.provider.fails_with, {})
        elif parts.path == "/.well-known/openid-configuration":
            self._answer(200, self.provider.describe())
        elif parts.path == "/keys":
            self._answer(200, {"keys": [self.provider.key.as_dict(private=False)]})
        else:
            self._answer(303, {}, self.provider.authorize(_flatten(parts.query)))

    def do_POST(self) -> None:
        form = _flatten(self.rfile.read(int(self.headers["Content-Length"])).decode())
        tokens = self.provider.give_tokens(form, self.headers.get("Authorization", ""))
        self._answer(400 if tokens is None else 200, tokens or {"error": "invalid_grant"})

    def _answer(self, status: int, content: dict[str, Any], location: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@cache
def make_keys() -> tuple[RSAKey, RSAKey]:
    """Return two keys of one name: it takes a while."""
    first, second = (RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}) for _ in range(2))
    return first, second


def _flatten(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
