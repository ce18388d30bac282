"""Rewrites those parts of the documentation that the code itself says best.

``python docs/generate.py`` rewrites every section between ``<!-- generated: NAME -->`` and
``<!-- end -->`` in README.md and the pages below docs/. With ``--check`` it changes nothing, names
the files that would change, and exits with 1 if there are any.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
from pydantic import BaseModel

import scheduler.cli
import worker.errors
import worker.model
from scheduler.cli import cli
from scheduler.placement.share_network import Named, Visibility, resolve
from scheduler.requests.base import Context, Kind, Payload
from scheduler.requests.verbs import VERBS
from scheduler.service.health import make_wsgi
from worker.app import HARD_LIMIT_GRACE
from worker.backends.network_kinds import service
from worker.config import Config
from worker.db.core.engine import engine_for
from worker.db.schema import upgrade
from worker.errors import Refused
from worker.helpers.network.base import NetworkHelper
from worker.logs import FIELDS
from worker.messaging.queues import request_queue
from worker.model import (
    ACCESS_TRANSITIONS,
    SERVER_TRANSITIONS,
    SHARE_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    DriverMode,
    NetworkKind,
)
from worker.plugin import Options
from worker.tasks.sagas import ACTIONS, ALL

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_SECTION: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[a-z-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
_VERB_KINDS: Final = {
    Kind.CHAIN: "an operation with steps",
    Kind.ROW: "an operation that is done once its rows are written",
    Kind.READ: "an answer; no operation is kept",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |\n" for row in lines)


def code(text: object) -> str:
    """A word of the code's."""
    return f"`{text}`"


def documented(module: Any, class_name: str) -> list[tuple[str, str]]:
    """The values of an enum, each with the docstring that stands after it in the source."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    found = []
    for member, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(member, ast.Assign):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if is_text else ""  # type: ignore[union-attr] # is_text says so
            found.append((str(ast.literal_eval(member.value)), " ".join(text.split())))
    return found


def values(module: Any, class_name: str, head: str) -> str:
    """An enum's values and what they mean."""
    rows = [(code(value), meaning) for value, meaning in documented(module, class_name)]
    return table((head, "meaning"), rows)


def states(transitions: Mapping[tuple[Any, Any], str]) -> str:
    """A transition table as a diagram, and as a table with the reasons."""
    entered = {after for _, after in transitions}
    first = sorted({str(before) for before, _ in transitions if before not in entered})
    lines = [f"    [*] --> {state}" for state in first]
    lines += [f"    {before} --> {after}" for before, after in transitions]
    drawn = "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", "", ""])
    return drawn + table(
        ("from", "to", "when"),
        [(code(before), code(after), reason) for (before, after), reason in transitions.items()],
    )


def sagas() -> str:
    """Which steps make an operation."""
    rows = []
    for saga in ALL:
        for number, step in enumerate(saga.steps):
            back = code(step.compensation.name) if step.compensation else f"none: {step.because}"
            trying = "yes" if step.keeps_trying else ""
            name = code(saga.name) if number == 0 else ""
            rows.append((name, f"{number + 1}. {code(step.do.name)}", back, trying))
    return table(("operation", "step", "undone by", "tried on after its last attempt"), rows)


def steps() -> str:
    """The tasks that do the steps, and how long each may take."""
    rows = [
        (
            code(f"sharewright.{action.name}"),
            f"{action.timeout:g}",
            f"{action.timeout + HARD_LIMIT_GRACE:g}",
        )
        for action in sorted(ACTIONS.values(), key=lambda action: action.name)
    ]
    return table(("task", "may take, seconds", "its process is killed after, seconds"), rows)


def layers() -> str:
    """The layers of both packages from the import contracts, the upper ones first."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = []
    for contract in document["tool"]["importlinter"]["contracts"]:
        for package in contract.get("containers", ()):
            for layer in contract["layers"]:
                names = [f"{package}.{name}" for name in layer.split(" | ")]
                meanings = [_summary(import_module(name)) for name in names]
                rows.append((", ".join(map(code, names)), " ".join(meanings)))
    return table(("layer", "what it is"), rows)


def plugins(group: str) -> dict[str, Any]:
    """The classes that ``pyproject.toml`` registers in an entry point group."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    points = document["project"]["entry-points"][f"sharewright.{group}"]
    split = {name: target.split(":") for name, target in points.items()}
    return {name: getattr(import_module(path), attr) for name, (path, attr) in split.items()}


