"""``latewood``: every command, its options, and the exit status that scripts can rely on.

0: done, and every checked claim holds. 1: a defect of Latewood. 2: something that the user can put right, told in one
sentence. 3: the gate of a model directory holds an update back. 4: a checked claim does not hold. 130: interrupted; the
same command continues.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latewood.cli import mix, model, pretrain
from latewood.core.errors import LatewoodError

if TYPE_CHECKING:
    from latewood.core.record import Record

# Nothing heavy is imported up here: `latewood --help` and tab completion must answer at once.

app = typer.Typer(
    name="latewood",
    help="Incremental training for PyTorch models: learn from what is new, measure what was forgotten.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

RESEARCH = "Methods, scenarios and papers"
app.registered_commands += [*model.app.registered_commands, *pretrain.app.registered_commands]
app.add_typer(mix.app, name="mix", rich_help_panel=RESEARCH)

USER_ERROR, CLAIM_FAILS, INTERRUPTED = 2, 4, 130


def _methods(incomplete: str) -> list[str]:
    from latewood.core.registry import entries

    return [e.name for e in entries("learners") if e.name.startswith(incomplete)]


def _streams(incomplete: str) -> list[str]:
    from latewood.core.registry import entries

    return [f"{e.name}-" for e in entries("streams") if f"{e.name}-".startswith(incomplete)]


def _papers(incomplete: str) -> list[str]:
    from latewood.papers.ledger import papers

    return [paper.name for paper in papers() if paper.name.startswith(incomplete)]


Method = Annotated[str, typer.Argument(help="A method; `latewood methods` lists them.", autocompletion=_methods)]
Methods = Annotated[list[str], typer.Argument(help="Methods; `latewood methods` lists them.", autocompletion=_methods)]
StreamName = Annotated[
    str | None, typer.Option("--stream", "-s", help="<scenario>-<data set>, such as split-digits.", autocompletion=_streams)
]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="A paper's stream and settings; `latewood methods NAME` lists them.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter, name=value; stream.NAME and backbone.NAME reach those.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of parameters; --set goes before it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Transfer = Annotated[bool, typer.Option("--transfer", help="Also score what is not yet seen, for forward transfer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


@app.command(rich_help_panel=RESEARCH)
def run(
    method: Method,
    stream: StreamName = None,
    preset: PresetName = None,
    seed: Annotated[int, typer.Option(help="Decides class order, initial weights and batches.")] = 0,
    set: Settings = None,
    config: ConfigFile = None,
    to: Annotated[Path | None, typer.Option(help="Keep record and checkpoints here; the same command continues.")] = None,
    device: Device = "auto",
    transfer: Transfer = False,
    json: Json = False,
) -> None:
    """Let one method learn a stream, and score it after every arrival."""
    from latewood.cli.show import show_record
    from latewood.core.registry import find
    from latewood.core.run import run as run_learner
    from latewood.studies.assemble import make_learner, make_stream
    from latewood.studies.compare import settings_of

    stream, settings = _chosen([method], stream, preset, config, set)
    arrivals = make_stream(stream, settings.pop("stream", {}), seed)
    learner = make_learner(method, arrivals, settings_of(method, arrivals.wing, settings), seed)
    if not json:
        typer.echo(arrivals.summary(), err=True)
    name = find("learners", method, arrivals.wing).name
    record = run_learner(learner, arrivals, to=to, seed=seed, device=device, transfer=transfer, settings={"method": name})
    _print_json(record.to_json()) if json else show_record(record)


@app.command(rich_help_panel=RESEARCH)
def compare(
    methods: Methods,
    stream: StreamName = None,
    preset: PresetName = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.", min=1)] = 1,
    set: Settings = None,
    config: ConfigFile = None,
    to: Annotated[Path, typer.Option(help="Where runs and the report go; the same command continues.")] = Path("runs/compare"),
    device: Device = "auto",
    transfer: Transfer = False,
    json: Json = False,
) -> None:
    """Compare methods on one stream: a table, a report, and a record of every run."""
    from latewood.studies.compare import compare as compare_methods

    stream, settings = _chosen(methods, stream, preset, config, set)
    records = compare_methods(methods, stream, seeds=seeds, to=to, settings=settings, device=device, transfer=transfer)
    _report(records, to / "report.html", json)


@app.command(rich_help_panel=RESEARCH)
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold such.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write (default: report.html in the first).")
    ] = None,
    json: Json = False,
) -> None:
    """Make the table and the page from runs that were kept."""
    from latewood.report.summary import load_records

    _report(load_records(folders), out or folders[0] / "report.html", json)


@app.command(rich_help_panel=RESEARCH)
def methods(
    name: Annotated[str | None, typer.Argument(help="Show what can be set, and presets.", autocompletion=_methods)] = None,
    wing: Annotated[str | None, typer.Option(help="Which, where wings have methods of one name.")] = None,
    json: Json = False,
) -> None:
    """List the methods, or show one: what can be set, and its presets."""
    if name is None:
        _list("learners", json)
        return
    from latewood.cli.show import method_json, show_method
    from latewood.core.registry import find

    entry = find("learners", name, wing)
    _print_json(method_json(entry)) if json else show_method(entry)


@app.command(rich_help_panel=RESEARCH)
def streams(
    name: Annotated[str | None, typer.Argument(help="Show what arrives in this stream.", autocompletion=_streams)] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of classes.")] = 0,
    set: Settings = None,
    json: Json = False,
) -> None:
    """List the scenarios, or show one stream arrival by arrival."""
    if name is None:
        _list("streams", json)
        return
    from latewood.core.configure import parse_assignments
    from latewood.studies.assemble import make_stream

    settings = parse_assignments(set or [])
    nested = settings.pop("stream", {})
    stream = make_stream(name, nested if not isinstance(nested, dict) else {**nested, **settings}, seed)
    if json:
        arrivals = [{"index": e.index, "samples": len(e.train), "classes": e.classes, "task": e.task} for e in stream]
        probes = [{"name": p.name, "samples": len(p.data), "since": p.since} for p in stream.probes]
        _print_json({"name": stream.name, "config": stream.config, "experiences": arrivals, "probes": probes})
    else:
        typer.echo(stream.summary())


@app.command(rich_help_panel=RESEARCH)
def papers(json: Json = False) -> None:
    """List the fifty papers and which of them are built."""
    from latewood.cli.show import show_papers
    from latewood.papers.ledger import papers as all_papers

    everything = all_papers()
    if json:
        fields = ("number", "name", "title", "kind", "built")
        _print_json([{name: getattr(paper, name) for name in fields} for paper in everything])
    else:
        show_papers(everything)


@app.command(rich_help_panel=RESEARCH)
def check(
    paper: Annotated[str | None, typer.Argument(help="Name or number of a paper.", autocompletion=_papers)] = None,
    all: Annotated[bool, typer.Option("--all", help="Every paper that is built.")] = False,
    table: Annotated[Path | None, typer.Option(help="Also put the results into the Markdown table here.")] = None,
    json: Json = False,
) -> None:
    """Execute a paper's claims on real data; exit status 4 if one does not hold."""
    from latewood.cli.show import markdown_table, results_json, show_results
    from latewood.core.errors import ConfigurationError
    from latewood.core.files import write_atomically
    from latewood.papers.ledger import find, run_claims
    from latewood.papers.ledger import papers as all_papers

    if all == (paper is not None):
        raise ConfigurationError("Name one paper, or say --all.")
    chosen = [p for p in all_papers() if p.built] if all else [find(paper or "")]
    results = []
    before = table.read_text() if table is not None and table.exists() else ""
    for one in chosen:
        if not one.built:
            raise ConfigurationError(f"Paper {one.number} ({one.name}) is not built yet, so it has no claims to check.")
        found = run_claims(one)
        results.append((one, found))
        if not json:
            show_results(one, found)
        if table is not None:
            write_atomically(table, markdown_table(results, before))
    if json:
        _print_json(results_json(results))
    if any(result.verdict is not None and not result.verdict.holds for _, found in results for result in found):
        raise typer.Exit(CLAIM_FAILS)


