"""What the commands of a model directory print: for people with rich, for scripts as plain dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from latewood.model.facts import Difference, Guess, Outcome
    from latewood.model.model import Model
    from latewood.model.store import Version

#: Tables of classes show so many.
_MOST_ROWS = 30


def show_outcome(model: Model, outcome: Outcome) -> None:
    """What was learned, each class with its score, and what was lost."""
    console = Console(soft_wrap=True)
    parts = [f"{outcome.added:,} samples"]
    parts += [f"{outcome.relabelled:,} with a new label"] if outcome.relabelled else []
    parts += [f"{outcome.duplicates:,} known before"] if outcome.duplicates else []
    parts += [f"{len(outcome.skipped):,} skipped"] if outcome.skipped else []
    for problem in outcome.skipped:
        console.print(f"  [yellow]skipped[/]  {escape(str(problem))}")
    if not outcome.added and not outcome.relabelled and not outcome.new_classes:
        console.print(f"Nothing new: {', '.join(parts)}. Version {outcome.version.number} is in use.")
        return
    new = f", new: {_listed(outcome.new_classes)}" if outcome.new_classes else ""
    console.print(f"[bold]Version {outcome.version.number}[/]: {', '.join(parts)}{escape(new)}.")
    _show_classes(console, outcome.version, outcome.new_classes)
    for loss in outcome.lost:
        console.print(f"  [red]lost[/]  {escape(loss.label)}: {_percent(loss.before)} -> {_percent(loss.after)}")
    if outcome.held:
        console.print(
            f"[bold red]Held back[/]: this costs {escape(_listed([loss.label for loss in outcome.lost]))} too much. "
            f"Version {model.version.number} stays in use; `latewood accept {model.folder}` takes the update all the same, "
            "`latewood reject` drops it."
        )


def show_guesses(found: Iterable[tuple[str, Sequence[Guess]]]) -> None:
    """A line for each input: tab-separated, so that other programs can read it."""
    for name, guesses in found:
        print(name, *(f"{guess.label}\t{guess.confidence:.3f}" for guess in guesses), sep="\t")


def show_log(model: Model) -> None:
    """The versions, oldest first, and the classes of the one in use."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("version", "when (UTC)", "event", "from", "added", "samples", "classes", "score", "lost"):
        table.add_column(column, justify="right" if column in ("version", "added", "samples", "classes", "score") else "left")
    for version in model.log():
        content = version.content
        scores = [known["score"] for known in content["classes"] if known["score"] is not None]
        lost = ", ".join(f"{loss['label']} {_percent(loss['before'])} -> {_percent(loss['after'])}" for loss in content["lost"])
        mark = "*" if version.number == model.version.number else "?" if version.candidate else " "
        table.add_row(
            f"{mark}{version.number}",
            version.time.removesuffix("Z").replace("T", " "),
            version.event + (" (held back)" if version.candidate else "" if model.available(version) else " (too old)"),
            escape(version.about),
            f"{content['added']:,}",
            f"{content['samples']:,}",
            str(sum(known["samples"] > 0 for known in content["classes"])),
            _percent(sum(scores) / len(scores)) if scores else "-",
            escape(lost),
        )
    console.print(table)
    _show_classes(console, model.version)


def show_difference(found: Difference) -> None:
    """What changed, and nothing that stayed."""
    console = Console()
    first, second = found.first.number, found.second.number
    console.print(f"From version {first} to {second}, on {found.canaries:,} canaries:")
    for word, names in (("gained", found.gained), ("gone", found.gone)):
        if names:
            console.print(f"  {word}: {escape(_listed(names))}")
    for loss in found.scores:
        if loss.before != loss.after:
            colour = "green" if loss.after > loss.before else "red"
            console.print(f"  [{colour}]{escape(loss.label)}[/]: {_percent(loss.before)} -> {_percent(loss.after)}")
    for flip in found.flips[:_MOST_ROWS]:
        arrow = f"{flip.before} -> {flip.after}"
        console.print(f"  {flip.count} of {escape(flip.label)}: {escape(arrow)}")
    if not found.flips:
        console.print("  No prediction flipped.")


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome of learning as plain data."""
    return {**dataclasses.asdict(outcome), "version": version_json(outcome.version)}


def version_json(version: Version) -> dict[str, Any]:
    """What a version tells to scripts."""
    told = {name: getattr(version, name) for name in ("number", "parent", "time", "event", "about", "candidate")}
    return {**told, **{name: version.content[name] for name in ("samples", "added", "classes", "lost")}}


def log_json(model: Model) -> dict[str, Any]:
    """All versions, and which is in use."""
    rows = [{**version_json(version), "available": model.available(version)} for version in model.log()]
    return {"in_use": model.version.number, "versions": rows}


def difference_json(found: Difference) -> dict[str, Any]:
    """What changed, as plain data."""
    told = {**dataclasses.asdict(found), "first": found.first.number, "second": found.second.number}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def _show_classes(console: Console, version: Version, first: Sequence[str] = ()) -> None:
    known: list[Mapping[str, Any]] = sorted(version.content["classes"], key=lambda one: one["name"] not in first)
    table = Table(box=None, pad_edge=False)
    for column in ("class", "samples", "canaries", "score"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for one in known[:_MOST_ROWS]:
        score = "-" if one["score"] is None else _percent(one["score"])
        table.add_row(escape(one["name"]), f"{one['samples']:,}", str(one["canaries"]), score)
    if known:
        console.print(table)
    if len(known) > _MOST_ROWS:
        console.print(f"… and {len(known) - _MOST_ROWS:,} more classes (--json lists them).")


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
