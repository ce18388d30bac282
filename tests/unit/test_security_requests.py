"""What requests about security services may say; a password in clear is repeated nowhere."""

from __future__ import annotations

import base64
import logging
from typing import Any

import pytest

from scheduler.requests.base import parse
from scheduler.requests.security_options import check_needs
from scheduler.requests.verbs import VERBS
from tests.support.secret import AD, PASSWORD, forms
from worker.config import LogSettings
from worker.errors import InvalidRequest
from worker.logs import set_up_logging
from worker.model import SecurityServiceType


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("dns_ip", "10.0.0.1, 10.0.0.2", "10.0.0.1,10.0.0.2"),
        ("dns_ip", "FD00:0::1", "fd00::1"),
        ("server", "dc1.corp.example, fd00::0:7", "dc1.corp.example,fd00::7"),
        ("server", "LDAP", "LDAP"),
        ("domain", "CORP.EXAMPLE", "CORP.EXAMPLE"),
        ("ou", "OU=shares,DC=corp", "OU=shares,DC=corp"),
    ],
)
def test_values_have_one_spelling(field: str, given: str, kept: str) -> None:
    asked = {"version": 1, "context": {"project_id": "p1"}, "type": "ldap", field: given}
    request: Any = parse(VERBS["create_security_service"], asked)
    assert getattr(request, field) == kept


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("dns_ip", bad) for bad in ("", "dns.example", "10.0.0.256", "7", "10.0.0.1,", "a b")),
        *(("dns_ip", bad) for bad in ("127.0.0.1", "224.0.0.1", "0.0.0.0", "10.0.0.0/24", 7)),
        *(("server", bad) for bad in ("", "a b", "-a", "10.0.0.256", "a,,b", "127.0.0.1", "a:389")),
        *(("domain", bad) for bad in ("", "a..b", ".a", "a.", "a_b", "x" * 64, "a/b", "a;b")),
        *(("ou", bad) for bad in ("", "a\nb", "x" * 256)),
        *(("user", bad) for bad in ("", "a\0b", "a\rb")),
        *(("type", bad) for bad in ("nis", "LDAP", "", None)),
    ],
)
@pytest.mark.parametrize("verb", ["create_security_service", "update_security_service"])
def test_values_that_are_none(verb: str, field: str, bad: Any) -> None:
    own = {"type": "ldap"} if verb.startswith("create") else {"security_service_id": "y"}
    asked = {"version": 1, "context": {"project_id": "p1"}, **own, field: bad}
    with pytest.raises(InvalidRequest) as caught:
        parse(VERBS[verb], asked)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("active_directory", {"domain": "d", "user": "u"}, "dns_ip"),
        ("active_directory", {"dns_ip": "10.0.0.1", "user": "u"}, "domain"),
        ("active_directory", {"dns_ip": "10.0.0.1", "domain": "d"}, "user"),
        ("active_directory", {"dns_ip": "10.0.0.1", "domain": "d", "user": "u"}, "password"),
        ("kerberos", {"dns_ip": "10.0.0.1", "server": "k"}, "domain"),
        ("kerberos", {"dns_ip": "10.0.0.1", "domain": "d"}, "server"),
        ("ldap", {"dns_ip": "10.0.0.1"}, "server"),
    ],
)
def test_each_type_needs_its_own(kind: str, given: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_needs(SecurityServiceType(kind), given)
    assert caught.value.field == field
    assert field in caught.value.message


IN_CLEAR: list[Any] = [
    PASSWORD,
    {"clear": PASSWORD},
    {PASSWORD: "x"},
    [PASSWORD],
    {"key_id": PASSWORD, "sealed": "x"},
    {"key_id": "0" * 16, "sealed": PASSWORD},
    {"key_id": "0" * 16, "sealed": base64.b64encode(PASSWORD.encode()).decode()},
    {"key_id": "0" * 16, "sealed": "A" * 8192},
    {"key_id": "0" * 16, "sealed": "A" * 128, PASSWORD: ""},
    {"key_id": "0" * 16},
    7,
]


@pytest.mark.parametrize("password", IN_CLEAR, ids=range(len(IN_CLEAR)))
def test_a_password_in_clear_is_refused_and_not_repeated(password: Any) -> None:
    asked = {"version": 1, "context": {"project_id": "p1"}, **AD, "password": password}
    with pytest.raises(InvalidRequest) as caught:
        parse(VERBS["create_security_service"], asked)
    error = caught.value
    assert error.field == "password"
    assert "show_sealing_key" in error.message
    told = repr((error.to_json(), error.args, error.__context__ if error.__cause__ else ""))
    assert not any(needle.decode(errors="ignore") in told for needle in forms().values())


def test_no_level_of_the_log_shows_messages() -> None:
    root, pool = logging.getLogger(), logging.getLogger("celery.pool")
    handlers, levels = list(root.handlers), (root.level, pool.level)
    try:
        set_up_logging(LogSettings(level="DEBUG"))
        assert logging.getLogger("worker").isEnabledFor(logging.DEBUG)
        assert not pool.isEnabledFor(logging.DEBUG)
        set_up_logging(LogSettings(level="ERROR"))
        assert not pool.isEnabledFor(logging.WARNING)
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        pool.setLevel(levels[1])
