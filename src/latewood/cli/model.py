"""The commands of the practitioner: a model directory that learns, predicts, remembers and forgets.

Beside the exit statuses of the other commands, ``learn`` ends with 3 if the gate holds the update back.
"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latewood.model.model import Model

HELD_BACK = 3

#: Under which heading `latewood --help` lists these commands.
PANEL = "A model in use"

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The model directory.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another process that is changing the model.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


@app.command(rich_help_panel=PANEL)
def init(
    folder: Folder,
    backbone: Annotated[str | None, typer.Option(help="A name on the hub, a folder, or a net of Latewood.")] = None,
    text: Annotated[bool, typer.Option("--text", help="For texts instead of images.")] = False,
    method: Annotated[str, typer.Option(help="How it learns; `latewood methods` lists them.")] = "g-acil",
    set: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter, name=value; backbone.NAME reaches the network's.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="The side of the square that images are brought to, in pixels.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Images in grey instead of colour.")] = False,
    train_backbone: Annotated[bool, typer.Option("--train-backbone", help="Let the method train the network too.")] = False,
    canaries: Annotated[float, typer.Option(help="The share of what arrives that is kept aside to notice losses.")] = 0.05,
    limit: Annotated[float, typer.Option(help="How far a class's score may fall before an update is held back.")] = 0.2,
    keep: Annotated[int, typer.Option(help="How many versions can be rolled back to.")] = 10,
    forgettable: Annotated[
        bool, typer.Option("--forgettable/--not-forgettable", help="Keep what exact forgetting needs.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Decides all randomness.")] = 0,
) -> None:
    """Make a model directory, which knows nothing yet."""
    from latewood.core.configure import merged, parse_assignments
    from latewood.model.model import Model

    settings = parse_assignments(set or [])
    wanted: Any = settings.pop("backbone", None)
    if backbone is not None:
        wanted = merged({"name": backbone}, wanted if isinstance(wanted, dict) else {})
    model = Model.init(
        folder,
        kind="text" if text else "images",
        backbone=wanted,
        method=method,
        settings=settings,
        size=size,
        channels=1 if grey else 3,
        train_backbone=train_backbone,
        canaries=canaries,
        limit=limit,
        keep=keep,
        forgettable=forgettable,
        seed=seed,
    )
    typer.echo(f"{folder} is ready: {model.version.about}. Next: latewood learn {folder} DATA")


@app.command(rich_help_panel=PANEL)
def learn(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="A folder of images by class, a table of texts and labels, or a hub data set.")],
    source: Annotated[str | None, typer.Option(help="What to call it in the log and to forget (default: its path).")] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts or images.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what can't be used, and list it.")] = False,
    wait: Wait = 0.0,
    json: Json = False,
) -> None:
    """Learn what arrived; exit status 3 if the update costs a class too much and waits to be accepted."""
    from latewood.cli.show_model import outcome_json, show_outcome

    model = _open(folder)
    outcome = model.learn(data, source=source, text=text, label=label, skip_bad=skip_bad, wait=wait)
    _print_json(outcome_json(outcome)) if json else show_outcome(model, outcome)
    if outcome.held:
        raise typer.Exit(HELD_BACK)


@app.command(rich_help_panel=PANEL)
def predict(
    folder: Folder,
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Images, folders of images, or tables; none: lines of text on standard input.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name for each.", min=1)] = 1,
    json: Json = False,
) -> None:
    """Say what images or texts are, and how sure that is."""
    from latewood.cli.show_model import show_guesses
    from latewood.core.errors import DataError

    model = _open(folder)
    if not inputs and model.kind == "images":
        raise DataError("Name an image, or a folder of images.")
    if inputs:
        found = [pair for one in inputs for pair in model.predict_named(one, top=top)]
    else:
        lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        found = list(zip(lines, model.predict(lines, top=top), strict=True)) if lines else []
    if json:
        rows = [{"input": name, "guesses": [guess._asdict() for guess in guesses]} for name, guesses in found]
        _print_json({"version": model.version.number, "predictions": rows})
    else:
        show_guesses(found)


@app.command(rich_help_panel=PANEL)
def log(folder: Folder, json: Json = False) -> None:
    """List the versions: when, from what, how many samples and classes, scores, and what was lost."""
    from latewood.cli.show_model import log_json, show_log

    model = _open(folder)
    _print_json(log_json(model)) if json else show_log(model)


@app.command(rich_help_panel=PANEL)
def diff(
    folder: Folder,
    first: Annotated[int, typer.Argument(help="A version.")],
    second: Annotated[int, typer.Argument(help="Another version.")],
    json: Json = False,
) -> None:
    """Show what changed between two versions: classes, scores, predictions that flipped."""
    from latewood.cli.show_model import difference_json, show_difference

    found = _open(folder).diff(first, second)
    _print_json(difference_json(found)) if json else show_difference(found)


@app.command(rich_help_panel=PANEL)
def rollback(folder: Folder, number: Annotated[int, typer.Argument(help="A version.")], wait: Wait = 0.0) -> None:
    """Go back to an earlier version, as a new one."""
    version = _open(folder).rollback(number, wait=wait)
    typer.echo(f"Version {version.number} is what version {number} was.")


@app.command(rich_help_panel=PANEL)
def forget(
    folder: Folder,
    name: Annotated[str | None, typer.Option("--class", help="A class.")] = None,
    source: Annotated[str | None, typer.Option(help="A source, as the log names it.")] = None,
    wait: Wait = 0.0,
) -> None:
    """Forget a class or a source: the model as if it had never seen it, and no trace of it in the directory."""
    model = _open(folder)
    version = model.forget(name=name, source=source, wait=wait)
    gone = f"; {len(version.removes)} earlier versions that knew it are removed" if version.removes else ""
    typer.echo(f"Version {version.number} has forgotten {version.about}{gone}.")


@app.command(rich_help_panel=PANEL)
def accept(folder: Folder, wait: Wait = 0.0) -> None:
    """Use the update that the gate holds back."""
    typer.echo(f"Version {_open(folder).accept(wait=wait).number} is in use.")


@app.command(rich_help_panel=PANEL)
def reject(folder: Folder, wait: Wait = 0.0) -> None:
    """Throw away the update that the gate holds back."""
    model = _open(folder)
    model.reject(wait=wait)
    typer.echo(f"Version {model.version.number} stays in use.")


@app.command(rich_help_panel=PANEL)
def export(
    folder: Folder,
    onnx: Annotated[
        Path | None, typer.Option(help="Write the model in use as an ONNX file, with its labels beside it.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write the model in use, without samples, as a folder of its own.")] = None,
    hub: Annotated[str | None, typer.Option(help="Upload that folder to the Hugging Face hub, as NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it there.")] = False,
) -> None:
    """Take the model in use elsewhere: as ONNX, as a folder, or to the hub."""
    from latewood.core.errors import ConfigurationError

    if not (onnx or to or hub):
        raise ConfigurationError("Say what to export to: --onnx FILE, --to FOLDER, or --hub NAME.")
    model = _open(folder)
    if onnx:
        model.export_onnx(onnx)
        typer.echo(f"Wrote {onnx} and {onnx.with_suffix('.json')}.")
    if to:
        model.export_folder(to)
        typer.echo(f"Wrote {to}.")
    if hub:
        typer.echo(f"Uploaded to {model.push(hub, private=not public)}.")


@app.command(rich_help_panel=PANEL)
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.", min=0, max=65535)] = 8000,
    private: Annotated[bool, typer.Option("--private", help="Ask for the token to predict and to read, too.")] = False,
) -> None:
    """Serve the model over HTTP, with a page to try it, to correct it and to roll back."""
    from latewood.serve.server import serve as run_server

    run_server(folder, host=host, port=port, private=private)


def _open(folder: Path) -> Model:
    from latewood.model.model import Model

    return Model.open(folder)


def _print_json(value: Any) -> None:
    typer.echo(json_format.dumps(value, indent=1, allow_nan=False))
