"""The exit status that scripts rely on, and the one sentence that people read, with the entry point that is installed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from latewood import Experience, Record
from latewood.cli.main import main
from latewood.images.learners.nmc import NMC
from latewood.papers import ledger
from latewood.papers.ledger import Claim, Paper, Verdict

SCRIPT = shutil.which("latewood", path=str(Path(sys.executable).parent))
SPLIT = ("--stream", "split-digits", "--device", "cpu")


class End(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


class Latewood:
    """Runs the entry point in this process, as the installed script would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> End:
        self.monkeypatch.setattr(sys, "argv", ["latewood", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self.capsys.readouterr()
        return End(int(ended.value.code or 0), printed.out, printed.err)


@pytest.fixture
def latewood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Latewood:
    return Latewood(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder without images, a file, files of settings. Nobody asks the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "today.txt").write_text("no image")
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.toml").write_text("memory = = 3")
    (tmp_path / "number.toml").write_text("stream = 3\n")
    return tmp_path


# 0


def test_what_is_done_ends_in_0(latewood: Latewood) -> None:
    assert latewood("run", "nmc", *SPLIT).status == 0
    assert latewood("methods").status == 0
    assert latewood("--help").status == 0


# 2


USER_ERRORS: list[tuple[str, str]] = [
    ("run fintune -s split-digits", "There is no learner 'fintune' for images (did you mean 'finetune'?)."),
    ("run nmc -s splt-digits", "There is no stream 'splt-digits'"),
    ("run nmc -s split-nowhere", "There is no image data set 'nowhere'"),
    ("run nmc -s split-notes", "notes holds no image data set: expected train*.parquet in it"),
    ("run nmc -s split-file", "file is a file, but a data set is a folder"),
    ("run nmc -s split-digits --set memory=3", "nmc has no parameter 'memory'"),
    ("run replay -s split-digits --set memroy=3", "replay has no parameter 'memroy' (did you mean 'memory'?)."),
    ("run replay -s split-digits --set memory=much", "replay.memory can't be 'much'"),
    ("run replay -s split-digits --set lr=-1", "recipe.lr must be a number of at least 0, but it is -1.0"),
    ("run nmc -s split-digits --set normalise", "'normalise' is not of the form name=value."),
    ("run nmc -s split-digits --set stream.steps=11", "10 classes with a base of 0 can't be divided into 11 arrivals."),
    ("run nmc -s split-digits --set stream.stepz=2", "stream has no parameter 'stepz' (did you mean 'steps'?)."),
    ("run nmc -s split-digits --set backbone=mlpp", "There is no net 'mlpp' for images (did you mean 'mlp'?)."),
    ("run nmc -s split-digits --set backbone.name=mlp --set backbone.width=0", "The width of mlp must be at least 1"),
    ("run nmc -s split-digits --config missing.toml", "missing.toml can't be read: No such file or directory."),
    ("run nmc -s split-digits --config broken.toml", "broken.toml is not TOML"),
    ("run nmc -s split-digits --device tpu", "There is no device 'tpu'; choose auto, cpu, cuda or mps."),
    ("run nmc -s split-digits --to file", "file is a file; a run needs a folder."),
    ("run nmc -s split-digits --to file/below", "Could not write file/below/run.json: Not a directory."),
    ("run nmc -s split-digits --to notes", "notes holds files that are not a run's"),
    ("compare nmc reply -s split-digits", "There is no learner 'reply' for images (did you mean 'replay'?)."),
    ("compare nmc slda -s split-digits --set memory=3", "None of these methods has a parameter 'memory'"),
    ("report notes", "No record.json was found in notes or below it there"),
    ("report nowhere", "No record.json was found in nowhere or below it because it does not exist"),
    ("report file", "file is not JSON"),
    ("streams nonsense", "There is no stream 'nonsense'"),
    ("streams split-digits --set stepz=2", "stream has no parameter 'stepz' (did you mean 'steps'?)."),
    ("check nothing-like-it", "There is no paper 'nothing-like-it'"),
    ("check scole2", "There is no paper 'scole2' (did you mean 'scole'?)."),
    ("check", "Name one paper, or say --all."),
    # What a person may well type, and what would otherwise end in a stack trace.
    ("run nmc -s split-digits --set stream=5", "stream"),
    ("run nmc -s split-digits --config number.toml", "stream"),
    ("streams split-digits --set stream=5", "stream"),
    ("compare nmc -s split-digits --set nmc=5", "nmc"),
    ("compare nmc nmc -s split-digits", "twice"),
    ("run nmc -s split-digits --seed -1", "seed"),
    ("run nmc -s split-digits --set stream.seed=5000000000", "seed"),
    ("run nmc -s si-blurry-digits --set stream.every=-5", "every"),
]


@pytest.mark.parametrize(("command", "sentence"), USER_ERRORS, ids=[command for command, _ in USER_ERRORS])
def test_what_the_user_can_put_right_ends_in_2_with_one_sentence(
    latewood: Latewood, place: Path, command: str, sentence: str
) -> None:
    before = sorted(place.rglob("*"))
    end = latewood(*command.split())
    assert end.status == 2
    last = end.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert sentence in last
    assert "Traceback" not in end.err
    assert end.out == ""
    assert sorted(place.rglob("*")) == before, "a command that was refused has left something behind"


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("run nmc", "--stream"),
        ("run -s split-digits", "METHOD"),
        ("compare -s split-digits", "METHODS"),
        ("compare nmc -s split-digits --seeds 0", "--seeds"),
        ("run nmc -s split-digits --seed one", "--seed"),
        ("run nmc -s split-digits --sett memory=3", "--sett"),
        ("runn nmc", "runn"),
    ],
)
def test_a_command_that_is_not_one_ends_in_2_and_is_named(latewood: Latewood, command: str, word: str) -> None:
    end = latewood(*command.split())
    assert end.status == 2
    assert word.lower() in end.err.lower()


