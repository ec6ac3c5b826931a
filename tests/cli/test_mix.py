"""`latewood mix plan`: what it prints and writes, what it takes up again, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from typer.testing import CliRunner

from latewood.cli.mix import app
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, LatewoodError
from latewood.core.seeding import seeded
from latewood.language.corpora import pack
from latewood.language.nets import causal
from latewood.studies.cmr import Plan
from latewood.studies.cmr.run import AtShare

PROSE = "\n\n".join(topics[name] for name in sorted(topics) if name.islower())[:60_000]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with English prose and a small model of bytes."""
    place = tmp_path_factory.mktemp("mix")
    (place / "prose.txt").write_text(PROSE)
    with seeded("weights"):
        network = causal(pack([PROSE[:100]], length=32)[:1], layers=1, width=16, heads=2)
    network.save(place / "model")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def latewood(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


WHAT = ("--model", "model", "--general", "prose.txt", "--domain", "python", "--length", 32, "--blocks", 200, "--seen", 0.5)
HOW = ("--ratios", "1/4,1/2,3/4", "--steps", 30, "--every", 3, "--held-out", 8, "--set", "recipe.lr=3e-3", "--device", "cpu")
HOW = (*HOW, "--set", "recipe.batch_size=8")


@pytest.fixture(scope="module")
def planned(place: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return latewood(*WHAT, *HOW, "--eps", 0.5, "--to", "done")


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AtShare, "begin", lambda learner, experience: pytest.fail("it trained"))


def test_it_says_the_share_what_binds_and_how_it_depends_on_the_tolerance(planned: str) -> None:
    plan = Plan.from_json(Path("done/plan.json").read_text())
    assert plan.describe() in planned
    assert [row.eps for row in plan.sensitivity] == [0.25, 0.5, 1.0]
    assert [row.ratio for row in plan.ratios] == [0.25, 0.5, 0.75]
    assert "100 units are 30 steps, 7,680 tokens" in planned
    assert Path("done/plot.svg").read_text().startswith("<?xml")
    assert sorted(file.name for file in Path("done/curves").iterdir()) == ["0.25.json", "0.5.json", "0.75.json"]


def test_the_same_command_with_another_tolerance_trains_nothing(planned: str, nothing_runs: None) -> None:
    told = latewood(*WHAT, *HOW, "--eps", 5, "--to", "done")
    assert "With a tolerance of 10" in told
    assert Plan.from_json(Path("done/plan.json").read_text()).eps == 5


def test_curves_that_are_there_need_no_model_and_no_text(planned: str, nothing_runs: None) -> None:
    before = Path("done/plan.json").read_text()
    told = json.loads(latewood("--curves", "done", "--eps", 2, "--to", "again", "--json"))
    assert Plan.from_json(json.dumps(told)) == Plan.from_json(Path("again/plan.json").read_text())
    assert told["eps"] == 2
    assert Path("done/plan.json").read_text() == before


def test_a_budget_beyond_the_runs_is_told_as_an_extrapolation(planned: str) -> None:
    told = latewood("--curves", "done", "--eps", 5, "--budget", 90, "--to", "far")
    plan = Plan.from_json(Path("far/plan.json").read_text())
    assert (plan.budget, plan.extrapolated) == (300.0, True)
    assert ("an extrapolation" in told) == (plan.ratio is not None)


def test_a_folder_without_curves_is_told(place: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no curves"):
        latewood("--curves", place / "model")


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "no model": (
        ("--general", "prose.txt", "--domain", "python"),
        "needs a model .*--model; `latewood pretrain-text` makes one",
    ),
    "no text": (("--model", "model", "--domain", "python"), "name them with --general and --domain"),
    "no number": (
        (*WHAT, "--ratios", "1/4,half"),
        "Ratios are numbers or fractions, such as .* 'half'|but they are '1/4,half'",
    ),
    "too few": ((*WHAT, "--ratios", "1/4,1/2,1"), "runs at 3 ratios between 0 and 1 at least, but there are 2"),
    "outside": ((*WHAT, "--ratios", "1/4,1/2,3/2"), "different numbers from 0 to 1"),
    "no such field": ((*WHAT, "--set", "recipe.learning_rate=1"), "mix plan.recipe has no field 'learning_rate'"),
    "a falling rate": ((*WHAT, "--set", "recipe.decay=linear"), "must be constant"),
    "few looks": ((*WHAT, "--steps", 20, "--every", 10), "look more often"),
    "no tolerance": ((*WHAT, "--eps", -1), "eps must be a number at least 0"),
    "curves and a model": (("--curves", "done", "--model", "model"), "leave out --model"),
    "no such model": ((*WHAT, "--model", "./nowhere", "--tokenizer", "bytes"), "There is no folder './nowhere'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_told_in_one_sentence_before_anything_is_written(name: str) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(LatewoodError, match=message):
        latewood(*arguments, "--to", "refused")
    assert not Path("refused").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(place: Path) -> None:
    with seeded("weights"):
        small = causal(Data(tokens=pack([PROSE[:100]], length=32)["tokens"])[:1], layers=1, width=16, heads=2, vocabulary=100)
    if not Path("small").exists():
        small.save(place / "small")
    with pytest.raises(ConfigurationError, match=r"'bytes' has 257 tokens, but the model 'small' knows 100"):
        latewood(*WHAT, "--model", "small", "--to", "refused")
    assert not Path("refused").exists()


def test_help_needs_nothing_heavy() -> None:
    code = "import sys; import latewood.cli.mix; print(sorted({'torch', 'numpy', 'transformers', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
