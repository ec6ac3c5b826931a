"""Compare: the same arrivals and weights for all, everything checked before anything runs, and no run done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood import Experience, Learner, Record, Stream
from latewood.core import registry
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.progress import Progress
from latewood.images.learners.nmc import NMC
from latewood.images.learners.replay import Replay
from latewood.studies import compare as module
from latewood.studies.compare import compare, relevant, settings_by_method

#: One method of either kind, small enough for many runs.
METHODS = ["nmc", "replay"]
NET = {"name": "mlp", "width": 16, "depth": 1}
SMALL: dict[str, Any] = {"stream": {"steps": 3}, "backbone": NET, "replay": {"memory": 20, "epochs": 1}}


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here, and flushing takes longer than these runs do."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def settings_for(methods: list[str]) -> dict[str, Any]:
    return {name: value for name, value in SMALL.items() if name in ("stream", "backbone", *methods)}


def small(to: Path | None = None, methods: list[str] = METHODS, seeds: Any = 2, **more: Any) -> list[Record]:
    return compare(methods, "split-digits", seeds=seeds, to=to, device="cpu", **{"settings": settings_for(methods), **more})


def plain(records: list[Record]) -> list[dict[str, Any]]:
    return [record.repeatable() for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A comparison that nobody interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, small(folder)


# What runs


def test_every_method_runs_with_every_seed(whole: tuple[Path, list[Record]]) -> None:
    records = whole[1]
    assert [(r.config["seed"], r.config["method"]) for r in records] == [(0, "nmc"), (0, "replay"), (1, "nmc"), (1, "replay")]
    assert all(record.complete and record.length == 3 for record in records)


def test_seeds_can_be_named() -> None:
    records = small(methods=["nmc"], seeds=[7, 3])
    assert [record.config["seed"] for record in records] == [7, 3]
    assert [record.config["stream"]["seed"] for record in records] == [7, 3]


def test_a_seed_gives_all_methods_the_same_arrivals_and_other_seeds_others(whole: tuple[Path, list[Record]]) -> None:
    arrivals = [(record.config["stream"], [row.classes for row in record.rows]) for record in whole[1]]
    assert arrivals[0] == arrivals[1]
    assert arrivals[2] == arrivals[3]
    assert arrivals[0][1] != arrivals[2][1]


def test_a_seed_gives_all_methods_the_same_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, str, dict[str, Tensor]]] = []

    def catch(learner: Learner, stream: Stream, *, seed: int, settings: Any, **how: Any) -> Record:
        backbone: Any = learner.backbone
        started.append((seed, settings["method"], {name: v.clone() for name, v in backbone.state_dict().items()}))
        return Record({}, {}, [], 0)

    monkeypatch.setattr(module, "run", catch)
    small(methods=["finetune", "replay", "nmc"])
    assert [(seed, method) for seed, method, _ in started] == [(s, m) for s in (0, 1) for m in ("finetune", "replay", "nmc")]
    first, other = started[0][2], started[3][2]
    assert len(first) > 0
    for seed, _, state in started:
        assert all(torch.equal(state[name], (first, other)[seed][name]) for name in state)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_method_does_as_well_alone_as_in_company(whole: tuple[Path, list[Record]]) -> None:
    alone = small(methods=["replay"], seeds=[1])
    assert plain(alone) == plain(whole[1][3:])


def test_unseen_probes_are_scored_on_demand() -> None:
    assert small(methods=["nmc"], seeds=1, transfer=True)[0].baseline is not None
    assert small(methods=["nmc"], seeds=1)[0].baseline is None


# Settings


def test_shared_settings_reach_the_methods_that_have_them() -> None:
    given = {"stream": {"steps": 2}, "backbone": NET, "memory": "20", "epochs": "1"}
    nmc, replay = (record.config["learner"] for record in small(seeds=1, settings=given))
    assert "memory" not in nmc
    assert (replay["memory"], replay["recipe"]["epochs"]) == (20, 1)
    assert nmc["backbone"]["width"] == replay["backbone"]["width"] == 16


def entries(*methods: str) -> dict[str, registry.Entry]:
    return {method: registry.find("learners", method, "images") for method in methods}


def test_a_methods_own_settings_go_before_the_shared_ones() -> None:
    given = {"memory": 10, "recipe": {"lr": 0.1, "epochs": 2}, "replay": {"memory": 30, "recipe": {"lr": 0.2}}}
    own = settings_by_method(entries("replay", "icarl", "nmc"), given)
    assert own["replay"] == {"memory": 30, "recipe": {"lr": 0.2, "epochs": 2}}
    assert own["icarl"] == {"memory": 10, "recipe": {"lr": 0.1, "epochs": 2}}
    assert own["nmc"] == {}


def test_a_backbone_is_shared_and_a_method_may_differ_in_a_part_of_it() -> None:
    given = {"backbone": {"name": "mlp", "width": 16}, "nmc": {"backbone": {"width": 8}}}
    own = settings_by_method(entries("replay", "nmc"), given)
    assert own["replay"]["backbone"] == {"name": "mlp", "width": 16}
    assert own["nmc"]["backbone"] == {"name": "mlp", "width": 8}


@pytest.mark.parametrize("spelling", ["g-acil", "G_ACIL"])
def test_a_methods_settings_go_by_its_name_or_the_spelling_that_was_used(spelling: str) -> None:
    own = settings_by_method(entries("G_ACIL"), {spelling: {"expansion": 50}})
    assert own == {"G_ACIL": {"expansion": 50}}


def test_what_is_wrong_with_no_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match=r"None of these methods has a parameter 'memroy' \(did you mean 'memory'\?\)"):
        settings_by_method(entries("nmc", "replay"), {"memroy": 5})
    with pytest.raises(ConfigurationError, match="None of these methods has a parameter 'memory'"):
        settings_by_method(entries("nmc", "slda"), {"memory": 5})
    with pytest.raises(ConfigurationError, match="nmc has no parameter 'memory'"):
        settings_by_method(entries("nmc"), {"memory": 5})


def test_of_settings_for_many_methods_those_are_kept_that_concern_the_present_ones_or_nobody() -> None:
    stream, net = {"steps": 2}, {"name": "mlp"}
    given = {"stream": stream, "backbone": net, "memory": 5, "expansion": 40, "nmc": {"normalise": False}, "memroy": 7}
    shared = {"stream": stream, "backbone": net, "memroy": 7}
    assert relevant(given, ["nmc"], "images") == {**shared, "nmc": {"normalise": False}}
    assert relevant(given, ["Replay"], "images") == {**shared, "memory": 5}
    assert relevant(given, ["G_ACIL", "replay"], "images") == {**shared, "memory": 5, "expansion": 40}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"methods": ["nmc", "reply"]}, r"no learner 'reply' for images \(did you mean 'replay'\?\)"),
    ({"methods": []}, "Name at least one method"),
    ({"seeds": 0}, "at least one seed"),
    ({"seeds": []}, "at least one seed"),
    ({"stream": "splt-digits"}, r"There is no stream 'splt-digits'.*did you mean 'split'"),
    ({"stream": "split-nothing here"}, "There is no image data set 'nothing here'"),
    ({"settings": {"memroy": 5}}, r"None of these methods has a parameter 'memroy' \(did you mean 'memory'\?\)"),
    ({"settings": {"icarl": {"memory": 5}}}, "None of these methods has a parameter 'icarl'"),
    ({"settings": {"memory": "much"}}, "replay.memory can't be 'much'"),
    ({"settings": {"replay": {"recipe": {"epochs": 0}}}}, "recipe.epochs must be at least 1"),
    ({"settings": {"nmc": {"memory": 5}}}, "nmc has no parameter 'memory'"),
    ({"settings": {"nmc": 5}}, "nmc"),
    ({"settings": {"stream": {"steps": 11}}}, "can't be divided into 11 arrivals"),
    ({"settings": {"stream": {"stepz": 2}}}, r"stream has no parameter 'stepz' \(did you mean 'steps'\?\)"),
    ({"settings": {"stream": 5}}, "stream"),
    ({"settings": {"backbone": "mlpp"}}, r"There is no net 'mlpp' for images \(did you mean 'mlp'\?\)"),
    ({"settings": {"backbone": 5}}, "backbone"),
    ({"device": "tpu"}, "There is no device 'tpu'"),
    ({"methods": ["nmc", "nmc"]}, "method.* twice"),
    ({"methods": ["replay", "Replay"]}, "method.* twice"),
    ({"seeds": [1, 2, 1]}, "seed.* twice"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_what_is_wrong_is_told_before_the_first_run_and_leaves_no_folder(
    wrong: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    given = {"methods": METHODS, "stream": "split-digits", "seeds": 1, "to": tmp_path / "out", "device": "cpu", **wrong}
    with pytest.raises(ConfigurationError, match=sentence) as error:
        compare(**given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# What is kept


def test_every_run_has_a_folder_of_its_own(whole: tuple[Path, list[Record]]) -> None:
    folder, records = whole
    places = [folder / method / f"seed-{seed}" for seed in (0, 1) for method in METHODS]
    assert sorted(folder.glob("*/*")) == sorted(places)
    for place, record in zip(places, records, strict=True):
        assert Record.load(place).to_json() == record.to_json()
        assert json.loads((place / "run.json").read_text()) == record.config


def test_the_folder_has_the_methods_own_name_however_it_was_spelt(tmp_path: Path) -> None:
    small(tmp_path, methods=["NMC"], seeds=1)
    assert [place.name for place in tmp_path.iterdir()] == ["nmc"]


class Stopping(Progress):
    """Interrupts at the n-th time that a run says something of one kind, as Ctrl-C would."""

    def __init__(self, kind: str, nth: int) -> None:
        self.kind, self.left = kind, nth

    def _count(self, kind: str) -> None:
        self.left -= kind == self.kind
        if kind == self.kind and self.left == 0:
            raise KeyboardInterrupt

    def phase(self, text: str, steps: int = 0) -> None:
        self._count(text.split(maxsplit=1)[0])

    def step(self, loss: Tensor | None = None) -> None:
        self._count("probe" if loss is None else "batch")

    def experience_done(self) -> None:
        self._count("saved")


@pytest.mark.parametrize(
    ("kind", "nth"), [("learning", 1), ("learning", 5), ("batch", 30), ("probing", 8), ("saved", 3), ("saved", 4)]
)
def test_an_interrupted_comparison_ends_as_if_nothing_had_happened(
    whole: tuple[Path, list[Record]], tmp_path: Path, kind: str, nth: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=Stopping(kind, nth))
    assert plain(small(tmp_path, progress=Progress())) == plain(whole[1])


def test_a_comparison_interrupted_again_and_again_arrives(whole: tuple[Path, list[Record]], tmp_path: Path) -> None:
    for _ in range(12):
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, progress=Stopping("saved", 1))
    assert plain(small(tmp_path, progress=Stopping("saved", 1))) == plain(whole[1])


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The learners by name, once for each arrival that they learn."""
    names: list[str] = []
    for kind in (NMC, Replay):

        def learn(self: Learner, experience: Experience, original: Any = kind.learn) -> None:
            names.append(type(self).__name__)
            original(self, experience)

        monkeypatch.setattr(kind, "learn", learn)
    return names


