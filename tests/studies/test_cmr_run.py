"""Measuring the curves of the mixture ratio: what all runs share, what a run sees, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import seeded
from latewood.language.mixture import Mixture
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.recipe import TextRecipe
from latewood.studies.cmr import Curve, Text, load_curves, load_text, measure
from latewood.studies.cmr.run import AtShare

BATCH, LENGTH = 8, 16
RECIPE = TextRecipe(lr=3e-3, decay="constant", batch_size=BATCH, warmup=0.1, save_every=3)


def rows(first: int, count: int) -> Data:
    """Rows of rising tokens, each of which begins with its own number."""
    tokens = (torch.arange(LENGTH) + torch.arange(first, first + count)[:, None]).int()
    return Data(tokens=tokens, bytes=torch.full((count,), LENGTH, dtype=torch.int32))


GENERAL, DOMAIN = Text("low", rows(0, 40), rows(45, 4)), Text("high", rows(100, 60), rows(165, 4))


@pytest.fixture
def model() -> CausalLM:
    with seeded("weights"):
        return causal(GENERAL.train[:1], layers=1, width=16, heads=2)


def curves(model: CausalLM, ratios: Sequence[float] = (0.25, 0.5), recipe: TextRecipe = RECIPE, **how: Any) -> list[Curve]:
    return measure(model, GENERAL, DOMAIN, ratios, recipe=recipe, device="cpu", **{"steps": 14, "every": 2, **how})


def as_text(found: Sequence[Curve]) -> list[str]:
    return [curve.to_json() for curve in found]


class Seen:
    """What runs did, in their order: the weights at their start, the rows of each batch, the rate of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.batches: list[list[Tensor]] = []
        self.rates: list[list[float]] = []
        monkeypatch.setattr(AtShare, "begin", self._begin)
        monkeypatch.setattr(AtShare, "batch", self._batch)
        monkeypatch.setattr(AtShare, "after_step", self._after_step)

    def _begin(self, experience: Any) -> None:
        self.batches.append([])
        self.rates.append([])

    def _batch(self, new: Data) -> Data:
        self.batches[-1].append(new.tensor("tokens")[:, 0])
        return new

    def _after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        self.rates[-1].append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


# What the runs share


