"""papers and check: what is built, what its claims measured, and an exit status that scripts can rely on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from latewood.cli.main import app
from latewood.core.errors import ConfigurationError
from latewood.papers import ledger
from latewood.papers.ledger import Claim, Paper, Verdict


def good() -> Verdict:
    return Verdict(True, {"replay": 0.75, "fine-tuning": 0.5}, "Replay is 25 points above.")


def bad() -> Verdict:
    return Verdict(False, {"gap": -0.125}, "It is 12.5 points below.")


def broken() -> Verdict:
    raise ZeroDivisionError("a defect in the check")


GOOD, BAD = Claim("better", "Replay is better.", good), Claim("much-better", "It is much better.", bad)
SKIPPED = Claim("elsewhere", "It holds on photographs.", good, needs="photographs")


def paper(number: int, name: str, *claims: Claim) -> Paper:
    return Paper(number, name, f"On {name} [draft]", "learner", "", "Pretends.", code=("a:B",) if claims else (), claims=claims)


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Five pretended papers, and no data."""
    everything = [
        paper(1, "sound", GOOD),
        paper(2, "mixed", GOOD, BAD),
        paper(3, "absent", SKIPPED),
        paper(4, "unbuilt"),
        paper(5, "wrong", Claim("any", "Any.", broken)),
    ]
    monkeypatch.setattr(ledger, "papers", lambda: everything)
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def latewood(*arguments: object) -> Result:
    """What a command prints, and its status; an error that it ends in is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def without(*names: str) -> Callable[[], list[Paper]]:
    kept = [one for one in ledger.papers() if one.name not in names]
    return lambda: kept


# papers


def test_the_fifty_papers_are_listed_for_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plain = strict(latewood("papers", "--json").stdout)
    assert [one["number"] for one in plain] == list(range(1, 51))
    assert all(set(one) == {"number", "name", "title", "kind", "built"} for one in plain)
    built = {one["name"] for one in plain if one["built"]}
    assert built == {one.name for one in ledger.papers() if one.code and one.claims}
    assert {"g-acil", "nmc"} <= built


def test_papers_for_people_marks_what_is_built() -> None:
    lines = latewood("papers").stdout.splitlines()
    assert lines[1].split()[:3] == ["1", "sound", "yes"]
    assert lines[4].split()[:4] == ["4", "unbuilt", "not", "yet"]
    assert all("[draft]" in line for line in lines[1:6])
    assert lines[-1] == "4 of 5 built."


# check


@pytest.mark.parametrize("name", ["sound", "SOUND", "1"])
def test_a_paper_is_checked_by_its_name_or_number(name: str) -> None:
    result = latewood("check", name)
    assert result.exit_code == 0
    assert "1 On sound [draft]" in result.stdout
    assert "holds  better: Replay is better." in result.stdout
    assert "Replay is 25 points above." in result.stdout
    assert "replay 0.75, fine-tuning 0.5" in result.stdout


def test_a_claim_that_does_not_hold_is_shown_with_its_numbers_and_ends_in_status_4() -> None:
    result = latewood("check", "mixed")
    assert result.exit_code == 4
    assert "holds  better" in result.stdout
    assert "does not hold  much-better: It is much better." in result.stdout
    assert "gap -0.125" in result.stdout


def test_a_claim_whose_data_is_absent_is_skipped_with_the_reason() -> None:
    result = latewood("check", "absent")
    assert result.exit_code == 0
    assert "skipped  elsewhere: It needs the data set 'photographs'; set LATEWOOD_DATA" in result.stdout


def test_a_defect_in_a_check_is_no_verdict() -> None:
    with pytest.raises(ZeroDivisionError):
        latewood("check", "wrong")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("unbuilt",), r"Paper 4 \(unbuilt\) is not built yet, so it has no claims to check"),
        (("4", "--json"), r"Paper 4 \(unbuilt\) is not built yet"),
        (("sounds",), r"There is no paper 'sounds' \(did you mean 'sound'\?\)"),
        (("6",), r"There is no paper '6' \(their numbers go from 1 to 5\)"),
        ((), "Name one paper, or say --all"),
        (("sound", "--all"), "Name one paper, or say --all"),
    ],
)
def test_what_can_not_be_checked_gets_a_sentence(arguments: tuple[str, ...], sentence: str, shelf: Path) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        latewood("check", *arguments, "--table", "results.md")
    assert not list(shelf.iterdir())


def test_all_means_every_paper_that_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "papers", without("wrong"))
    result = latewood("check", "--all", "--json")
    assert result.exit_code == 4
    assert [(one["paper"], one["claim"]) for one in strict(result.stdout)] == [
        ("sound", "better"),
        ("mixed", "better"),
        ("mixed", "much-better"),
        ("absent", "elsewhere"),
    ]
    monkeypatch.setattr(ledger, "papers", without("wrong", "mixed"))
    assert latewood("check", "--all").exit_code == 0


def test_results_for_scripts_hold_verdict_numbers_and_words() -> None:
    one, two = strict(latewood("check", "mixed", "--json").stdout)
    assert one.pop("seconds") >= 0
    assert one == {
        "paper": "mixed",
        "number": 2,
        "claim": "better",
        "statement": "Replay is better.",
        "holds": True,
        "numbers": {"replay": 0.75, "fine-tuning": 0.5},
        "sentence": "Replay is 25 points above.",
    }
    assert (two["holds"], two["numbers"]) == (False, {"gap": -0.125})
    (skipped,) = strict(latewood("check", "absent", "--json").stdout)
    assert (skipped["holds"], skipped["numbers"], skipped["seconds"]) == (None, {}, 0)
    assert "photographs" in skipped["sentence"]


def test_a_number_that_is_none_does_not_lose_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim("odd", "It is odd.", lambda: Verdict(True, {"defined": 1.0, "undefined": math.nan}, "It is."))
    monkeypatch.setattr(ledger, "papers", lambda: [paper(1, "odd", claim)])
    (result,) = strict(latewood("check", "odd", "--json").stdout)
    assert result["numbers"] == {"defined": 1.0, "undefined": None}


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_table_is_markdown_and_is_written_whatever_the_verdict(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> None:
    monkeypatch.setattr(ledger, "papers", without("wrong"))
    assert latewood("check", "--all", "--table", "docs/results.md").exit_code == 4
    lines = (shelf / "docs" / "results.md").read_text().splitlines()
    assert cells(lines[0]) == ["paper", "claim", "verdict", "measured"]
    assert lines[1] == "|---|---|---|---|"
    rows = [cells(line) for line in lines[2:]]
    assert [row[2] for row in rows] == ["holds", "holds", "**does not hold**", "skipped"]
    assert rows[2][:2] == ["2 mixed", "much-better: It is much better."]
    assert rows[2][3].split() == ["It", "is", "12.5", "points", "below.", "gap", "-0.125"]


def test_a_bar_in_a_sentence_does_not_break_the_table(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> None:
    claim = Claim("norm", "|W - W*| is small.", lambda: Verdict(True, {"|W - W*|": 0.0}, "It is |0|."))
    monkeypatch.setattr(ledger, "papers", lambda: [paper(1, "bars", claim)])
    latewood("check", "bars", "--table", "results.md")
    row = cells((shelf / "results.md").read_text().splitlines()[2])
    assert row == ["1 bars", "norm: |W - W*| is small.", "holds", "It is |0|. |W - W*| 0"]
