"""``dicomnode accounts``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicomnode.cli import context

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.states import Role

__all__ = ["app"]

app = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the account.")]
RoleName = Annotated[str, typer.Option("--role", help="viewer, operator or administrator.")]
PasswordFile = Annotated[
    Path | None, typer.Option(help="A file whose one line is the password.", show_default="asked for twice")
]

_COLUMNS = ["name", "display_name", "role", "state", "login", "token", "created_at"]


@app.command("list")
def list_accounts(ctx: typer.Context, as_json: context.AsJson = False) -> None:
    """List the accounts with their roles."""
    from db import accounts
    from db.engine import readers
    from dicomnode.accounts import managing

    with readers(context.engine(context.config(ctx)))() as session:
        facts = [managing.describe(account) for account in accounts.list_accounts(session)]
    context.print_rows(facts, _COLUMNS, as_json=as_json, nothing="no accounts")


@app.command()
def add(
    ctx: typer.Context, name: Name, role: RoleName = "viewer", password_file: PasswordFile = None,
    who: context.Who = "",
) -> None:  # fmt: skip
    """Add an account that logs in with a password."""
    from dicomnode.accounts import managing

    kind, password = _parse_role(role), _read_password(password_file)
    _commit(ctx, who, lambda session, facts: managing.add(session, name, kind, password, **facts))
    print(f"account {name} is added with the role {kind}")
    if not context.config(ctx).web.accounts:
        print("the node asks for accounts with 'accounts = true' under [web], after a restart", file=sys.stderr)


@app.command()
def passwd(ctx: typer.Context, name: Name, password_file: PasswordFile = None, who: context.Who = "") -> None:
    """Set a new password; the account's sessions end."""
    from dicomnode.accounts import managing

    password = _read_password(password_file)
    _commit(ctx, who, lambda session, facts: managing.change_password(session, name, password, **facts))
    print(f"account {name} has a new password")


@app.command()
def role(
    ctx: typer.Context,
    name: Name,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="viewer, operator or administrator.")],
    who: context.Who = "",
) -> None:
    """Give an account another role; its sessions end."""
    from dicomnode.accounts import managing

    kind = _parse_role(role)
    _commit(ctx, who, lambda session, facts: managing.change_role(session, name, kind, **facts))
    print(f"account {name} has the role {kind}")


@app.command()
def disable(ctx: typer.Context, name: Name, who: context.Who = "") -> None:
    """Disable an account; its sessions and its token end."""
    from dicomnode.accounts import managing

    _commit(ctx, who, lambda session, facts: managing.disable(session, name, **facts))
    print(f"account {name} is disabled")


@app.command()
def enable(ctx: typer.Context, name: Name, who: context.Who = "") -> None:
    """Enable a disabled account."""
    from dicomnode.accounts import managing

    _commit(ctx, who, lambda session, facts: managing.enable(session, name, **facts))
    print(f"account {name} is enabled")


@app.command()
def token(
    ctx: typer.Context,
    name: Name,
    revoke: Annotated[bool, typer.Option("--revoke", help="Only end the token that there is.")] = False,
    who: context.Who = "",
) -> None:
    """Make a token for programs in place of the account's former one, and print it: the node cannot show it again."""
    from dicomnode.accounts import managing

    if revoke:
        _commit(ctx, who, lambda session, facts: managing.revoke_token(session, name, **facts))
        print(f"the token of account {name} is revoked")
    else:
        print(_commit(ctx, who, lambda session, facts: managing.make_token(session, name, **facts)))


def _commit(ctx: typer.Context, who: str, change: Callable[[Session, dict[str, Any]], Any]) -> Any:
    from db.engine import sessions
    from dicomnode.deployment import deploying

    facts = {"by": who or deploying.identify_user(), "now": datetime.now(UTC)}
    with sessions(context.engine(context.config(ctx))).begin() as session:
        return change(session, facts)


def _parse_role(name: str) -> Role:
    from db.states import Role

    if name not in list(Role):
        raise typer.BadParameter(f"no role {name!r}; there is: {', '.join(Role)}")
    return Role(name)


def _read_password(file: Path | None) -> str:
    """Return the password of the file, or the one that is typed twice: arguments are visible to other users."""
    if file is None:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    from dicomnode.config.secrets import read_secret

    return read_secret(file, "--password-file")