def test_all_runs_begin_with_the_same_bits_and_the_model_stays_as_it_is(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    starts: list[dict[str, Tensor]] = []

    def begin(learner: AtShare, experience: Any) -> None:
        starts.append({name: weight.clone() for name, weight in learner.backbone.state_dict().items()})

    monkeypatch.setattr(AtShare, "begin", begin)
    curves(model, (0.0, 0.5, 1.0))
    for weights in (*starts, model.state_dict()):
        assert weights.keys() == before.keys()
        assert all(torch.equal(weights[name], before[name]) for name in before)
    assert len(starts) == 3


def test_all_runs_are_scored_on_the_same_held_out_tokens(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Tensor] = []
    predict = AtShare.predict

    def recorded(learner: AtShare, data: Data, batch_size: int = 32) -> Tensor:
        scored.append(data.tensor("tokens").clone())
        return predict(learner, data, batch_size)

    monkeypatch.setattr(AtShare, "predict", recorded)
    found = curves(model, (0.25, 0.75))
    assert len(scored) == 2 * 2 * len(found[0].times)
    wanted = [GENERAL.held_out.tensor("tokens"), DOMAIN.held_out.tensor("tokens")] * (len(scored) // 2)
    assert all(torch.equal(tokens, held) for tokens, held in zip(scored, wanted, strict=True))


def test_increments_are_exactly_zero_at_the_start_and_their_bases_are_the_losses_of_the_model(model: CausalLM) -> None:
    for curve in curves(model):
        assert (curve.times[0], curve.domain[0], curve.general[0]) == (0.0, 0.0, 0.0)
        for text, base in ((GENERAL, curve.general_base), (DOMAIN, curve.domain_base)):
            with torch.no_grad():
                assert float(model.losses(model.prepare(text.held_out)).mean()) == pytest.approx(base, rel=1e-6)
        assert curve.domain[-1] < 0


@pytest.mark.parametrize("ratio", [0.0, 1 / 8, 1 / 2, 1.0])
def test_every_batch_holds_the_share_exactly_where_it_is_whole(model: CausalLM, seen: Seen, ratio: float) -> None:
    curves(model, (ratio,))
    assert [int((batch >= 100).sum()) for batch in seen.batches[0]] == [round(ratio * BATCH)] * 14


def test_a_share_that_is_not_whole_is_carried_over(model: CausalLM, seen: Seen) -> None:
    curves(model, (1 / 3,))
    given = torch.tensor([int((batch >= 100).sum()) for batch in seen.batches[0]]).cumsum(0)
    assert ((given - torch.arange(1, 15) * BATCH / 3).abs() <= 0.5).all()


def test_runs_see_the_rows_of_a_corpus_in_the_same_order(model: CausalLM, seen: Seen) -> None:
    curves(model, (0.25, 0.5))
    few, many = (torch.cat([batch[batch >= 100] for batch in batches]) for batches in seen.batches)
    assert torch.equal(few, many[: len(few)])
    assert len(set(few.tolist())) == len(few)


def test_the_rate_is_warmed_up_and_then_constant(model: CausalLM, seen: Seen) -> None:
    found = curves(model, (0.5,), steps=20)
    assert seen.rates[0][0] < seen.rates[0][1] < RECIPE.lr
    assert seen.rates[0][2:] == [RECIPE.lr] * 18
    assert found[0].warmup == 10  # 2 of 20 steps
    assert found[0].times[found[0].fitted][0] == 10


def test_each_point_of_a_run_is_the_end_of_a_shorter_run(model: CausalLM) -> None:
    recipe = replace(RECIPE, warmup=0.0)
    long, short = (curves(model, (0.5,), recipe, steps=steps)[0] for steps in (28, 14))
    assert long.until(50.0).domain.tolist() == short.domain.tolist()
    assert long.until(50.0).general.tolist() == short.general.tolist()


def test_the_seed_decides_the_order_of_rows(model: CausalLM, seen: Seen) -> None:
    for seed in (0, 0, 1):
        curves(model, (0.5,), seed=seed)
    first, again, other = (torch.cat(batches) for batches in seen.batches)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# What is kept


def test_curves_come_back_from_json_as_they_were(model: CausalLM) -> None:
    (curve,) = curves(model, (1 / 3,))
    again = Curve.from_json(curve.to_json())
    assert again.to_json() == curve.to_json()
    assert again.ratio == 1 / 3
    assert again.domain.tolist() == curve.domain.tolist()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"ratio": 0.5}'])
def test_what_is_no_curve_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not the JSON of a curve"):
        Curve.from_json(text)


def test_a_second_call_trains_nothing_and_more_shares_only_themselves(
    model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = curves(model, to=tmp_path / "mix")
    ran: list[float] = []
    monkeypatch.setattr(AtShare, "begin", lambda learner, experience: ran.append(learner.ratio))
    assert as_text(curves(model, to=tmp_path / "mix")) == as_text(first)
    assert ran == []
    more = curves(model, (0.25, 0.5, 0.75), to=tmp_path / "mix")
    assert ran == [0.75]
    assert as_text(more[:2]) == as_text(first)
    assert as_text(load_curves(tmp_path / "mix")[0]) == as_text(more)
    assert sorted(file.name for file in (tmp_path / "mix").iterdir()) == ["curves", "study.json"]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", [1, 3, 8, 14])
def test_a_killed_study_goes_on_within_the_run_and_ends_with_the_same_bits(
    model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = curves(model)
    taken: list[tuple[float, int]] = []

    def die(learner: AtShare, now: int, optimizer: Any, mixture: Any) -> None:
        taken.append((learner.ratio, now))
        if (learner.ratio, now) == (0.5, step):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(AtShare, "after_step", die)
        with pytest.raises(KilledError):
            curves(model, to=tmp_path)
    taken.clear()
    monkeypatch.setattr(AtShare, "after_step", lambda learner, now, optimizer, mixture: taken.append((learner.ratio, now)))
    assert as_text(curves(model, to=tmp_path)) == as_text(whole)
    saved = (step - 1) // 3 * 3  # as save_every is 3
    assert taken == [(0.5, now) for now in range(saved + 1, 15)]
    assert not (tmp_path / "unfinished").exists()


def test_how_often_a_run_is_saved_makes_no_other_study(model: CausalLM, tmp_path: Path) -> None:
    first = curves(model, to=tmp_path)
    assert as_text(curves(model, to=tmp_path, recipe=replace(RECIPE, save_every=None))) == as_text(first)


def test_the_folder_of_another_study_is_refused(model: CausalLM, tmp_path: Path) -> None:
    curves(model, (0.5,), to=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another study: recipe\.lr is 0\.003 there and 0\.1 here\."):
        curves(model, (0.5,), replace(RECIPE, lr=0.1), to=tmp_path)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    with pytest.raises(CheckpointError, match="holds another study: model is"):
        curves(model, (0.5,), to=tmp_path)
    assert len(load_curves(tmp_path)[0]) == 1


def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(model: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="files that are not a study's"):
        curves(model, to=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(CheckpointError, match="is a file"):
        curves(model, to=tmp_path / "letter.txt")


def test_a_damaged_curve_is_told(model: CausalLM, tmp_path: Path) -> None:
    curves(model, (0.5,), to=tmp_path)
    (tmp_path / "curves" / "0.5.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"0\.5\.json is damaged; remove it, and it is measured again"):
        curves(model, (0.5,), to=tmp_path)


def test_a_folder_without_curves_has_none_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no curves"):
        load_curves(tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a falling rate": ({"recipe": replace(RECIPE, decay="cosine")}, "must be constant, but it is cosine"),
    "steps of the recipe's own": ({"recipe": replace(RECIPE, steps=7)}, "whose steps the study sets"),
    "too few looks": ({"every": 5}, r"every 5 of 14 steps gives 3 points after the warm-up of 2 steps; the laws need 6"),
    "a share twice": ({"ratios": (0.5, 0.5)}, "different numbers from 0 to 1"),
    "no share": ({"ratios": (0.5, 2.0)}, "different numbers from 0 to 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_refused_before_anything_is_written(model: CausalLM, tmp_path: Path, name: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=message):
        curves(model, **wrong, to=tmp_path / "mix")
    assert not (tmp_path / "mix").exists()


# Text that the model has not seen


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    """Two files of short paragraphs, long enough for a held-out part."""
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file in files:
        file.write_text("\n\n".join(f"{file.stem} {number:04d} lorem ipsum dolor" for number in range(1200)))
    return files


def test_only_rows_that_the_model_has_not_seen_are_mixed_in(corpora: list[Path]) -> None:
    name = "+".join(map(str, corpora))
    whole = [load_text(str(file), length=32) for file in corpora]
    for seen, first in ((0.25, [-(-len(text.train) // 4) for text in whole]), (7, [7, 7])):
        text = load_text(name, length=32, seen=seen)
        wanted = torch.cat([part.train.tensor("tokens")[start:] for part, start in zip(whole, first, strict=True)])
        assert torch.equal(text.train.tensor("tokens"), wanted)
        assert text.name == name
        assert len(text.held_out) == sum(len(part.held_out) for part in whole)


def test_what_is_left_of_a_corpus_has_a_fingerprint_of_its_own(corpora: list[Path]) -> None:
    prints = {load_text(str(corpora[0]), length=32, seen=seen).train.fingerprint() for seen in (0, 3, 0.5)}
    assert len(prints) == 3


def test_a_corpus_that_was_seen_whole_is_refused(corpora: list[Path]) -> None:
    with pytest.raises(DataError, match=r"has \d+ rows, of which 9999 were seen; there is nothing to mix in"):
        load_text(str(corpora[0]), length=32, seen=9999)
    with pytest.raises(ConfigurationError, match="a share of a corpus or a number of rows, but it is -1"):
        load_text(str(corpora[0]), seen=-1)


@pytest.mark.parametrize("name", ["", "one+", "one+one"])
def test_corpora_without_names_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="different names, joined by"):
        load_text(name)


def test_the_facts_of_a_study_are_kept_as_json(model: CausalLM, tmp_path: Path) -> None:
    curves(model, (0.5,), to=tmp_path)
    facts = json.loads((tmp_path / "study.json").read_text())
    assert facts == load_curves(tmp_path)[1]
    assert facts["tokens_per_step"] == BATCH * LENGTH
    assert (facts["recipe"]["steps"], facts["every"], facts["general"]["name"]) == (14, 2, "low")
