"""Log-in through a provider: OpenID Connect Core 1.0, authorization code with PKCE (RFC 7636), by authlib.

Keys are read at each log-in, so that a provider may change them at any time; metadata count for five minutes. Nothing
here is asked while a person works: a provider that is down ends no session.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from db.states import Role
from dicomnode.accounts import passwords
from dicomnode.config.oidc import OidcConfig
from dicomnode.config.secrets import read_secret
from dicomnode.config.web_address import is_encrypted
from dicomnode.errors import LoginRefused, ProviderUnreachable

__all__ = ["Identity", "PendingLogin", "Provider"]

_TIMEOUT_S = 10.0
_LEEWAY_S = 60
_METADATA_COUNT = timedelta(minutes=5)
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that the provider alone has: neither none nor shared secrets."""
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_OTHER_CHARACTERS = re.compile(r"[^\w .'-]+")
_SUBJECT = re.compile(r"[!-~]{1,255}")  # OpenID Connect Core 1.0, section 2: at most 255 ASCII characters


@dataclass(frozen=True)
class PendingLogin:
    """A log-in that was sent to the provider: ``address`` there, and what its answer is checked with."""

    address: str
    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True)
class Identity:
    """A person as the provider names them, with the role that this node gives."""

    subject: str
    display_name: str
    role: Role