def test_a_finished_comparison_is_read_and_not_run_again(tmp_path: Path, learned: list[str]) -> None:
    first = small(tmp_path, seeds=1)
    assert learned == ["NMC"] * 3 + ["Replay"] * 3
    learned.clear()
    assert [record.to_json() for record in small(tmp_path, seeds=1)] == [record.to_json() for record in first]
    assert learned == []


def test_more_seeds_and_methods_run_only_what_is_new(tmp_path: Path, learned: list[str]) -> None:
    small(tmp_path, methods=["nmc"], seeds=1)
    learned.clear()
    records = small(tmp_path, methods=["nmc", "replay"], seeds=1)
    assert learned == ["Replay"] * 3
    learned.clear()
    small(tmp_path, methods=["nmc"], seeds=2)
    assert learned == ["NMC"] * 3
    assert len(records) == 2


def test_other_settings_do_not_continue_a_comparison(tmp_path: Path) -> None:
    before = small(tmp_path, methods=["nmc"], seeds=1)
    with pytest.raises(CheckpointError, match=r"nmc/seed-0 holds another run: learner\.normalise is True there and False here"):
        small(tmp_path, methods=["nmc"], seeds=1, settings={**settings_for(["nmc"]), "normalise": False})
    with pytest.raises(CheckpointError, match=r"stream\.steps is 3 there and 2 here"):
        small(tmp_path, methods=["nmc"], seeds=1, settings={"backbone": NET, "stream": {"steps": 2}})
    assert Record.load(tmp_path / "nmc" / "seed-0").to_json() == before[0].to_json()
