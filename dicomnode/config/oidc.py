"""The section [web.oidc] of node.toml: a provider that checks who people are (OpenID Connect)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dicomnode.config.section import Section
from dicomnode.config.web_address import WebAddress, is_encrypted

__all__ = ["OidcConfig", "OidcRolesConfig"]


def _check_issuer(value: str) -> str:
    if not is_encrypted(value):
        raise ValueError("the issuer must be reached by https://, for it decides who logs in")
    return value


class OidcRolesConfig(Section):
    """The provider's roles or groups that give a role of this node; the highest one counts."""

    viewer: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    administrator: tuple[str, ...] = ()


class OidcConfig(Section):
    """The provider, as which client this node is known there, and the claims of the id token that it reads.

    ``prompt``: what the provider asks at each log-in, so that nobody enters as the person before them, "" for nothing
    (OpenID Connect Core 1.0, section 3.1.2.1); ``role_claim``: with points for claims inside others, such as
    ``realm_access.roles``.
    """

    issuer: Annotated[WebAddress, AfterValidator(_check_issuer)]
    client_id: str = Field(min_length=1)
    client_secret_file: Path | None = None
    scope: str = "openid profile"
    prompt: Literal["select_account", "login", ""] = "select_account"
    role_claim: str = Field(default="roles", min_length=1)
    name_claim: str = Field(default="name", min_length=1)
    ca_file: Path | None = None
    roles: OidcRolesConfig

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        if not (self.roles.viewer or self.roles.operator or self.roles.administrator):
            raise ValueError("roles names no role of the provider: nobody could log in")
        if "openid" not in self.scope.split():
            raise ValueError('scope holds "openid", else the provider sends no id token')
        return self
