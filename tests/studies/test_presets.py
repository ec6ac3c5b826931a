"""Presets: what a paper set is built as it stands, and what the user says goes before it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from latewood.core import registry
from latewood.core.configure import parameters_of, settable
from latewood.core.errors import ConfigurationError
from latewood.core.preset import Preset
from latewood.images.learners.finetune import Finetune
from latewood.studies.assemble import stream_entry
from latewood.studies.presets import find_preset, under_methods


def every() -> Iterator[tuple[registry.Entry, str, Preset]]:
    for entry in registry.entries("learners"):
        for name, preset in entry.load().presets.items():
            yield entry, name, preset


@pytest.mark.parametrize(("entry", "name", "preset"), [pytest.param(*one, id=f"{one[0].name}-{one[1]}") for one in every()])
def test_all_that_a_preset_sets_is_there_to_be_set(entry: registry.Entry, name: str, preset: Preset) -> None:
    settings = dict(preset.settings)
    scenario, dataset = stream_entry(preset.stream)
    assert scenario.wing == entry.wing and dataset
    assert set(settings.pop("stream", {})) <= set(parameters_of(scenario.load()))
    backbone = settings.pop("backbone", None)
    if isinstance(backbone, dict) and "name" not in backbone:
        nets = importlib.import_module(f"latewood.{entry.wing}.nets")
        assert any(set(backbone) <= {*parameters_of(getattr(nets, net)), "frozen"} for net in nets.__all__ if net.islower())
    recipe = settings.pop("recipe", {})
    names = settable(entry.load())
    assert set(settings) <= names and set(recipe) <= names
    assert preset.source and name.startswith("paper-")


def test_what_the_user_says_goes_before_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = Preset("split-digits", {"lr": 0.5, "epochs": 3, "stream": {"steps": 5}}, "a table")
    monkeypatch.setattr(Finetune, "presets", {"paper-x": preset})
    stream, settings = find_preset("paper-x", ["finetune"])
    assert (stream, settings) == ("split-digits", {"finetune": {"lr": 0.5, "epochs": 3}, "stream": {"steps": 5}})
    assert under_methods({"lr": 0.1, "stream": {"steps": 2}}, ["finetune"], "images") == {
        "finetune": {"lr": 0.1},
        "stream": {"steps": 2},
    }


def test_an_unknown_preset_is_told_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finetune, "presets", {"paper-cifar100": Preset("split-cifar100")})
    with pytest.raises(ConfigurationError, match="paper-cifar100"):
        find_preset("paper-cifar10", ["finetune"])


def test_presets_for_different_streams_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    from latewood.images.learners.nmc import NMC

    monkeypatch.setattr(Finetune, "presets", {"paper-x": Preset("split-digits")})
    monkeypatch.setattr(NMC, "presets", {"paper-x": Preset("split-digits", {"stream": {"steps": 2}})})
    with pytest.raises(ConfigurationError, match="different streams"):
        find_preset("paper-x", ["finetune", "nmc"])


def test_a_run_takes_its_stream_and_settings_from_a_preset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from latewood.cli import main

    preset = Preset("split-digits", {"epochs": 1, "lr": 0.5, "stream": {"steps": 2}}, "a table")
    monkeypatch.setattr(Finetune, "presets", {"paper-x": preset})
    for command in (["run", "finetune"], ["compare", "finetune", "--to", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            main.app([*command, "--preset", "paper-x", "--set", "lr=0.25", "--json"])
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    record = json.loads(shown[: shown.index("\n}\n") + 2])
    assert record["config"]["learner"]["recipe"]["lr"] == 0.25 and record["length"] == 2
    with pytest.raises(ConfigurationError, match="Name a stream"):
        main.app(["run", "finetune"], standalone_mode=False)


def test_a_method_can_be_shown_with_all_that_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    from latewood.cli import main

    main.app(["methods", "adept"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "layers = 2" in shown and "paper-qwen3-1.7b" in shown
