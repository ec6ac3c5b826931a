"""Every command does what its help says, for people and, with ``--json``, for scripts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from latewood import Experience, Record, run
from latewood.cli.main import app
from latewood.core import registry
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.images.learners.nmc import NMC
from latewood.images.nets import pixels
from latewood.images.streams.split import split
from latewood.studies.assemble import make_stream

COMMANDS = ("run", "compare", "report", "methods", "streams", "papers", "check")
SPLIT = ("--stream", "split-digits", "--device", "cpu")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty; and a terminal wide enough for every table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def latewood(*arguments: object) -> Result:
    """What a command prints; an error that it ends in is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def parsed(result: Result) -> Any:
    """Standard output, which must be JSON as any program reads it, and nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse)


# Help


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=lambda command: " ".join(command) or "all")
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_there_in_both_spellings(command: tuple[str, ...], option: str) -> None:
    output = latewood(*command, option).stdout
    assert "Usage: latewood" in " ".join(output.split())
    if not command:
        assert all(name in output for name in COMMANDS)


def test_without_a_command_it_shows_its_help() -> None:
    result = CliRunner().invoke(app, [])
    assert "Usage: latewood" in " ".join(result.output.split())
    assert all(name in result.output for name in COMMANDS)


# run


def test_run_prints_the_score_after_every_arrival() -> None:
    result = latewood("run", "nmc", *SPLIT, "--set", "stream.steps=2")
    record = run(NMC(pixels(split("digits").example)), split("digits", steps=2), device="cpu")
    lines, words = result.stdout.splitlines(), result.stdout.split()
    for row in record.rows:
        shown = next(line.split() for line in lines if line.startswith(f"│ {row.index:>5}"))
        scores = [f"{score:.3f}" for score in row.scores["accuracy"] if score is not None]
        assert shown[3 : 3 + 2 * len(scores) : 2] == scores
    for name in ("last", "average", "forgetting"):
        assert f"{name} {getattr(record, name):.3f}" in " ".join(words)
    assert "split-digits: 2 experiences, 2 probes" in result.stderr


def test_run_as_json_is_the_record_and_nothing_else() -> None:
    result = latewood("run", "nmc", *SPLIT, "--seed", 3, "--json")
    plain = parsed(result)
    record = Record.from_json(plain)
    stream = split("digits", seed=3)
    assert record.repeatable()["rows"] == run(NMC(pixels(stream.example)), stream, device="cpu", seed=3).repeatable()["rows"]
    assert (plain["config"]["method"], plain["config"]["seed"], plain["config"]["stream"]["seed"]) == ("nmc", 3, 3)
    assert plain["summary"]["accuracy"]["last"] == record.last
    assert plain["summary"]["accuracy"]["forward_transfer"] is None
    assert result.stderr == ""


def test_run_scores_unseen_probes_on_demand() -> None:
    plain = parsed(latewood("run", "nmc", *SPLIT, "--transfer", "--json"))
    assert plain["summary"]["accuracy"]["forward_transfer"] is not None


def test_run_takes_settings_of_method_stream_and_backbone() -> None:
    settings = ["memory=30", "recipe.epochs=1", "lr=0.5", "stream.steps=2", "stream.base=8", "backbone.name=mlp"]
    words = [word for setting in [*settings, "backbone.width=9"] for word in ("--set", setting)]
    config = parsed(latewood("run", "replay", *SPLIT, "--json", *words))["config"]
    learner = config["learner"]
    assert (learner["memory"], learner["recipe"]["epochs"], learner["recipe"]["lr"]) == (30, 1, 0.5)
    assert (config["stream"]["steps"], config["stream"]["base"]) == (2, 8)
    assert (learner["backbone"]["name"], learner["backbone"]["width"]) == ("mlp", 9)


def test_a_configuration_file_holds_settings_and_the_command_line_goes_before_it(place: Path) -> None:
    (place / "mine.toml").write_text(
        'memory = 50\n[recipe]\nlr = 0.1\nepochs = 1\n[stream]\nsteps = 2\nbase = 6\n[backbone]\nname = "mlp"\nwidth = 8\n'
    )
    given = ("--config", "mine.toml", "--set", "memory=20", "--set", "recipe.lr=0.5", "--set", "stream.base=7")
    config = parsed(latewood("run", "replay", *SPLIT, "--json", *given))["config"]
    learner = config["learner"]
    assert (learner["memory"], learner["recipe"]["lr"], config["stream"]["base"]) == (20, 0.5, 7)
    assert (learner["recipe"]["epochs"], config["stream"]["steps"], learner["backbone"]["width"]) == (1, 2, 8)


def test_a_configuration_file_for_many_methods_serves_each_alone_but_no_misspelt_name(place: Path) -> None:
    text = "memory = 50\nexpansion = 40\n[stream]\nsteps = 2\n[nmc]\nnormalise = false\n[icarl]\nepochs = 1\n"
    (place / "many.toml").write_text(text)
    (place / "misspelt.toml").write_text("memroy = 50\n")
    assert parsed(latewood("run", "nmc", *SPLIT, "--config", "many.toml", "--json"))["config"]["learner"]["normalise"] is False
    assert parsed(latewood("run", "g-acil", *SPLIT, "--config", "many.toml", "--json"))["config"]["learner"]["expansion"] == 40
    with pytest.raises(ConfigurationError, match="memroy"):
        latewood("run", "nmc", *SPLIT, "--config", "misspelt.toml")
    with pytest.raises(ConfigurationError, match="nmc has no parameter 'memory'"):
        latewood("run", "nmc", *SPLIT, "--set", "memory=50")


def test_run_to_a_folder_keeps_it_and_the_second_time_returns_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("run", "nmc", *SPLIT, "--to", "out/mine", "--json")
    first = parsed(latewood(*arguments))
    assert json.loads((place / "out" / "mine" / "record.json").read_text()) == first

    def learn(self: NMC, experience: Experience) -> None:
        raise AssertionError("it learns again")

    monkeypatch.setattr(NMC, "learn", learn)
    began = time.monotonic()
    assert parsed(latewood(*arguments)) == first
    assert time.monotonic() - began < 1


def test_run_to_a_folder_of_another_run_is_refused_and_changes_nothing(place: Path) -> None:
    latewood("run", "nmc", *SPLIT, "--to", "out")
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=r"out holds another run: .*seed is 0 there and 1 here"):
        latewood("run", "nmc", *SPLIT, "--to", "out", "--seed", 1)
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


def test_another_spelling_of_a_method_is_the_same_run() -> None:
    first = parsed(latewood("run", "G_ACIL", *SPLIT, "--set", "expansion=30", "--to", "out", "--json"))
    assert first["config"]["method"] == "g-acil"
    assert parsed(latewood("run", "g-acil", *SPLIT, "--set", "expansion=30", "--to", "out", "--json")) == first


# compare and report


def test_compare_prints_a_table_and_writes_page_and_records(place: Path) -> None:
    given = ("--seeds", 2, "--transfer", "--to", "out", "--set", "stream.steps=2")
    output = latewood("compare", "nmc", "slda", *SPLIT, *given).stdout
    assert "nmc" in output
    assert "slda" in output
    assert f"Report: {Path('out/report.html')}" in output
    assert "slda" in (place / "out" / "report.html").read_text()
    found = sorted(str(file.parent.relative_to(place)) for file in place.rglob("record.json"))
    assert found == ["out/nmc/seed-0", "out/nmc/seed-1", "out/slda/seed-0", "out/slda/seed-1"]
    assert all(Record.load(place / folder).baseline is not None for folder in found)


def test_compare_as_json_holds_scores_and_costs_of_every_method_the_best_first(place: Path) -> None:
    plain = parsed(latewood("compare", "nmc", "slda", *SPLIT, "--seeds", 2, "--to", "out", "--json"))
    assert (plain["experiences"], plain["higher_is_better"], plain["stream"]["name"]) == (5, {"accuracy": True}, "split-digits")
    last = {m["method"]: m["scores"]["accuracy"]["last"]["mean"] for m in plain["methods"]}
    assert list(last) == sorted(last, key=lambda method: -last[method]) == ["slda", "nmc"]
    for method in plain["methods"]:
        records = [Record.load(place / "out" / method["method"] / f"seed-{seed}") for seed in (0, 1)]
        assert method["seeds"] == [0, 1]
        assert method["scores"]["accuracy"]["last"]["mean"] == pytest.approx(sum(r.last for r in records) / 2)
        assert method["scores"]["accuracy"]["last"]["interval"] is not None
        assert method["costs"]["flops"]["mean"] == pytest.approx(sum(r.cost.flops for r in records) / 2)
    assert (place / "out" / "report.html").exists()


def test_compare_has_a_place_of_its_own_where_none_is_named(place: Path) -> None:
    latewood("compare", "nmc", *SPLIT)
    assert (place / "runs" / "compare" / "report.html").exists()
    assert (place / "runs" / "compare" / "nmc" / "seed-0" / "record.json").exists()


def test_compare_gives_each_method_its_own_and_the_shared_settings(place: Path) -> None:
    (place / "mine.toml").write_text("expansion = 40\n[stream]\nsteps = 2\n[nmc]\nnormalise = false\n")
    given = ("--config", "mine.toml", "--set", "g-acil.expansion=60", "--set", "backbone.name=pixels")
    latewood("compare", "nmc", "g-acil", *SPLIT, "--to", "out", *given)
    nmc, gacil = (Record.load(place / "out" / method / "seed-0").config for method in ("nmc", "g-acil"))
    assert nmc["learner"]["normalise"] is False
    assert gacil["learner"]["expansion"] == 60
    assert nmc["stream"]["steps"] == gacil["stream"]["steps"] == 2


def test_compare_again_gives_the_same_numbers_without_learning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("compare", "nmc", *SPLIT, "--to", "out", "--json")
    first = parsed(latewood(*arguments))
    monkeypatch.setattr(NMC, "learn", None)
    assert parsed(latewood(*arguments)) == first


def test_report_makes_table_and_page_from_kept_runs(place: Path) -> None:
    compared = parsed(latewood("compare", "nmc", "slda", *SPLIT, "--to", "out", "--json"))
    page = (place / "out" / "report.html").read_text()
    (place / "out" / "report.html").unlink()
    assert parsed(latewood("report", "out", "--json")) == compared
    assert (place / "out" / "report.html").read_text() == page
    output = latewood("report", "out/nmc", "out/slda", "--out", "pages/two.html").stdout
    assert f"Report: {Path('pages/two.html')}" in output
    assert "slda" in (place / "pages" / "two.html").read_text()


def test_report_on_a_folder_without_runs_is_refused_and_writes_nothing(place: Path) -> None:
    (place / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"No record.json was found in empty or below it there"):
        latewood("report", "empty")
    with pytest.raises(CheckpointError, match=r"missing or below it because it does not exist"):
        latewood("report", "missing")
    assert [file.name for file in place.rglob("*")] == ["empty"]


def test_report_refuses_runs_of_different_streams(place: Path) -> None:
    latewood("run", "nmc", *SPLIT, "--to", "a")
    latewood("run", "slda", "--stream", "rotated-digits", "--device", "cpu", "--to", "b")
    with pytest.raises(ConfigurationError, match="A report is about one stream"):
        latewood("report", "a", "b")


# Lists


@pytest.mark.parametrize(("command", "kind"), [("methods", "learners"), ("streams", "streams")])
def test_lists_name_everything_with_a_line_on_each(command: str, kind: Any) -> None:
    entries = registry.entries(kind)
    plain = parsed(latewood(command, "--json"))
    assert plain == [{"name": e.name, "wing": e.wing, "summary": e.summary} for e in entries]
    assert {"g-acil", "split"} & {entry["name"] for entry in plain}
    assert all(entry["summary"].endswith((".", ")")) and len(entry["summary"]) > 20 for entry in plain)
    output = " ".join(latewood(command).stdout.split())
    for entry in entries:
        assert f"{entry.name} {entry.wing} {entry.summary}" in output


def test_streams_shows_what_arrives_in_one() -> None:
    given = ("streams", "split-digits", "--seed", 2, "--set", "steps=3", "--set", "base=4")
    expected = make_stream("split-digits", {"steps": 3, "base": 4}, seed=2).summary()
    assert latewood(*given).stdout == expected + "\n"
    nested = ("streams", "split-digits", "--seed", 2, "--set", "stream.steps=3", "--set", "stream.base=4")
    assert latewood(*nested).stdout == expected + "\n"


def test_streams_refuses_a_setting_beside_those_of_the_stream() -> None:
    with pytest.raises(ConfigurationError, match="foo"):
        latewood("streams", "split-digits", "--set", "stream.steps=2", "--set", "foo=1")


def test_streams_shows_one_as_json() -> None:
    plain = parsed(latewood("streams", "split-digits", "--set", "steps=2", "--json"))
    assert "split-digits" in json.dumps(plain)
