"""The commands that train a network from random weights, for streams and model directories to stand on."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

#: Under which heading `latewood --help` lists these commands.
PANEL = "Methods, scenarios and papers"

app = typer.Typer()


@app.command(name="pretrain-text", rich_help_panel=PANEL)
def pretrain_text(
    corpora: Annotated[str, typer.Argument(help="As in the name of a text stream: en+fr both at once, en,fr one by one.")],
    to: Annotated[Path, typer.Option(help="The new folder for the model; the same command continues.")],
    set: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter or a field of the recipe; backbone.NAME is the net's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights and the order of rows.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")] = False,
) -> None:
    """Train a causal language model on text, and write it as a folder in the hub's form."""
    from latewood.cli.show import show_record
    from latewood.core.configure import build, parse_assignments
    from latewood.language.pretraining import pretrain_text as train

    settings = parse_assignments(set or [])
    backbone = settings.pop("backbone", None)
    given = {"corpora": corpora, "to": to, "seed": seed, "device": device, "backbone": backbone}
    record = build(train, settings, "pretrain-text", **given)
    typer.echo(json_format.dumps(record.to_json(), indent=1)) if json else show_record(record)
