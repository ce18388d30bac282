"""The options of a security service. Its password is accepted only in sealed form."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from scheduler.requests.fields import Text
from worker.addressing import host_name, server_address
from worker.errors import InvalidRequest
from worker.model import SecurityServiceType
from worker.sealing import KEY_ID, LONGEST, OVERHEAD

NEEDS: Final[Mapping[SecurityServiceType, tuple[tuple[str, ...], ...]]] = {
    SecurityServiceType.ACTIVE_DIRECTORY: (("dns_ip",), ("domain",), ("user",), ("password",)),
    SecurityServiceType.KERBEROS: (("dns_ip",), ("domain",), ("server",)),
    SecurityServiceType.LDAP: (("server", "domain"),),
}
"""The options that each type requires; of a group, one is enough."""

_SEALED_ONLY: Final = (
    "is taken sealed only, as an object of key_id and sealed: ask show_sealing_key for the public "
    "key and seal it with that, as `Client.seal` and `sharewright security-service create "
    "--password-file` do; what was sent in clear should be changed where it is used"
)


def _addresses(value: str) -> str:
    return ",".join(str(server_address(part.strip(), "dns_ip")) for part in value.split(","))


def _servers(value: str) -> str:
    return ",".join(_host(part.strip(), "server") for part in value.split(","))


def _host(text: str, field: str) -> str:
    # A host name has no colon and does not end in a number, so this must be an address.
    if ":" in text or text.rpartition(".")[2].isdigit():
        return str(server_address(text, field))
    return host_name(text, field)


def _domain(value: str) -> str:
    return host_name(value, "domain")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has characters that cannot be printed; leave them out")
    return value


def _is_sealed(value: Any) -> Any:
    # Checked as a whole, because an error that quotes an invalid part could show the password.
    parts = value.values() if isinstance(value, dict) else ()
    if value is None or (
        isinstance(value, dict)
        and value.keys() == {"key_id", "sealed"}
        and all(isinstance(part, str) for part in parts)
        and KEY_ID.fullmatch(value["key_id"])
        and _length(value["sealed"])
    ):
        return value
    raise ValueError(_SEALED_ONLY)


def _length(text: str) -> bool:
    try:
        return OVERHEAD < len(base64.b64decode(text, validate=True)) <= LONGEST
    except (binascii.Error, ValueError):
        return False


class Sealed(BaseModel):
    """Secret sealed with the public key ``key_id``, in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: str
    sealed: str


class SecurityOptions(BaseModel):
    """Options of a security service that share servers are configured with."""

    dns_ip: Annotated[
        Annotated[Text, AfterValidator(_addresses)] | None,
        Field(description="DNS servers that know it: an address, or several with commas."),
    ] = None
    server: Annotated[
        Annotated[Text, AfterValidator(_servers)] | None,
        Field(description="Its servers: a host name or address, or several with commas."),
    ] = None
    domain: Annotated[
        Annotated[Text, AfterValidator(_domain)] | None,
        Field(description="The DNS domain, of Kerberos the realm."),
    ] = None
    ou: Annotated[
        Annotated[Text, AfterValidator(_printable)] | None,
        Field(description="The organizational unit that share servers join."),
    ] = None
    user: Annotated[
        Annotated[Text, AfterValidator(_printable)] | None,
        Field(description="Who share servers log in as."),
    ] = None
    password: Annotated[
        Annotated[Sealed | None, BeforeValidator(_is_sealed)],
        Field(description="The user's password, sealed."),
    ] = None

    def columns(self) -> dict[str, Any]:
        """Return the options that were given, as column values."""
        values = self.model_dump(
            include=set(SecurityOptions.model_fields) - {"password"}, exclude_none=True
        )
        if self.password is not None:
            values["password_key_id"] = self.password.key_id
            values["password_sealed"] = base64.b64decode(self.password.sealed)
        return values


def check_needs(kind: SecurityServiceType, held: Mapping[str, Any]) -> None:
    """Refuse a security service without the options that its type requires.

    ``held`` are the options that it would have, by column name.
    """
    has = {name.replace("password_key_id", "password") for name, value in held.items() if value}
    for names in NEEDS[kind]:
        if not has & set(names):
            raise InvalidRequest(
                f"A security service of type {kind} needs {' or '.join(names)}; add it.",
                field=names[0],
            )
    if "password" in has and "user" not in has:
        raise InvalidRequest("A password needs a user; add the user.", field="user")
