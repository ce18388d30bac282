"""Every payload at its edges: refused with a sentence that names the field."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.requests.base import Kind, Verb, digest, is_id, parse
from scheduler.requests.verbs import VERBS
from worker.errors import ErrorCode, InvalidRequest
from worker.messaging.queues import ADMIN_REQUESTS, READ_REQUESTS, REQUESTS, request_queue
from worker.model import NetworkKind

COMPLETE: Final[dict[str, dict[str, Any]]] = {
    "create_share": {"size": 1},
    "delete_share": {"share_id": "s"},
    "extend_share": {"share_id": "s", "new_size": 2},
    "show_share": {"share_id": "s"},
    "list_shares": {},
    "create_snapshot": {"share_id": "s"},
    "delete_snapshot": {"snapshot_id": "n"},
    "show_snapshot": {"snapshot_id": "n"},
    "list_snapshots": {},
    "allow_access": {"share_id": "s", "access_to": "10.0.0.1"},
    "deny_access": {"share_id": "s", "access_id": "r"},
    "list_access": {"share_id": "s"},
    "create_share_network": {},
    "update_share_network": {"share_network_id": "n"},
    "delete_share_network": {"share_network_id": "n"},
    "show_share_network": {"share_network_id": "n"},
    "list_share_networks": {},
    "publish_share_network": {"share_network_id": "n"},
    "unpublish_share_network": {"share_network_id": "n"},
    "set_default_share_network": {"share_network_id": "n"},
    "unset_default_share_network": {"share_network_id": "n"},
    "create_security_service": {"type": "ldap"},
    "update_security_service": {"security_service_id": "y"},
    "delete_security_service": {"security_service_id": "y"},
    "show_security_service": {"security_service_id": "y"},
    "list_security_services": {},
    "add_security_service": {"share_network_id": "n", "security_service_id": "y"},
    "remove_security_service": {"share_network_id": "n", "security_service_id": "y"},
    "show_sealing_key": {},
    "create_share_type": {"name": "gold"},
    "delete_share_type": {"share_type": "gold"},
    "show_share_type": {"share_type": "gold"},
    "list_share_types": {},
    "show_share_server": {"share_server_id": "v"},
    "list_share_servers": {},
    "delete_share_server": {"share_server_id": "v"},
    "ensure_share_servers": {},
    "show_operation": {"operation_id": "o"},
    "list_operations": {},
    "show_backend": {"backend": "b"},
    "list_backends": {},
    "disable_backend": {"backend": "b"},
    "enable_backend": {"backend": "b"},
    "cancel_operation": {"operation_id": "o"},
    "retry_operation": {"operation_id": "o"},
    "give_up_operation": {"operation_id": "o"},
    "audit_backend": {"backend": "b"},
    "show_quota": {},
    "set_quota": {"project_id": "p2", "shares": 1},
    "unset_quota": {"project_id": "p2"},
}
"""What each verb needs besides version and context."""
ONE_OF_SEVERAL = {"set_quota": {"shares"}}
"""Fields of which a verb needs at least one, so that the schema requires none of them."""


def payload(verb: str, **fields: Any) -> dict[str, Any]:
    return {"version": 1, "context": {"project_id": "p1"}, **COMPLETE[verb], **fields}


def refused(verb: str, asked: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(VERBS[verb], asked)
    error = caught.value
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.message.startswith(verb)
    assert error.message.endswith(".")
    assert error.field in error.message
    return error


def test_every_verb_is_tested_here() -> None:
    assert COMPLETE.keys() == VERBS.keys()


every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)


@every_verb
def test_complete(verb: Verb) -> None:
    assert isinstance(parse(verb, payload(verb.name)), verb.model)


@every_verb
def test_an_unknown_field(verb: Verb) -> None:
    assert refused(verb.name, payload(verb.name, colour="blue")).field == "colour"


@every_verb
def test_an_unknown_field_of_the_context(verb: Verb) -> None:
    asked = payload(verb.name, context={"project_id": "p1", "tenant": "t"})
    assert refused(verb.name, asked).field == "context.tenant"


@pytest.mark.parametrize(
    ("verb", "field"),
    [
        (verb, field)
        for verb, fields in COMPLETE.items()
        for field in (*fields, "version", "context")
    ],
)
def test_a_missing_field(verb: str, field: str) -> None:
    asked = payload(verb)
    del asked[field]
    assert refused(verb, asked).field == field


@every_verb
def test_a_missing_project(verb: Verb) -> None:
    assert refused(verb.name, payload(verb.name, context={})).field == "context.project_id"


@every_verb
@pytest.mark.parametrize("version", [0, 2, -1, True, 1.0, "1", None, [1]])
def test_another_version(verb: Verb, version: Any) -> None:
    assert refused(verb.name, payload(verb.name, version=version)).field == "version"


@every_verb
@pytest.mark.parametrize("asked", [None, 1, "create", [], [{}], True])
def test_not_an_object(verb: Verb, asked: Any) -> None:
    assert "one JSON object" in refused(verb.name, asked).message


SIZES = [0, -1, 2**31, 10**30, 1.0, 1.5, math.inf, math.nan, True, False, "1", "", None, [1], {}]


@pytest.mark.parametrize("size", SIZES, ids=repr)
@pytest.mark.parametrize(
    ("verb", "field"), [("create_share", "size"), ("extend_share", "new_size")]
)
def test_sizes_that_are_none(verb: str, field: str, size: Any) -> None:
    assert refused(verb, payload(verb, **{field: size})).field == field


@pytest.mark.parametrize("limit", [0, -1, 1001, True, "10", 1.0], ids=repr)
def test_limits_that_are_none(limit: Any) -> None:
    assert refused("list_shares", payload("list_shares", limit=limit)).field == "limit"


@pytest.mark.parametrize("value", ["yes", 1, 0, "true", None], ids=repr)
def test_all_projects_is_a_boolean(value: Any) -> None:
    asked = payload("list_shares", all_projects=value)
    assert refused("list_shares", asked).field == "all_projects"


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "a\n", "ä", "x" * 65, "a\0", 7, None, "../a"])
@pytest.mark.parametrize(
    ("verb", "field"),
    [
        (verb, field)
        for verb, fields in COMPLETE.items()
        for field in fields
        if field.endswith("_id")
    ],
)
def test_ids_that_are_none(verb: str, field: str, bad: Any) -> None:
    assert refused(verb, payload(verb, **{field: bad})).field == field


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("10.0.0.5/32", "10.0.0.5"),
        ("10.0.0.0/24", "10.0.0.0/24"),
        ("10.0.0.0/255.255.255.0", "10.0.0.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0::1", "fd00::1"),
        ("fd00::/64", "fd00::/64"),
        ("fd00::/99", "fd00::/99"),
        ("fd00::/120", "fd00::/120"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.0/120", "10.0.0.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_clients_have_one_spelling(given: str, kept: str) -> None:
    asked: Any = parse(VERBS["allow_access"], payload("allow_access", access_to=given))
    assert asked.access_to == kept


@pytest.mark.parametrize(
    "bad",
    [
        *("10.0.0.1/24", "10.0.0.0/33", "10.0.0.256", "10.0.0", "10", "1", "nonsense", ""),
        *("10.0.0.0/-1", "10.0.0.1\n", " 10.0.0.1", "fd00::1/64", "fd00::/129", "10.0.0.0/24/24"),
        *("10.0.0.0/0.0.0.255", "127.0.0.1", "127.0.0.0/8", "::1", "::", "0.0.0.0", "224.0.0.1"),
        *("255.255.255.255", "ff02::1", "::ffff:127.0.0.1", "fd00::/100", "fd00::/119"),
        *("10.0.0.1,10.0.0.2", "10.0.0.1-10.0.0.9", "0x0a000001", "*", "\0", None, 167772161, []),
    ],
    ids=repr,
)
def test_clients_that_are_none(bad: Any) -> None:
    asked = payload("allow_access", access_to=bad)
    assert refused("allow_access", asked).field == "access_to"


def test_host_bits_are_pointed_out() -> None:
    error = refused("allow_access", payload("allow_access", access_to="10.0.0.7/24"))
    assert "did you mean 10.0.0.0/24?" in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("access_type", "user"),
        ("access_type", None),
        ("access_level", "rwx"),
        ("access_level", "RW"),
        ("access_level", ""),
    ],
)
def test_access_of_an_unknown_sort(field: str, value: Any) -> None:
    assert refused("allow_access", payload("allow_access", **{field: value})).field == field


@pytest.mark.parametrize("proto", ["nfs", "SMB", "", None, 4])
def test_an_unknown_protocol(proto: Any) -> None:
    assert refused("create_share", payload("create_share", share_proto=proto)).field == (
        "share_proto"
    )


@pytest.mark.parametrize("option", ["flat_network_subnet", "flat_network_gateway"])
def test_options_of_a_pool_without_one(option: str) -> None:
    asked = payload("create_share_network", **{option: "10.0.0.1"})
    error = refused("create_share_network", asked)
    assert error.field == option
    assert "flat_network_ip_pool" in error.message


@pytest.mark.parametrize("pool", ["10.0.0.0/24", [], [""], [1], [None], {}, 1, ["x"] * 1025])
def test_pools_that_are_none(pool: Any) -> None:
    asked = payload("create_share_network", flat_network_ip_pool=pool, flat_network_gateway="x")
    assert refused("create_share_network", asked).field.startswith("flat_network_ip_pool")


def test_options_make_the_kind() -> None:
    verb = VERBS["create_share_network"]
    none: Any = parse(verb, payload(verb.name))
    flat: Any = parse(verb, payload(verb.name, flat_network_ip_pool=["10.0.0.0/24"]))
    assert (none.kind, flat.kind) == (NetworkKind.NONE, NetworkKind.FLAT_POOL)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("name", "x" * 256, "name"),
        ("name", None, "name"),
        ("description", "x" * 4097, "description"),
        ("metadata", {"k": "x" * 256}, "metadata.k"),
        ("metadata", {str(number): "" for number in range(65)}, "metadata"),
        ("metadata", {"k": 1}, "metadata.k"),
        ("metadata", [], "metadata"),
        ("idempotency_key", "", "idempotency_key"),
        ("idempotency_key", "x" * 256, "idempotency_key"),
    ],
)
def test_what_is_too_long_or_of_another_sort(field: str, value: Any, named: str) -> None:
    assert refused("create_share", payload("create_share", **{field: value})).field == named


@pytest.mark.parametrize("field", ["name", "description", "share_type", "idempotency_key"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["nul", "surrogate"])
def test_text_that_no_database_can_hold(field: str, text: str) -> None:
    assert refused("create_share", payload("create_share", **{field: text})).field == field


@pytest.mark.parametrize("field", ["user_id", "request_id"])
def test_a_context_that_no_database_can_hold(field: str) -> None:
    asked = payload("create_share", context={"project_id": "p1", field: "a\0b"})
    assert refused("create_share", asked).field == f"context.{field}"


def test_metadata_that_no_database_can_hold() -> None:
    asked = payload("create_share", metadata={"k": "\0"})
    assert refused("create_share", asked).field == "metadata.k"


def test_a_refusal_repeats_no_value() -> None:
    asked = payload("create_share", size="a-planted-secret", name="fine")
    assert "planted" not in refused("create_share", asked).message


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.integers())
def test_whatever_a_size_is_it_is_taken_or_refused(size: Any) -> None:
    asked = payload("create_share", size=size)
    if type(size) is int and 1 <= size < 2**31:
        assert parse(VERBS["create_share"], asked)
    else:
        assert refused("create_share", asked).field == "size"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(VERBS)), st.text(min_size=1, max_size=12), json_values)
def test_nothing_but_a_refusal_comes_of_nonsense(verb: str, field: str, value: Any) -> None:
    asked = {**payload(verb), field: value}
    if field in VERBS[verb].model.model_fields:
        return
    refused(verb, asked)


def test_the_digest_is_of_what_is_asked() -> None:
    def of(verb: str, **fields: Any) -> str:
        return digest(VERBS[verb], parse(VERBS[verb], payload(verb, **fields)))

    one = of("create_share", name="a", metadata={"x": "1", "y": "2"})
    assert one == of("create_share", metadata={"y": "2", "x": "1"}, name="a")
    assert one == of(
        *("create_share",),
        name="a",
        metadata={"x": "1", "y": "2"},
        context={"project_id": "p1", "user_id": "u", "roles": ["r"], "request_id": "q"},
    )
    assert one != of("create_share", name="b", metadata={"x": "1", "y": "2"})
    assert one != of(
        "create_share", name="a", metadata={"x": "1", "y": "2"}, context={"project_id": "p2"}
    )
    assert of("delete_share") != of("show_share")


def test_defaults_written_out_are_the_same_request() -> None:
    verb = VERBS["create_share"]
    short = digest(verb, parse(verb, payload(verb.name)))
    long = digest(verb, parse(verb, payload(verb.name, share_proto="NFS", name="", metadata={})))
    assert short == long


@every_verb
def test_the_schema_refuses_what_the_model_refuses(verb: Verb) -> None:
    schema = verb.model.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    required = set(COMPLETE[verb.name]) - ONE_OF_SEVERAL.get(verb.name, set())
    assert required | {"version", "context"} == set(schema["required"])


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("a", True),
        ("0b6ee9f1-7c3f-4d63-8f3b-6f5a5b0a3f7e", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("a\0", False),
    ],
)
def test_ids_of_requests(value: str, good: bool) -> None:
    assert is_id(value) is good


def test_share_servers_are_named_in_one_way_only() -> None:
    parse(VERBS["ensure_share_servers"], payload("ensure_share_servers", host="h"))
    asked = payload("ensure_share_servers", host="h", backend="b")
    assert "not several" in refused("ensure_share_servers", asked).message


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_verb_s_name_says_its_queue(verb: Verb) -> None:
    """Producers go by the name: they have no list of verbs."""
    is_read = verb.kind is Kind.READ
    assert request_queue(verb.name) == (READ_REQUESTS if is_read else REQUESTS)
    assert request_queue(verb.name, admin=True) == ADMIN_REQUESTS
