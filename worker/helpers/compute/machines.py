"""Shared parts of compute helpers that create machines reached over SSH.

Such a helper boots a machine with :func:`boot_data`, waits with :func:`check_reachable`, returns
:func:`ssh_attributes` and :func:`ssh_shell`. Storage and NFS server are on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import Field

from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind, Retryable
from worker.model import ShareServer
from worker.plugin import Options
from worker.systems.openstack.cloud_init import host_key_pair, user_data
from worker.systems.shell.base import Shell
from worker.systems.shell.ssh import LoginRefused, SshShell

_RETRY: Final = 3.0
_NOT_YET: Final = 65
_WITHOUT: Final = 66

_READY: Final = """
[ -e "$1" ] || exit 65
command -v ganesha.nfsd >/dev/null || exit 66
"""


class SshOptions(Options):
    """Options of compute helpers that reach their servers over SSH."""

    ssh_private_key_file: Path = Field(
        description="The private key, without a passphrase, that share servers are reached with. "
        "Their host keys are made of it, so every worker of the backend has the same."
    )
    ssh_user: str = Field(
        "root",
        pattern=r"^[a-z_][a-z0-9_-]*$",
        description="Who logs in; anybody but root gets root's rights by `sudo`.",
    )
    ssh_port: int = Field(22, ge=1, le=65535, description="Port of sshd on the share servers.")
    ssh_connect_timeout: float = Field(
        15.0, gt=0, description="Seconds within which a connection stands."
    )
    wait_for_ssh: bool = Field(
        True,
        description="Whether a server serves only once it answers over SSH and has its software. "
        "Switch it off only where the share driver gives the server no commands.",
    )
    packages: tuple[str, ...] = Field(
        ("nfs-ganesha", "nfs-ganesha-vfs", "btrfs-progs", "xfsprogs", "procps"),
        description="Packages that a server installs at its first boot; empty where the image "
        "has them.",
    )
    server_directory: str = Field(
        "/var/lib/sharewright",
        pattern=r"^/[A-Za-z0-9._/-]+$",
        description="Directory on the share server for its shares and its NFS server.",
    )


def boot_data(options: SshOptions, share_server_id: str) -> str:
    """Return the user data for the machine's first boot. It contains a private key."""
    return user_data(
        options.ssh_private_key_file,
        share_server_id,
        user=options.ssh_user,
        packages=options.packages,
        ready_file=_ready_file(options),
    )


def ssh_attributes(
    options: SshOptions, share_server_id: str, *, address: str, bind: str | None = None
) -> dict[str, str]:
    """Return the server's attributes, for the shell and for the share driver.

    ``address`` is where workers reach sshd. ``bind`` is the address that the NFS server listens
    on; by default it listens on all addresses of the machine.
    """
    return {
        "ssh_address": address,
        "ssh_port": str(options.ssh_port),
        "ssh_user": options.ssh_user,
        "ssh_host_key": host_key_pair(options.ssh_private_key_file, share_server_id)[1],
        "ganesha": f"{options.server_directory}/ganesha",
        "ganesha_bind": bind or "0.0.0.0",  # noqa: S104 - all of the tenant's own machine
        "storage": options.server_directory,
    }


def ssh_shell(options: SshOptions, share_server: ShareServer) -> Shell:
    """Return a shell on a server that is built, to implement the capability ``Reachable``."""
    if share_server.details is None or "ssh_address" not in share_server.details.attributes:
        raise Fatal(
            f"Share server {share_server.id} is not built, so it takes no commands.",
            object=ObjectKind.SHARE_SERVER.ref(share_server.id),
            code=ErrorCode.COMPUTE_FAILED,
        )
    attributes = share_server.details.attributes
    return _shell(options, share_server.id, attributes, ErrorCode.STORAGE_FAILED)


def check_reachable(
    options: SshOptions,
    share_server_id: str,
    attributes: Mapping[str, str],
    *,
    server_id: str,
) -> None:
    """Check that the machine answers, proves its host key and has its software.

    ``attributes`` are those of :func:`ssh_attributes`, ``server_id`` the machine's external id.
    Raises :class:`~worker.errors.NotReady` while the machine boots, and
    :class:`~worker.errors.Fatal` when another machine answers, or the software is missing after
    the first boot. Changes nothing. Returns at once when ``wait_for_ssh`` is off.
    """
    if not options.wait_for_ssh:
        return
    shell = _shell(options, share_server_id, attributes, ErrorCode.COMPUTE_FAILED)
    try:
        done = shell.run(
            ["sh", "-euc", _READY, "sharewright", _ready_file(options)], timeout=10, check=False
        )
    except (Retryable, LoginRefused) as error:
        raise NotReady(
            f"Share server {share_server_id} does not serve yet: {error.message}",
            retry_after=_RETRY,
            share_server_id=server_id,
        ) from error
    except Fatal as error:
        error.object = ObjectKind.SHARE_SERVER.ref(share_server_id)
        error.share_server_id = server_id
        raise
    if done.exit_code == _NOT_YET:
        raise NotReady(
            f"Share server {share_server_id} answers and still installs its software "
            f"({_ready_file(options)} is missing on it).",
            retry_after=_RETRY,
            share_server_id=server_id,
        )
    if done.exit_code != 0:
        raise Fatal(
            f"Share server {share_server_id} has booted without its NFS server: the packages "
            f"{', '.join(options.packages) or '(none)'} did not bring ganesha.nfsd; correct the "
            f"backend's packages or image (/var/log/cloud-init-output.log there says more).",
            object=ObjectKind.SHARE_SERVER.ref(share_server_id),
            code=ErrorCode.COMPUTE_FAILED,
            share_server_id=server_id,
        )


def _shell(
    options: SshOptions,
    share_server_id: str,
    attributes: Mapping[str, str],
    failure: ErrorCode,
) -> Shell:
    return SshShell(
        name=f"share server {share_server_id}",
        host=attributes["ssh_address"],
        port=int(attributes["ssh_port"]),
        user=attributes["ssh_user"],
        host_key=attributes["ssh_host_key"],
        private_key_file=options.ssh_private_key_file,
        connect_timeout=options.ssh_connect_timeout,
        failure=failure,
    )


def _ready_file(options: SshOptions) -> str:
    return f"{options.server_directory}/ready"
