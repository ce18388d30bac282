"""JSON Schemas of the requests' payloads."""

from __future__ import annotations

import difflib
import json

import click

from scheduler.cli.commands import Command, argument


@click.command(cls=Command)
@argument("verb", "A request, such as create_share; all when left out.", required=False)
def schema(verb: str | None) -> None:
    """Print the JSON Schema of VERB's payload, or of all verbs' by name."""
    from scheduler.requests.verbs import VERBS  # noqa: PLC0415

    if verb is None:
        document = {name: known.model.model_json_schema() for name, known in VERBS.items()}
    elif verb in VERBS:
        document = VERBS[verb].model.model_json_schema()
    else:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"Did you mean {close[0]}?" if close else "`sharewright schema` prints all."
        raise click.BadParameter(f"there is no verb {verb!r}. {meant}", param_hint="VERB")
    click.echo(json.dumps(document, indent=2))
