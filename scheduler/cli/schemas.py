"""JSON Schemas of the requests' payloads."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("verb", required=False)
def schema(verb: str | None) -> None:
    """Print the JSON Schema of VERB's payload, or of all verbs' by name."""
    from scheduler.requests.verbs import VERBS  # noqa: PLC0415

    if verb is None:
        document = {name: known.model.model_json_schema() for name, known in VERBS.items()}
    elif verb in VERBS:
        document = VERBS[verb].model.model_json_schema()
    else:
        raise click.BadParameter(f"there is no verb {verb!r}; there are {', '.join(VERBS)}.")
    click.echo(json.dumps(document, indent=2))
