"""The catalogue: every paper is there, well described, cheap to list, and its claims run or say why they do not."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latewood.core.errors import ConfigurationError
from latewood.papers import ledger
from latewood.papers.ledger import Claim, Paper, Verdict, find, papers, run_claims

SHEETS = Path(__file__).parents[3] / "shared" / "papers"
KINDS = {"learner", "scenario", "protocol", "system"}
ALL = papers()

each_paper = pytest.mark.parametrize("paper", ALL, ids=lambda paper: paper.name)


def test_there_are_fifty_papers_in_order_of_their_numbers() -> None:
    assert [paper.number for paper in ALL] == list(range(1, 51))
    for field in ("name", "title", "arxiv", "summary"):
        assert len({getattr(paper, field) for paper in ALL}) == 50, f"two papers share a {field}"


def test_file_names_give_number_and_name() -> None:
    expected = {f"p{paper.number:02d}_{paper.name.replace('-', '_')}" for paper in ALL}
    assert {file.stem for file in Path(ledger.__file__).parent.glob("p[0-9]*.py")} == expected


@each_paper
def test_a_paper_is_described(paper: Paper) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", paper.name)
    assert paper.title.strip() == paper.title != ""
    assert paper.summary.endswith(".")
    assert "  " not in paper.summary
    kinds = paper.kind.split(" + ")
    assert set(kinds) <= KINDS
    assert len(set(kinds)) == len(kinds)
    assert not paper.arxiv or re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", paper.arxiv)


@each_paper
def test_a_module_opens_with_the_title_and_its_code_exists(paper: Paper) -> None:
    module = importlib.import_module(f"latewood.papers.p{paper.number:02d}_{paper.name.replace('-', '_')}")
    assert (module.__doc__ or "").split("\n")[0] == paper.title
    for path in paper.code:
        home, attribute = path.split(":")
        assert hasattr(importlib.import_module(home), attribute), path


@each_paper
def test_claims_have_distinct_names(paper: Paper) -> None:
    names = [claim.name for claim in paper.claims]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(not SHEETS.is_dir(), reason="the papers' spec sheets do not lie beside the repository")
def test_the_spec_sheets_agree() -> None:
    sheets = {sheet.stem: sheet.read_text(encoding="utf-8") for sheet in SHEETS.glob("[0-9][0-9]-*.md")}
    assert sorted(sheets) == [f"{paper.number:02d}-{paper.name}" for paper in ALL]
    for paper in ALL:
        sheet = sheets[f"{paper.number:02d}-{paper.name}"]
        assert paper.title in sheet.split("\n")[0]
        assert paper.arxiv in sheet


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys; from latewood.papers.ledger import papers; print(len(papers()), *sys.modules)"
    listed, *modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert listed == "50"
    assert not {"torch", "numpy", "transformers", "datasets", "sklearn"} & set(modules)


@pytest.mark.parametrize("name", ["nmc", "29", "NMC", " nmc "])
def test_a_paper_is_found_by_name_or_number(name: str) -> None:
    assert find(name).number == 29


def test_a_leading_zero_or_an_underscore_is_understood() -> None:
    assert find("06").name == "teen"
    assert find("cl_survey").number == 15


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"There is no paper 'fertil' \(did you mean 'fetril'\?\)\."):
        find("fertil")


def test_an_unknown_number_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"There is no paper '51' \(their numbers go from 1 to 50\)\."):
        find("51")


def holding() -> Verdict:
    return Verdict(True, {"gap": 0.0}, "The two orders give the same accuracy.")


def paper_with(*claims: Claim, code: tuple[str, ...] = ("latewood.core.run:run",)) -> Paper:
    return Paper(99, "made-up", "A Made-up Paper", "learner", "", "Serves as an example.", code=code, claims=claims)


def test_a_paper_is_built_when_it_has_code_and_claims() -> None:
    claim = Claim("order", "Order does not matter.", holding)
    assert paper_with(claim).built
    assert not paper_with().built
    assert not paper_with(claim, code=()).built


def test_a_claim_without_needs_gets_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    claim = Claim("order", "Order does not matter.", holding)
    (result,) = run_claims(paper_with(claim))
    assert (result.claim, result.verdict, result.reason) == (claim, holding(), "")
    assert result.seconds > 0


def test_a_claim_is_skipped_when_its_data_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def must_not_run() -> Verdict:
        raise AssertionError("a check without its data was run")

    paper = paper_with(Claim("faraway", "It holds on letters.", must_not_run, needs="letters"), Claim("here", "Yes.", holding))
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    skipped, checked = run_claims(paper)
    assert skipped.verdict is None
    assert skipped.reason == f"It needs the data set 'letters', which is not in {tmp_path} (LATEWOOD_DATA)."
    assert skipped.seconds == 0
    assert checked.verdict == holding()

    monkeypatch.delenv("LATEWOOD_DATA")
    skipped, _ = run_claims(paper)
    assert skipped.reason == "It needs the data set 'letters'; set LATEWOOD_DATA to the folder that holds it."


def test_a_claim_runs_when_its_data_is_present(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    (result,) = run_claims(paper_with(Claim("letters", "It holds on letters.", holding, needs="letters")))
    assert result.verdict == holding()


def test_an_error_in_a_check_is_raised() -> None:
    def broken() -> Verdict:
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        run_claims(paper_with(Claim("broken", "It fails.", broken)))
