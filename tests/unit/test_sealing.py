"""Sealing: who opens what, and what a directory of keys says when it is not as it should be."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from nacl.public import PublicKey, SealedBox

from tests.support.secret import PASSWORD, leaks
from worker.errors import ConfigurationError, InvalidRequest
from worker.sealing import LONGEST, OVERHEAD, Keys, SealingKey, seal


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "made" / "secrets")
    made.generate()
    return made


def current(keys: Keys) -> SealingKey:
    found = keys.current()
    assert found is not None
    return found


def test_what_is_sealed_is_opened_for_its_project_only(keys: Keys) -> None:
    key = current(keys)
    sealed = seal(key, PASSWORD, "p1")
    assert sealed != seal(key, PASSWORD, "p1"), "two of the same look different"
    assert leaks("sealed", sealed) == []
    assert keys.open(key.id, sealed, "p1") == PASSWORD
    with pytest.raises(ValueError, match="not sealed for this project"):
        keys.open(key.id, sealed, "p2")


def test_what_nobody_takes_is_not_sealed(keys: Keys) -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        seal(current(keys), "x" * 2048, "p1")
    assert len(seal(current(keys), "x" * 1024, "p1")) <= LONGEST


def test_anybody_seals_without_our_package(keys: Keys) -> None:
    """As docs/producer.md shows it."""
    key = current(keys)
    document = json.dumps({"project_id": "p1", "secret": PASSWORD}).encode()
    assert keys.open(key.id, SealedBox(PublicKey(key.public)).encrypt(document), "p1") == PASSWORD


@pytest.mark.parametrize(
    "document", [b"hunter2", b"[]", b'"x"', b"{}", b'{"project_id": "p1", "secret": 1}', b"\xff"]
)
def test_what_is_no_document_is_not_opened(keys: Keys, document: bytes) -> None:
    key = current(keys)
    sealed = SealedBox(PublicKey(key.public)).encrypt(document)
    assert len(sealed) == len(document) + OVERHEAD
    with pytest.raises(ValueError, match=r"sealed|secret") as caught:
        keys.open(key.id, sealed, "p1")
    assert "hunter2" not in str(caught.value)


def test_an_older_key_still_opens_and_another_does_not(keys: Keys) -> None:
    old = current(keys)
    sealed = seal(old, PASSWORD, "p1")
    new = keys.generate()
    assert current(keys) == new != old
    assert set(keys.ids()) == {old.id, new.id}
    assert keys.open(old.id, sealed, "p1") == PASSWORD
    with pytest.raises(ValueError, match="does not open"):
        keys.open(new.id, sealed, "p1")


def test_only_the_owner_reads_private_keys(keys: Keys) -> None:
    path = keys.directory / f"{current(keys).id}.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700
    path.chmod(0o604)
    with pytest.raises(ConfigurationError, match="can be read by everybody"):
        keys.private(current(keys).id)


def test_without_a_directory_there_is_no_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "nowhere")
    assert keys.current() is None
    assert keys.ids() == []
    assert not keys.has("0" * 16)


@pytest.mark.parametrize("half", ["key", "pub"])
@pytest.mark.parametrize("content", [None, "", "!", "AAAA", base64.b64encode(b"x" * 32).decode()])
def test_a_broken_file_is_a_sentence_with_the_keys_id(
    keys: Keys, half: str, content: str | None
) -> None:
    key_id = current(keys).id
    path = keys.directory / f"{key_id}.{half}"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        keys.private(key_id) if half == "key" else keys.current()
    assert key_id in caught.value.message
    assert caught.value.message.endswith(".")
    if content:
        assert content not in caught.value.message


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="No key can be written"):
        Keys(tmp_path / "file").generate()


def test_a_key_that_is_refused_still_opens(keys: Keys) -> None:
    old = current(keys)
    sealed = seal(old, PASSWORD, "p1")
    keys.generate()
    keys.refuse(old.id)
    keys.refuse(old.id)
    assert not keys.has(old.id)
    assert keys.open(old.id, sealed, "p1") == PASSWORD
    keys.accept(old.id)
    keys.accept(old.id)
    assert keys.has(old.id)
    keys.refuse(old.id)
    keys.remove(old.id)
    assert old.id not in keys.ids()
    assert not list(keys.directory.glob(f"*{old.id}*"))
