"""``latewood mix``: which share of new text a language model bears beside old."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latewood.studies.cmr import Curve, Plan

app = typer.Typer(no_args_is_help=True)

TO = Path("runs/mix")


@app.callback()
def mix() -> None:
    """Which share of new text a language model bears beside old."""


@app.command()
def plan(
    model: Annotated[str | None, typer.Option(help="A folder in the hub's form, or a name on the hub.")] = None,
    general: Annotated[
        str | None, typer.Option(help="Text like that of pre-training; several corpora are joined by +, such as en+fr.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="The text to learn; several corpora are joined by +.")] = None,
    ratios: Annotated[
        str, typer.Option(help="The domain shares to run, separated by commas; three between 0 and 1 at least.")
    ] = "1/8,1/4,1/3,1/2,3/4,1",
    steps: Annotated[int, typer.Option(help="The length of each run.", min=1)] = 500,
    every: Annotated[int | None, typer.Option(help="Look after so many steps (default: fifty times a run).", min=1)] = None,
    budget: Annotated[int | None, typer.Option(help="Plan for so many steps (default: those of a run).", min=1)] = None,
    eps: Annotated[float, typer.Option(help="How far the general loss may rise, in nats a token.")] = 0.05,
    lam: Annotated[float, typer.Option(help="What a nat of the general loss weighs against one of the domain's.")] = 1000.0,
    length: Annotated[int, typer.Option(help="The tokens in a row.")] = 256,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the model's own, or bytes where it has none.")] = None,
    blocks: Annotated[int | None, typer.Option(help="The most rows of a corpus (default: all).")] = None,
    held_out: Annotated[int, typer.Option(help="The most held-out rows of a corpus.")] = 64,
    seen: Annotated[
        float,
        typer.Option(help="How much of each general corpus, from its beginning, the model has seen: a share, or rows."),
    ] = 0.0,
    set: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe, such as recipe.lr=1e-4.")] = None,
    seed: Annotated[int, typer.Option(help="Decides in which order rows come.")] = 0,
    curves: Annotated[Path | None, typer.Option(help="Plan from the curves in this folder; nothing is trained.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Keep curves and plan here; the same command continues (default: runs/mix).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")] = False,
) -> None:
    """Say how much domain text to mix in, from a few short runs at several shares."""
    from latewood.core.configure import build, parse_assignments
    from latewood.core.errors import ConfigurationError
    from latewood.studies.cmr import load_curves, measure
    from latewood.studies.cmr import plan as make_plan
    from latewood.studies.cmr.critical import FEWEST_RATIOS, check_question, check_ratios
    from latewood.studies.cmr.laws import UNITS
    from latewood.studies.cmr.run import study_recipe

    check_question(UNITS, eps, lam)
    if curves is None:
        shares = _shares(ratios)
        check_ratios(shares, inside=FEWEST_RATIOS)
        recipe = build(study_recipe, parse_assignments(set or []), "mix plan")
        network, texts = _ready(model, general, domain, tokenizer, seen, length=length, blocks=blocks, held_out=held_out)
        place = to or TO
        how: dict[str, Any] = {"steps": steps, "every": every, "recipe": recipe, "seed": seed, "device": device}
        measured = measure(network, *texts, shares, to=place, **how)
        facts = load_curves(place)[1]
    else:
        if model or general or domain:
            raise ConfigurationError("--curves plans from what is measured already; leave out --model, --general and --domain.")
        place = to or curves
        measured, facts = load_curves(curves)
    length_of_run = facts["recipe"]["steps"]
    units = UNITS if budget is None else UNITS * budget / length_of_run
    found = make_plan(measured, units, eps, lam, seed=seed)
    _write(found, measured, place)
    if json:
        typer.echo(found.to_json())
        return
    typer.echo(found.describe())
    tokens = length_of_run * facts["tokens_per_step"]
    typer.echo(f"{UNITS:g} units are {length_of_run:,} steps, {tokens:,} tokens. Wrote {place / 'plan.json'} and plot.svg.")


def _ready(
    model: str | None, general: str | None, domain: str | None, tokenizer: str | None, seen: float, **how: Any
) -> tuple[Any, tuple[Any, Any]]:
    """The model, and both sides of the mixture in its tokens."""
    from latewood.core.errors import ConfigurationError
    from latewood.language.corpora import load_tokenizer
    from latewood.language.nets import causal
    from latewood.studies.cmr import load_text

    if model is None:
        raise ConfigurationError("A plan needs a model to copy: name one with --model; `latewood pretrain-text` makes one.")
    if general is None or domain is None:
        raise ConfigurationError("A plan needs two kinds of text: name them with --general and --domain.")
    tokens = load_tokenizer(tokenizer or _tokenizer_of(model))
    texts = load_text(general, tokenizer=tokens, seen=seen, **how), load_text(domain, tokenizer=tokens, **how)
    network = causal(texts[0].train[:1], name=model)
    if tokens.size > network.vocabulary:
        raise ConfigurationError(
            f"The tokenizer {tokens.name!r} has {tokens.size} tokens, but the model {model!r} knows {network.vocabulary}; name "
            "its own with --tokenizer."
        )
    return network, texts


def _tokenizer_of(model: str) -> str:
    folder = Path(model).expanduser()
    has_none = folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab.*"))
    return "bytes" if has_none else model


def _shares(text: str) -> list[float]:
    from fractions import Fraction

    from latewood.core.errors import ConfigurationError

    try:
        return [float(Fraction(part.strip())) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise ConfigurationError(f"Ratios are numbers or fractions, such as 1/8,0.25,1/2, but they are {text!r}.") from None


def _write(plan: Plan, curves: Sequence[Curve], folder: Path) -> None:
    from latewood.core.files import write_atomically
    from latewood.studies.cmr import plot

    write_atomically(folder / "plan.json", plan.to_json())
    plot(plan, curves, folder / "plot.svg")
