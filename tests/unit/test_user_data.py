"""What a service machine is told at its first boot, read as cloud-init reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from worker.errors import ErrorCode, Fatal
from worker.systems.openstack.cloud_init import host_key_pair, user_data

READY = "/var/lib/sharewright/ready"


@pytest.fixture(params=["ssh-ed25519", "ssh-rsa"])
def key_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "key"
    asyncssh.generate_private_key(request.param).write_private_key(file)
    return file


def parsed(key_file: Path, *, user: str = "root", packages: tuple[str, ...] = ()) -> Any:
    text = user_data(key_file, "server-1", user=user, packages=packages, ready_file=READY)
    assert text.startswith("#cloud-config\n")
    return yaml.safe_load(text)


def test_a_server_has_one_host_key_for_good_and_no_other_has_it(key_file: Path) -> None:
    public = host_key_pair(key_file, "server-1")[1]
    assert host_key_pair(key_file, "server-1")[1] == public
    assert host_key_pair(key_file, "server-2")[1] != public
    pem = key_file.with_name("pem")
    asyncssh.read_private_key(key_file).write_private_key(pem, "pkcs8-pem")
    assert host_key_pair(pem, "server-1")[1] == public, "the same key in another format"
    other = key_file.with_name("other")
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    assert host_key_pair(other, "server-1")[1] != public


def test_the_machine_gets_that_host_key_and_no_other(key_file: Path) -> None:
    document = parsed(key_file)
    keys = document["ssh_keys"]
    assert set(keys) == {"ed25519_private", "ed25519_public"}
    installed = asyncssh.import_private_key(keys["ed25519_private"])
    assert installed.get_algorithm() == "ssh-ed25519"
    assert installed.public_data == asyncssh.import_public_key(keys["ed25519_public"]).public_data
    assert keys["ed25519_public"] == host_key_pair(key_file, "server-1")[1]
    assert document["ssh_deletekeys"] is True, "an image's own host keys go"


@pytest.mark.parametrize("user", ["root", "sharewright"])
def test_only_our_key_lets_anybody_in(key_file: Path, user: str) -> None:
    document = parsed(key_file, user=user)
    ours = asyncssh.read_private_key(key_file)
    (login,) = document["users"]
    (authorized,) = login["ssh_authorized_keys"]
    assert login["name"] == user
    assert asyncssh.import_public_key(authorized).public_data == ours.public_data
    assert document["ssh_pwauth"] is False
    assert document["disable_root"] is (user != "root")
    assert ("sudo" in login) is (user != "root")
    assert login.get("lock_passwd", True) is True
    host_key = document["ssh_keys"].pop("ed25519_private")
    assert asyncssh.import_private_key(host_key).public_data != ours.public_data
    assert "PRIVATE" not in str(document), "the backend's own key stays here"


def test_the_software_comes_before_the_mark_and_its_own_daemon_never_starts(key_file: Path) -> None:
    document = parsed(key_file, packages=("nfs-ganesha", "xfsprogs"))
    assert document["packages"] == ["nfs-ganesha", "xfsprogs"]
    assert document["package_update"] is True
    (mask,) = document["bootcmd"]
    assert mask[:2] == ["systemctl", "mask"]
    assert "nfs-ganesha.service" in mask
    assert document["runcmd"][-1] == ["touch", READY]


def test_a_key_that_cannot_be_used_is_said_without_its_content(tmp_path: Path) -> None:
    locked, absent = tmp_path / "locked", tmp_path / "absent"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(locked, "pkcs8-pem", "word")
    garbage = tmp_path / "garbage"
    garbage.write_text("hidden")
    for file in (locked, absent, garbage):
        with pytest.raises(Fatal, match=str(file)) as caught:
            host_key_pair(file, "server-1")
        assert caught.value.code is ErrorCode.CONFIGURATION
        assert "hidden" not in caught.value.message
