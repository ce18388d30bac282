"""Share networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from scheduler.cli.commands import Group
from scheduler.cli.options import apply, changing, described, listing, one_of, pairs
from scheduler.cli.references import SHARE_NETWORK, reference
from scheduler.cli.session import Session, pass_session
from worker.model import NetworkKind

_COLUMNS: Final = ("id", "name", "kind", "is_public", "is_default", "project_id")
_F = TypeVar("_F", bound=Callable[..., Any])


def _kind(command: _F) -> _F:
    """The options that make a share network's kind; those of two kinds exclude each other."""
    return apply(
        command,
        click.option("--neutron-net-id", metavar="ID", help="A network in Neutron."),
        click.option("--neutron-subnet-id", metavar="ID", help="A subnet of it."),
        click.option("--nova-network-id", metavar="ID", help="A network in nova-network."),
        click.option(
            "--flat-network-ip-pool",
            multiple=True,
            metavar="CIDR|ADDRESS|FIRST-LAST",
            help="What may be given out; may be given several times.",
        ),
        click.option("--flat-network-subnet", metavar="CIDR", help="The pool's subnet."),
        click.option("--flat-network-gateway", metavar="ADDRESS", help="The subnet's gateway."),
        click.option("--dhcp-endpoint", metavar="HOST[:PORT]", help="A DHCP server."),
        click.option("--managed", is_flag=True, help="The backend makes the network."),
        click.option("--cidr", metavar="CIDR", help="The subnet of a managed network."),
    )


def _given(
    metadata: tuple[str, ...],
    flat_network_ip_pool: tuple[str, ...],
    *,
    managed: bool,
    **options: Any,
) -> dict[str, Any]:
    """Return the payload's fields; options that were not given are None and left out."""
    return {
        **options,
        "metadata": pairs(metadata, "--metadata"),
        "flat_network_ip_pool": list(flat_network_ip_pool) or None,
        "managed": managed or None,
    }


_as_admin = click.option(
    "--admin", is_flag=True, help="As an administrator, who changes public ones too."
)


@click.group(cls=Group)
def share_network() -> None:
    """Where share servers get their addresses from; administrators publish, set the default."""


@share_network.command("create")
@_kind
@click.option(
    "--public", "is_public", is_flag=True, help="For every project to use (an administrator's)."
)
@described
@changing
@pass_session
def create(session: Session, *, is_public: bool, **options: Any) -> None:
    """Create a share network; its options decide its kind."""
    session.change(
        "create_share_network", admin=is_public, is_public=is_public or None, **_given(**options)
    )


@share_network.command("update")
@reference("share_network_id", SHARE_NETWORK)
@_kind
@described
@_as_admin
@changing
@pass_session
def update(session: Session, *, admin: bool, **options: Any) -> None:
    """Change a share network; its addresses only while nothing uses it."""
    session.change("update_share_network", admin=admin, **_given(**options))


@share_network.command("delete")
@reference("share_network_id", SHARE_NETWORK)
@_as_admin
@changing
@pass_session
def delete(session: Session, **options: Any) -> None:
    """Remove a share network that nothing uses."""
    session.change("delete_share_network", **options)


@share_network.command("publish")
@reference("share_network_id", SHARE_NETWORK)
@changing
@pass_session
def publish(session: Session, **options: Any) -> None:
    """Let every project see and use a share network (an administrator's)."""
    session.change("publish_share_network", **options)


@share_network.command("unpublish")
@reference("share_network_id", SHARE_NETWORK)
@changing
@pass_session
def unpublish(session: Session, **options: Any) -> None:
    """Give a share network back to its project (an administrator's)."""
    session.change("unpublish_share_network", **options)


@share_network.command("set-default")
@reference("share_network_id", SHARE_NETWORK)
@changing
@pass_session
def set_default(session: Session, **options: Any) -> None:
    """Make a public one the default of requests that name none (an administrator's)."""
    session.change("set_default_share_network", **options)


@share_network.command("unset-default")
@reference("share_network_id", SHARE_NETWORK)
@changing
@pass_session
def unset_default(session: Session, **options: Any) -> None:
    """Have no default any more for requests that name no share network (an administrator's)."""
    session.change("unset_default_share_network", **options)


@share_network.command("show")
@reference("share_network_id", SHARE_NETWORK)
@pass_session
def show(session: Session, share_network_id: str) -> None:
    """Show a share network."""
    session.print(session.read("show_share_network", share_network_id=share_network_id))


@share_network.command("list")
@click.option("--name", help="Only those of this name.")
@one_of("--kind", NetworkKind, "Only those of this kind.")
@listing
@pass_session
def list_all(session: Session, **filters: Any) -> None:
    """List share networks, oldest first: the project's own and public ones."""
    session.print_list(session.read("list_share_networks", **filters), _COLUMNS)