def test_a_folder_of_another_run_ends_in_2_and_says_what_differs(latewood: Latewood) -> None:
    assert latewood("run", "nmc", *SPLIT, "--to", "out").status == 0
    end = latewood("run", "nmc", *SPLIT, "--to", "out", "--set", "normalise=false")
    assert end.status == 2
    assert "out holds another run: learner.normalise is True there and False here. Choose another folder" in end.err


def test_a_full_disk_ends_in_2_and_the_same_command_continues_when_there_is_room(
    latewood: Latewood, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    flush, full_from = os.fsync, place / "out" / "checkpoints" / "000002"

    def until_full(handle: int) -> None:
        if full_from.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", until_full)
        end = latewood("run", "nmc", *SPLIT, "--to", "out", "--json")
    assert end.status == 2
    assert "the disk is full. What was saved before is untouched." in end.err
    assert end.out == ""
    assert 1 <= len(Record.load(place / "out").rows) <= 2
    assert not [file for file in (place / "out").rglob("*") if file.name.endswith(".tmp")]
    again = latewood("run", "nmc", *SPLIT, "--to", "out", "--json")
    assert again.status == 0
    undisturbed = Record.from_json(json.loads(latewood("run", "nmc", *SPLIT, "--json").out))
    assert Record.from_json(json.loads(again.out)).repeatable() == undisturbed.repeatable()


def test_a_cache_that_can_not_be_written_ends_in_2(latewood: Latewood, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", str(place / "file"))
    end = latewood("run", "nmc", *SPLIT, "--set", "backbone=mlp")
    assert end.status == 2
    assert str(place / "file") in end.err


# 4 and 1


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 4)])
def test_a_claim_that_does_not_hold_ends_in_4(
    latewood: Latewood, monkeypatch: pytest.MonkeyPatch, holds: bool, status: int
) -> None:
    claim = Claim("c", "It holds.", lambda: Verdict(holds, {"n": 1.0}, "So it is."))
    paper = Paper(7, "pretended", "Pretended", "learner", "", "Pretends.", ("a:B",), (claim,))
    monkeypatch.setattr(ledger, "papers", lambda: [paper])
    assert latewood("check", "pretended").status == status
    assert latewood("check", "--all", "--json").status == status


def test_a_defect_is_no_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves main() as it is, which makes Python show where it happened and end in 1."""

    def learn(self: NMC, experience: Experience) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(NMC, "learn", learn)
    monkeypatch.setattr(sys, "argv", ["latewood", "run", "nmc", *SPLIT])
    with pytest.raises(ZeroDivisionError):
        main()


# 130


def test_an_interrupt_ends_in_130_and_says_that_the_same_command_continues(
    latewood: Latewood, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(self: NMC, experience: Experience) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NMC, "learn", learn)
    end = latewood("run", "nmc", *SPLIT, "--to", "out")
    assert end.status == 130
    assert "Interrupted; the same command continues" in end.err


#: The installed script's two lines, with the default handling of Ctrl-C whatever the process that runs the tests ignores.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "latewood"
from latewood.cli.main import main
main()
"""


def test_a_real_process_is_interrupted_in_the_middle_of_a_run_and_the_same_command_finishes_it(
    latewood: Latewood, place: Path
) -> None:
    work = ["run", "finetune", *SPLIT, "--set", "stream.steps=3", "--set", "epochs=20", "--set", "backbone.width=32", "--json"]
    command = [sys.executable, "-c", PROGRAM, *work, "--to", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        waited = time.monotonic()
        while not (place / "out" / "record.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - waited < 120
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert 1 <= len(Record.load(place / "out").rows) < 3
    again = latewood(*work, "--to", "out")
    assert again.status == 0
    assert "Continuing out after" in again.err
    undisturbed = Record.from_json(json.loads(latewood(*work).out))
    assert Record.from_json(json.loads(again.out)).repeatable() == undisturbed.repeatable()


@pytest.mark.skipif(SCRIPT is None, reason="the script latewood is not installed beside this Python")
@pytest.mark.parametrize(("arguments", "status"), [("papers --json", 0), ("check scole2", 2), ("runn", 2)])
def test_the_installed_script_ends_in_the_same_status(arguments: str, status: int) -> None:
    end = subprocess.run([str(SCRIPT), *arguments.split()], capture_output=True, text=True, check=False, timeout=60)
    assert end.returncode == status
    assert (end.stdout == "") == (end.stderr != "") == (status == 2)
    assert "Traceback" not in end.stderr