def kinds() -> str:
    """Which share networks a backend takes: mode, helper and kind."""
    rows = [_kinds_row(DriverMode.SINGLE_SVM, "(none)", ())]
    for mode in (DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM):
        for name, helper in plugins("network_helpers").items():
            if mode in helper.modes:
                rows.append(_kinds_row(mode, code(name), (helper,)))
                if mode is DriverMode.FLAT_MULTI_SVM:
                    rows.append(_kinds_row(mode, code(name), (helper,), brought=True))
    return table(("mode", "network helper", *map(code, NetworkKind)), rows)


def _kinds_row(
    mode: DriverMode, name: str, helpers: tuple[type[NetworkHelper], ...], *, brought: bool = False
) -> list[str]:
    with_it = ", `share_network_addresses`" if brought else ""
    uses = (
        service(mode, helpers, kind, share_network_addresses=brought).use for kind in NetworkKind
    )
    return [code(mode), name + with_it, *uses]


def resolution() -> str:
    """Which share network a share is made on, from the function that decides."""
    rows = list(_resolved(()))
    head = ("request", "share type has `driver_mode` `single_svm`", "share type's extra spec")
    return table((*head, "configuration", "default", "the share is made on"), rows)


_ANSWERS: Final = ("-", *(str(visibility) for visibility in Visibility))
_NAMED_BY: Final[tuple[tuple[str, ...], ...]] = (
    *(_ANSWERS, ("yes", "no"), _ANSWERS, _ANSWERS),
    ("-", str(Visibility.PUBLIC)),
)


def _resolved(known: tuple[str, ...]) -> Iterator[Sequence[str]]:
    """The rows that begin so; what does not count any more is left blank."""
    rest = _NAMED_BY[len(known) :]
    outcomes = {_outcome((*known, *others)) for others in product(*rest)}
    if len(outcomes) == 1:
        yield (*known, *("" for _ in rest), *outcomes)
        return
    for answer in rest[0]:
        yield from _resolved((*known, answer))


def _outcome(case: tuple[str, ...]) -> str:
    def named(visibility: str, by: str) -> Named | None:
        return None if visibility == "-" else Named(by, Visibility(visibility))

    request, single, share_type, configuration, default = case
    try:
        found = resolve(
            request=named(request, "the request's"),
            share_type=named(share_type, "the share type's"),
            configuration=named(configuration, "the configuration's"),
            default=named(default, "the default"),
            asks_single_svm=single == "yes",
        )
    except Refused as refused:
        return f"refused: {code(refused.code)}"
    return "none" if found is None else found.id


