"""Security services: directories that share servers authenticate users against."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from scheduler.cli.commands import Group
from scheduler.cli.options import apply, changing, listing
from scheduler.cli.references import SECURITY_SERVICE, SHARE_NETWORK, reference, referring
from scheduler.cli.session import Session, pass_session

_COLUMNS: Final = ("id", "name", "type", "domain", "server", "password_key_id")
_TYPES: Final = click.Choice(["active_directory", "ldap", "kerberos"])
_STANDARD_INPUT: Final = "-"
_F = TypeVar("_F", bound=Callable[..., Any])


def _contents(command: _F) -> _F:
    """Add the options that describe a directory to share servers."""
    return apply(
        command,
        click.option("--name", help="A name, need not be unique."),
        click.option("--description", help="A text."),
        click.option("--dns-ip", metavar="ADDRESS[,ADDRESS]", help="DNS servers that know it."),
        click.option("--server", metavar="HOST[,HOST]", help="Its servers."),
        click.option("--domain", metavar="NAME", help="The DNS domain, of Kerberos the realm."),
        click.option("--ou", metavar="OU", help="The organizational unit to join."),
        click.option("--user", metavar="USER", help="Who share servers log in as."),
        click.option(
            "--password-file",
            metavar="FILE|-",
            help="Holds the user's password; - is standard input. It is sealed before it is sent.",
        ),
    )


def _sealed(session: Session, password_file: str | None) -> dict[str, str] | None:
    """The password of a file, or of the standard input, as a payload takes it."""
    if password_file is None:
        return None
    if password_file != _STANDARD_INPUT:
        try:
            password = Path(password_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise click.BadParameter(f"{reason}.", param_hint="--password-file") from None
    elif sys.stdin.isatty():
        password = getpass.getpass("Password: ")
    else:
        password = sys.stdin.read()
    password = password.removesuffix("\n").removesuffix("\r")
    if not password:
        raise click.BadParameter("there is no password in it.", param_hint="--password-file")
    return session.seal(password)


@click.group(cls=Group)
def security_service() -> None:
    """What share servers log in to: create, add to share networks, remove, delete."""


@security_service.command("create")
@click.option("--type", "type", type=_TYPES, required=True, help="What it is.")
@_contents
@changing
@pass_session
def create(session: Session, *, password_file: str | None, **options: Any) -> None:
    """Create a security service."""
    session.change("create_security_service", password=_sealed(session, password_file), **options)


@security_service.command("update")
@reference("security_service_id", SECURITY_SERVICE)
@_contents
@changing
@pass_session
def update(session: Session, *, password_file: str | None, **options: Any) -> None:
    """Change what is given; more than name and description while no share server has it."""
    session.change("update_security_service", password=_sealed(session, password_file), **options)


@security_service.command("delete")
@reference("security_service_id", SECURITY_SERVICE)
@changing
@pass_session
def delete(session: Session, **options: Any) -> None:
    """Remove a security service that is on no share network."""
    session.change("delete_security_service", **options)


_on_network = reference("share_network_id", SHARE_NETWORK)
_as_admin = click.option(
    "--admin", is_flag=True, help="As an administrator, who changes public ones too."
)


@security_service.command("add")
@reference("security_service_id", SECURITY_SERVICE)
@_on_network
@_as_admin
@changing
@pass_session
def add(session: Session, **options: Any) -> None:
    """Let the share servers that a share network will get use it: one of each type."""
    session.change("add_security_service", **options)


@security_service.command("remove")
@reference("security_service_id", SECURITY_SERVICE)
@_on_network
@_as_admin
@changing
@pass_session
def remove(session: Session, **options: Any) -> None:
    """Let the share servers that a share network will get do without it."""
    session.change("remove_security_service", **options)


@security_service.command("show")
@reference("security_service_id", SECURITY_SERVICE)
@pass_session
def show(session: Session, security_service_id: str) -> None:
    """Show a security service; the password is never shown, only with which key it is sealed."""
    session.print(session.read("show_security_service", security_service_id=security_service_id))


@security_service.command("list")
@click.option("--name", help="Only those of this name.")
@click.option("--type", "type", type=_TYPES, help="Only those of this type.")
@referring("--share-network", "share_network_id", SHARE_NETWORK, "Only those on this network.")
@listing
@pass_session
def list_security_services(session: Session, **filters: Any) -> None:
    """List security services, oldest first."""
    session.print_list(session.read("list_security_services", **filters), _COLUMNS)