def _chosen(
    methods: list[str], stream: str | None, preset: str | None, config: Path | None, assignments: list[str] | None
) -> tuple[str, dict[str, Any]]:
    """The stream, and what --set says, over what of the file concerns these methods, over the preset."""
    from latewood.core.configure import merged, parse_assignments, read_toml
    from latewood.core.errors import ConfigurationError
    from latewood.studies.assemble import stream_entry
    from latewood.studies.compare import relevant
    from latewood.studies.presets import find_preset, under_methods

    said = parse_assignments(assignments or [])
    wing = stream_entry(stream)[0].wing if stream else None
    of_paper: dict[str, Any] = {}
    if preset is not None:
        its_stream, of_paper = find_preset(preset, methods, wing)
        stream = stream or its_stream
    if stream is None:
        raise ConfigurationError("Name a stream with --stream, or a --preset that has one; `latewood streams` lists them.")
    wing = stream_entry(stream)[0].wing
    from_file = relevant(read_toml(config), methods, wing) if config else {}
    own = merged(from_file, said)
    return stream, merged(of_paper, under_methods(own, methods, wing) if preset is not None else own)


def _report(records: list[Record], page: Path, as_json_only: bool) -> None:
    from rich.console import Console

    from latewood.report.page import write_page
    from latewood.report.summary import summarise
    from latewood.report.table import as_json, comparison_table

    write_page(records, page)
    summaries = summarise(records)
    if as_json_only:
        _print_json(as_json(summaries))
    else:
        Console().print(comparison_table(summaries))
        typer.echo(f"Report: {page}")


def _list(kind: Any, as_json: bool) -> None:
    from latewood.cli.show import show_entries
    from latewood.core.registry import entries

    found = entries(kind)
    if as_json:
        _print_json([{"name": e.name, "wing": e.wing, "summary": e.summary} for e in found])
    else:
        show_entries(found)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def main() -> None:
    """Run the command line; errors that the user can put right end in one sentence and status 2."""
    try:
        app(standalone_mode=True)
    except LatewoodError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(USER_ERROR)
    except (SystemExit, KeyboardInterrupt) as end:
        # typer makes an exit of an interrupt that comes within a command.
        if isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED:
            typer.echo("Interrupted; the same command continues where this one stopped.", err=True)
            sys.exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