def described(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What a JSON Schema accepts, in words."""
    if "$ref" in schema:
        return described(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        parts = [described(part, defs) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return "one of " + ", ".join(code(value) for value in schema["enum"])
    match schema.get("type"):
        case "array":
            first = next(iter(schema.get("prefixItems", ())), {})
            items = described(schema.get("items", first), defs)
            return f"list of {items}" + _limits(schema, "minItems", "maxItems", "entries")
        case "object":
            inner = schema.get("additionalProperties")
            if isinstance(inner, dict):
                return "table of " + described(inner, defs)
            return "table"
        case "string":
            return "text" + _limits(schema, "minLength", "maxLength", "characters")
        case str(name):
            return name + _limits(schema, "minimum", "maximum", "") + _above(schema)
    return "anything"


def _limits(schema: Mapping[str, Any], least: str, most: str, of: str) -> str:
    low, high = schema.get(least), schema.get(most)
    unit = f" {of}" if of else ""
    if low is None and high is None:
        return ""
    if low is None:
        return f", at most {high}{unit}"
    return f", {low} to {high}{unit}" if high is not None else f", at least {low}{unit}"


def _above(schema: Mapping[str, Any]) -> str:
    return f", more than {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else ""


def fields(model: type[BaseModel], *, leave_out: Sequence[str] = (), explained: bool = True) -> str:
    """The fields of a pydantic model."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name in leave_out:
            continue
        default = "required" if name in required else _default(field)
        row = [code(name), described(field, schema.get("$defs", {})), default]
        rows.append([*row, field.get("description", "")] if explained else row)
    head = ["name", "type", "default", *(["what for"] if explained else [])]
    return table(head, rows) if rows else ""


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return "" if value in (None, "", [], {}) else code(json.dumps(value))


def settings() -> str:
    """Every option of ``sharewright.toml``."""
    parts = ["Before the first section:\n\n" + fields(Config, leave_out=_sections(Config))]
    for name in _sections(Config):
        inner = Config.model_fields[name].annotation
        keyed = getattr(inner, "__args__", None)
        model: Any = keyed[1] if keyed else inner
        heading = f"[{name}.<name>]" if keyed else f"[{name}]"
        parts.append(f"#### `{heading}`\n\n{_summary(model)}\n\n{fields(model)}")
    return "\n".join(parts)


def _sections(model: type[BaseModel]) -> list[str]:
    def is_section(annotation: Any) -> bool:
        last = (getattr(annotation, "__args__", None) or (annotation,))[-1]
        return isinstance(last, type) and issubclass(last, BaseModel)

    return [name for name, f in model.model_fields.items() if is_section(f.annotation)]


def _summary(documented_thing: Any) -> str:
    return str(documented_thing.__doc__ or "").strip().split("\n\n")[0].replace("``", "`")


PLUGINS: Final[Mapping[str, tuple[str, str]]] = {
    "share_drivers": ("share driver", "[backends.<name>.driver]"),
    "compute_helpers": ("compute helper", "[backends.<name>.compute]"),
    "network_helpers": ("network helper", "[backends.<name>.network.{}]"),
}
"""The entry point groups, what one of each is called, and where its options stand."""


def plugin_options(title: str, section: str, name: str, plugin: Any) -> str:
    """What a driver or helper says of itself, and its options."""
    model: type[Options] = plugin.OptionsModel
    modes = ", ".join(code(mode) for mode in DriverMode if mode in plugin.modes)
    bound = " It is bound to a host." if plugin.host_bound else ""
    if getattr(plugin, "needs_shell", False):
        bound = " It is bound to a host in `single_svm`, and where its compute helper is."
    return (
        f"### {title.capitalize()}: `{section.format(name)}`\n\n"
        f"{_summary(plugin)} Modes: {modes}.{bound}\n\n" + (fields(model) or "It has no options.\n")
    )


def plugin_sections() -> dict[str, Callable[[], str]]:
    """A section for each driver and helper that comes with Sharewright."""
    return {
        f"options-{title}-{name}".replace(" ", "-").replace("_", "-"): partial(
            plugin_options, title, section, name, plugin
        )
        for group, (title, section) in PLUGINS.items()
        for name, plugin in plugins(group).items()
    }


def verbs() -> str:
    """Every request, and what it comes to."""
    rows = [
        (code(verb.task), code(request_queue(verb.name, admin=verb.admin)), _VERB_KINDS[verb.kind])
        for verb in VERBS.values()
    ]
    return table(("task", "queue", "what it makes"), rows)


def payloads() -> str:
    """What each request carries."""
    common = list(Payload.model_fields)
    parts = [
        f"#### In every payload\n\n{fields(Payload, explained=False)}",
        f"#### `context`\n\n{_summary(Context)}\n\n{fields(Context, explained=False)}",
    ]
    for model in dict.fromkeys(verb.model for verb in VERBS.values()):
        names = ", ".join(code(verb.name) for verb in VERBS.values() if verb.model is model)
        own = fields(model, leave_out=common, explained=False) or "It has no fields of its own.\n"
        parts.append(f"#### {names}\n\n{_summary(model)}\n\n{own}")
    return "\n".join(parts)


def commands() -> str:
    """Every command, with its arguments and what it is for."""
    leaves = _leaves(cli, click.Context(cli, info_name="sharewright"))
    return table(("command", "does"), list(leaves))


def _leaves(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _leaves(inner, click.Context(inner, parent=context, info_name=name))
        return
    names = [one.make_metavar(context) for one in command.params if isinstance(one, click.Argument)]
    yield code(" ".join([context.command_path, *names])), command.get_short_help_str(limit=200)


def exit_codes() -> str:
    """The exit codes, which the command's own docstring lists."""
    listed = str(scheduler.cli.__doc__).split("Exit codes:")[1].split("\n\n", maxsplit=1)[0]
    rows = re.findall(r"(\d+) ([^;.]+)[;.]", " ".join(listed.split()))
    return table(("exit code", "means"), [(code(number), meaning) for number, meaning in rows])


def metrics() -> str:
    """The figures of an empty service, as ``/metrics`` answers."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/sharewright.db"
        upgrade(url)
        config = Config.model_validate({"database": {"url": url}})
        environ = {"PATH_INFO": "/metrics", "QUERY_STRING": "", "REQUEST_METHOD": "GET"}
        text = b"".join(make_wsgi(config)(environ, lambda *_: None)).decode()
        engine_for(url).dispose()
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    rows = [
        (code(name), kind, helps[name])
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    ]
    return table(("name", "type", "what it is"), rows)


_LANGUAGES: Final = {".js": "javascript", ".py": "python", ".sh": "sh", ".toml": "toml"}


def log_fields() -> str:
    """What a line of the log has when it is JSON."""
    return table(("field", "is"), [(code(name), text) for name, text in FIELDS.items()])


def example(name: str) -> str:
    """A file of docs/examples, as it is."""
    text = (ROOT / "docs" / "examples" / name).read_text(encoding="utf-8")
    return f"```{_LANGUAGES[Path(name).suffix]}\n{text}```\n"


SECTIONS: Final[Mapping[str, Callable[[], str]]] = {
    "share-states": lambda: states(SHARE_TRANSITIONS),
    "snapshot-states": lambda: states(SNAPSHOT_TRANSITIONS),
    "access-states": lambda: states(ACCESS_TRANSITIONS),
    "server-states": lambda: states(SERVER_TRANSITIONS),
    "access-state-values": lambda: values(worker.model, "AccessState", "state"),
    "server-status-values": lambda: values(worker.model, "ServerStatus", "status"),
    "operation-states": lambda: values(worker.model, "OperationState", "state"),
    "phases": lambda: values(worker.model, "Phase", "phase"),
    "network-kinds": lambda: values(worker.model, "NetworkKind", "kind"),
    "driver-modes": lambda: values(worker.model, "DriverMode", "mode"),
    "error-codes": lambda: values(worker.errors, "ErrorCode", "code"),
    "object-kinds": lambda: values(worker.errors, "ObjectKind", "kind"),
    "layers": layers,
    "sagas": sagas,
    "steps": steps,
    "kinds": kinds,
    "resolution": resolution,
    "settings": settings,
    **plugin_sections(),
    "verbs": verbs,
    "payloads": payloads,
    "commands": commands,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "log-fields": log_fields,
    "producer": lambda: example("producer.py"),
    "producer-node": lambda: example("producer.js"),
    "producer-shell": lambda: example("producer.sh"),
    "sealing": lambda: example("seal.py"),
    "example-driver": lambda: example("directories/directories.py"),
    "example-driver-project": lambda: example("directories/pyproject.toml"),
    "example-driver-test": lambda: example("directories/tests/test_directories.py"),
}


def rewritten(text: str) -> str:
    """A page with its generated sections made anew."""

    def section(match: re.Match[str]) -> str:
        return f"{match['begin']}{SECTIONS[match['name']]()}{match['end']}"

    return _SECTION.sub(section, text)


def changed() -> Iterator[tuple[Path, str]]:
    """The pages that are out of date, with what they should say."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            yield page, new


def main(arguments: Sequence[str]) -> int:
    """Rewrite the pages, or with ``--check`` say which are out of date."""
    stale = list(changed())
    for page, new in stale:
        print(page.relative_to(ROOT))
        if "--check" not in arguments:
            page.write_text(new, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
