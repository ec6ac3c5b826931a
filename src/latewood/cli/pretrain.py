"""The commands that train a network from random weights, for streams and model directories to stand on."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

#: Under which heading `latewood --help` lists these commands.
PANEL = "Methods, scenarios and papers"

app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def pretrain(
    net: Annotated[str, typer.Argument(help="vit or resnet32.")],
    data: Annotated[str, typer.Option(help="A data set of images, as in the name of a stream.")],
    to: Annotated[Path, typer.Option(help="The new folder for the network; the same command continues.")],
    classes: Annotated[
        str | None, typer.Option(help="Only these classes: 0-99, random:100, unseen:BACKBONE, or a JSON file of names.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each image is seen.", min=1)] = None,
    size: Annotated[int | None, typer.Option(help="The side of the square that images are brought to, in pixels.")] = None,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror images at random; wrong for characters.")] = True,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the recipe, name=value; backbone.NAME is the net's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, batches and crops.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")] = False,
) -> None:
    """Train a network on base classes, and write it as a model folder that says which classes it has seen."""
    from latewood.core.configure import merged, parse_assignments
    from latewood.core.errors import ConfigurationError
    from latewood.images.pretraining import pretrain as train

    settings = parse_assignments(set or [])
    own = settings.pop("backbone", {})
    if not isinstance(own, dict):
        raise ConfigurationError(
            f"The net is the first argument ({net}); --set backbone.NAME=value sets one of its parameters."
        )
    if epochs is not None:
        settings = merged(settings, {"epochs": epochs})
    done = train(
        {"name": net} | own,
        data,
        to,
        classes=classes,
        settings=settings,
        flip=flip,
        seed=seed,
        size=size,
        device=device,
    )
    if json:
        typer.echo(
            json_format.dumps({"folder": str(done.folder), "accuracy": done.accuracy, "seconds": done.seconds}, indent=1)
        )
    else:
        typer.echo(f"{done.folder}: top-1 {done.accuracy:.1%} on the test images of its classes.")


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
