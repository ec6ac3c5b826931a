"""What the commands print for people (with rich), and for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latewood.core.registry import Entry
from latewood.papers.ledger import Paper, Result

if TYPE_CHECKING:
    from latewood.core.record import Record

Results = Sequence[tuple[Paper, Sequence[Result]]]


def show_record(record: Record) -> None:
    """The score matrix of one run, and what is read off it."""
    from latewood.core.record import SUMMARY  # brings numpy, for which the listings must not wait

    table = Table(title=f"{record.config.get('method', 'run')}: {record.main}", title_justify="left")
    table.add_column("after", justify="right")
    for probe in record.probes:
        table.add_column(escape(probe.name), justify="right")
    table.add_column("seconds", justify="right")
    for row, scores in zip(record.rows, record.matrix(), strict=True):
        cells = ("" if math.isnan(score) else f"{score:.3f}" for score in scores)
        table.add_row(str(row.index), *cells, f"{row.cost.seconds:.2f}")
    console = Console()
    console.print(table)
    values = {name.replace("_", " "): getattr(record, name) for name in SUMMARY}
    console.print("  ".join(f"{name} [bold]{value:.3f}[/]" for name, value in values.items() if not math.isnan(value)))


def show_entries(entries: Sequence[Entry]) -> None:
    """Names by wing with a line on each."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "wing", ""):
        table.add_column(column)
    for entry in entries:
        table.add_row(f"[bold]{escape(entry.name)}[/]", entry.wing, escape(entry.summary))
    Console().print(table)


def method_json(entry: Entry) -> dict[str, Any]:
    """A method: what can be set, with defaults, and its presets."""
    from latewood.core.configure import parameters_of

    target = entry.load()
    defaults = {n: None if p.default is p.empty else repr(p.default) for n, p in parameters_of(target).items()}
    presets = {
        name: {"stream": preset.stream, "settings": dict(preset.settings), "source": preset.source}
        for name, preset in target.presets.items()
    }
    return {"name": entry.name, "wing": entry.wing, "summary": entry.summary, "parameters": defaults, "presets": presets}


def show_method(entry: Entry) -> None:
    """What a method is, what can be set, and its presets."""
    method, console = method_json(entry), Console(highlight=False)
    console.print(f"[bold]{method['name']}[/] ({method['wing']}): {escape(method['summary'])}")
    for name, default in method["parameters"].items():
        console.print(f"  {name}" + (f" = {escape(default)}" if default else ""))
    for name, preset in method["presets"].items():
        console.print(f"  [bold]--preset {escape(name)}[/]: {escape(preset['stream'])}. {escape(preset['source'])}")


def show_papers(papers: Sequence[Paper]) -> None:
    """All papers, the built ones marked."""
    table = Table(box=None, pad_edge=False)
    for column in ("no.", "name", "built", "kind", "title"):
        table.add_column(column, justify="right" if column == "no." else "left", no_wrap=column in ("name", "built"))
    for paper in papers:
        mark = "[green]yes[/]" if paper.built else "[dim]not yet[/]"
        table.add_row(str(paper.number), paper.name, mark, paper.kind, escape(paper.title))
    Console().print(table)
    Console().print(f"{sum(paper.built for paper in papers)} of {len(papers)} built.")


def show_results(paper: Paper, results: Sequence[Result]) -> None:
    """Each claim of one paper with its verdict and numbers."""
    console = Console()
    console.print(f"[bold]{paper.number} {escape(paper.title)}[/]")
    for result in results:
        if result.verdict is None:
            console.print(f"  [yellow]skipped[/]  {result.claim.name}: {escape(result.reason)}")
            continue
        word = "[green]holds[/]" if result.verdict.holds else "[red]does not hold[/]"
        console.print(f"  {word}  [bold]{result.claim.name}[/]: {escape(result.claim.statement)} ({result.seconds:.0f} s)")
        console.print(f"      {escape(result.verdict.sentence)}")
        console.print("      " + ", ".join(f"{name} {_number(value)}" for name, value in result.verdict.numbers.items()))


def results_json(results: Results) -> list[dict[str, Any]]:
    """The results as plain dictionaries, one for each claim."""
    return [
        {
            "paper": paper.name,
            "number": paper.number,
            "claim": result.claim.name,
            "statement": result.claim.statement,
            "holds": None if result.verdict is None else result.verdict.holds,
            "numbers": {} if result.verdict is None else _finite(result.verdict.numbers),
            "sentence": result.reason if result.verdict is None else result.verdict.sentence,
            "seconds": result.seconds,
        }
        for paper, found in results
        for result in found
    ]


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def markdown_table(results: Results, before: str = "") -> str:
    """The results as the documentation shows them; rows of other papers stay as they are in the table ``before``."""
    checked = {paper.number for paper, _ in results}
    rows = [(row["number"], _markdown_row(row)) for row in results_json(results)]
    for line in before.splitlines():
        number = line.removeprefix("| ").split(" ")[0]
        if number.isdecimal() and int(number) not in checked:
            rows.append((int(number), line))
    lines = ["| paper | claim | verdict | measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *(line for _, line in sorted(rows, key=lambda row: row[0]))]) + "\n"


def _markdown_row(row: Mapping[str, Any]) -> str:
    verdict = {True: "holds", False: "**does not hold**", None: "skipped"}[row["holds"]]
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in row["numbers"].items())
    claim = f"{row['claim']}: {row['statement']}"
    cells = (f"{row['number']} {row['paper']}", claim, verdict, f"{row['sentence']} {numbers}".strip())
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float | None) -> str:
    return "not a number" if value is None or math.isnan(value) else f"{value:.4g}"