class Provider:
    """The provider of [web.oidc]; ``return_address``: where it sends people back to."""

    def __init__(self, config: OidcConfig, return_address: str, now: Callable[[], datetime]) -> None:
        self.issuer, self._config, self._return_address, self._now = config.issuer, config, return_address, now
        self._secret = read_secret(config.client_secret_file, "web.oidc.client_secret_file") if (
            config.client_secret_file
        ) else None  # fmt: skip
        self._known: tuple[Mapping[str, Any], datetime] | None = None

    def begin(self) -> PendingLogin:
        """Begin a log-in. Raises ProviderUnreachable."""
        state, nonce, verifier = (passwords.make_credential() for _ in range(3))
        with self._open_client({}) as client:
            metadata = self._read_metadata(client)
            prompt = {"prompt": self._config.prompt} if self._config.prompt else {}
            address, _ = client.create_authorization_url(
                metadata["authorization_endpoint"], state=state, code_verifier=verifier, nonce=nonce, **prompt
            )
        return PendingLogin(address, state, nonce, verifier)

    def finish(self, pending: PendingLogin, answer: Mapping[str, str]) -> Identity:
        """Return who logged in, from the provider's answer. Raises LoginRefused, ProviderUnreachable."""
        if not hmac.compare_digest(answer.get("state", "").encode(), pending.state.encode()):
            raise LoginRefused("the log-in was refused: its state is not the one of this browser")
        if answer.get("iss", self.issuer) != self.issuer:  # RFC 9207
            raise LoginRefused("the log-in was refused: the answer is of another provider")
        if error := answer.get("error", ""):
            raise LoginRefused(f"the provider refused the log-in: {_shorten(error)}")
        claims = self._fetch_claims(pending, answer.get("code", ""))
        return self._identify(claims)

    def _fetch_claims(self, pending: PendingLogin, code: str) -> Mapping[str, Any]:
        with self._open_client({}) as client:
            metadata = self._read_metadata(client)
        with self._open_client(metadata) as client:
            try:
                tokens = client.fetch_token(
                    metadata["token_endpoint"], code=code, code_verifier=pending.verifier, allow_redirects=False,
                    grant_type="authorization_code",
                )  # fmt: skip
            except AuthlibBaseError as error:
                raise LoginRefused(f"the provider refused the code: {_shorten(error.error or '')}") from None
            except (OSError, ValueError) as error:
                raise self._describe_silence(error) from None
            keys = self._get_json(client, metadata["jwks_uri"])
        return self._check_token(str(tokens.get("id_token", "")), keys, pending.nonce)

    def _check_token(self, token: str, keys: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        """Return the claims of an id token (OpenID Connect Core 1.0, section 3.1.3.7)."""
        options: Any = {
            "iss": {"essential": True, "value": self.issuer},
            "aud": {"essential": True, "value": self._config.client_id},
        }
        params = {"nonce": nonce, "client_id": self._config.client_id}
        try:
            decoded = jwt.decode(token, KeySet.import_key_set(dict(keys)), algorithms=list(_ALGORITHMS))  # type: ignore[arg-type]
            claims = CodeIDToken(decoded.claims, decoded.header, options, params)
            claims.validate(now=int(self._now().timestamp()), leeway=_LEEWAY_S)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            fault = str(getattr(error, "error", "")) or type(error).__name__
            detail = str(getattr(error, "claim", "") or getattr(error, "description", ""))
            raise LoginRefused(f"the log-in was refused: id token: {_shorten(f'{fault} {detail}')}") from None
        return dict(claims)

    def _identify(self, claims: Mapping[str, Any]) -> Identity:
        subject = str(claims["sub"])
        if not _SUBJECT.fullmatch(subject):
            raise LoginRefused("the log-in was refused: sub is no text of 1 to 255 ASCII characters")
        display_name = _to_name(str(_find_claim(claims, self._config.name_claim) or "")) or _to_name(subject)
        names = _find_claim(claims, self._config.role_claim)
        listed = list(names) if isinstance(names, list | dict) else [names]
        found = {each for each in listed if isinstance(each, str)}
        for role in reversed(Role):
            if found & set(getattr(self._config.roles, role)):
                return Identity(subject, display_name, role)
        where = f"{self._config.role_claim!r} of the provider"
        raise LoginRefused(f"{display_name} has no role on this node: {where} names none of [web.oidc.roles]")

    def _open_client(self, metadata: Mapping[str, Any]) -> Any:
        """Return a client; it authenticates with the method of the metadata, by default in the header."""
        method = "none" if self._secret is None else "client_secret_basic"
        if self._secret is not None and method not in metadata.get("token_endpoint_auth_methods_supported", [method]):
            method = "client_secret_post"
        client = OAuth2Session(
            self._config.client_id, self._secret, token_endpoint_auth_method=method, scope=self._config.scope,
            redirect_uri=self._return_address, code_challenge_method="S256", default_timeout=_TIMEOUT_S,
        )  # fmt: skip
        client.trust_env = False
        client.verify = str(self._config.ca_file) if self._config.ca_file else True
        return client

    def _read_metadata(self, client: Any) -> Mapping[str, Any]:
        """Return the provider's metadata (OpenID Connect Discovery 1.0)."""
        if self._known is not None and self._now() < self._known[1]:
            return self._known[0]
        metadata = self._get_json(client, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        if metadata.get("issuer") != self.issuer:
            raise ProviderUnreachable(f"the provider says that it is another issuer than {self.issuer}")
        if not all(is_encrypted(str(metadata.get(name, ""))) for name in _ENDPOINTS):
            raise ProviderUnreachable("the provider names no addresses with https:// for logging in")
        self._known = metadata, self._now() + _METADATA_COUNT
        return metadata

    def _get_json(self, client: Any, address: str) -> Mapping[str, Any]:
        try:
            answer = client.request("GET", address, withhold_token=True, allow_redirects=False)
            if answer.status_code != 200:
                raise ProviderUnreachable(f"the provider {self.issuer} does not answer (status {answer.status_code})")
            content = answer.json()
        except (OSError, ValueError) as error:
            raise self._describe_silence(error) from None
        if not isinstance(content, dict):
            raise ProviderUnreachable(f"the provider {self.issuer} answers with what is no JSON object")
        return content

    def _describe_silence(self, error: Exception) -> ProviderUnreachable:
        return ProviderUnreachable(
            f"the provider {self.issuer} does not answer ({type(error).__name__}): nobody can log in through it now"
        )


def _find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by the names of those that it is in, with points between them."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _to_name(text: str) -> str:
    """Return a name for forms and records: without the separators of DICOM person names, as initials are."""
    return " ".join(_OTHER_CHARACTERS.sub(" ", text).split()).strip(" .'-_")[:40].strip()


def _shorten(text: str) -> str:
    """Return what another system wrote, on one line and not without end."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:120]
