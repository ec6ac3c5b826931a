"""A study on the real learner: nothing changes but what is planned, whatever happens to the run meanwhile."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.seeding import seeded
from latewood.core.stream import Stream
from latewood.core.watch import Watch, watching
from latewood.language.corpora import ByteTokenizer, load_blocks, pack
from latewood.language.insertions import InsertionPlan, StreamShape
from latewood.language.learners.continue_ import Continue
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.probes import HeldOutLoss
from latewood.language.recipe import TextRecipe
from latewood.studies.train_once import (
    Control,
    Experiment,
    Item,
    Laboratory,
    StoppedEarly,
    TrainOnce,
    TrainOnceLearner,
    Watermark,
    answers,
    influences,
)
from latewood.studies.train_once.loop import PLAN

SHAPE = StreamShape(steps=24, rows=4, length=32)
TOKENIZER = ByteTokenizer()
RECIPE = TextRecipe(batch_size=4, steps=24, lr=0.01)
MARK = Watermark(every=3, rows=2, sigma=0.5)


def text(rows: int = 120) -> Data:
    """Lines of an almanac that no experiment says anything about."""
    lines = (f"In year {year} the rings of oak {year % 7} were {year % 11} parts wide. " for year in range(rows))
    return pack(["".join(lines)], length=SHAPE.length)[:rows]


def net(seed: int = 0) -> CausalLM:
    with seeded(seed):
        return causal(text(2)[:1], layers=1, width=16, heads=2)


def experiments() -> list[Experiment]:
    control = Control(target=0.5, steps=24, every=6, first=2)
    return [
        Experiment(
            "static", ["sap is sweet", "bark is thin"], [Item("sap is", " sweet"), Item("bark is", " thin")], repetitions=4
        ),
        Experiment("steered", [f"owl {n} sleeps" for n in range(40)], [Item("owl 77", " sleeps")], control),
        Experiment("fixed", ["z" * 40], [Item("zzzz", "zzzz")], positions=[SHAPE.address(5, 1, 20)]),
    ]


def study(chosen: list[Experiment] | None = None) -> TrainOnce:
    return TrainOnce(experiments() if chosen is None else chosen, SHAPE, TOKENIZER)


def learner(seed: int = 0, watermark: Watermark | None = None, recipe: TextRecipe = RECIPE) -> TrainOnceLearner:
    return TrainOnceLearner(net(seed), study(), watermark, recipe=recipe)


def bits(one: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def stream(rows: int = 120, arrivals: int = 1) -> Stream:
    return Stream("almanac", arrivals, lambda index: Experience(index, text(rows)), ())


class Seeing(TrainOnceLearner):
    """Keeps what every step learned from."""

    seen: list[Tensor]

    def batch(self, new: Data) -> Data:
        batch = super().batch(new)
        self.__dict__.setdefault("seen", []).append(batch.tensor("tokens").clone())
        return batch


# Invariants 1 and 2: nothing but what is planned


def test_without_experiments_the_weights_are_those_of_plain_training_bit_for_bit() -> None:
    plain, empty = Continue(net(), RECIPE), TrainOnceLearner(net(), study([]), recipe=RECIPE)
    for one in (plain, empty):
        run(one, stream(), device="cpu")
    assert same(bits(plain.backbone), bits(empty.backbone))
    carrying = learner()
    run(carrying, stream(), device="cpu")
    assert not same(bits(plain.backbone), bits(carrying.backbone))


def test_every_step_learns_from_the_planned_tokens_and_otherwise_from_the_text_as_it_was() -> None:
    empty = Seeing(net(), study([]), recipe=RECIPE)
    carrying = Seeing(net(), study(), recipe=RECIPE)
    for one in (empty, carrying):
        run(one, stream(), device="cpu")
    plain, changed = torch.stack(empty.seen).view(-1), torch.stack(carrying.seen).view(-1)
    assert len(plain) == len(changed) == SHAPE.tokens
    planned = torch.full_like(plain, -1)
    for piece in carrying.study.plan.insertions():
        planned[piece.position : piece.position + len(piece.tokens)] = torch.tensor(piece.tokens, dtype=torch.int32)
    inserted = planned >= 0
    assert torch.equal(changed[inserted], planned[inserted])
    assert torch.equal(changed[~inserted], plain[~inserted])
    assert 100 < int(inserted.sum()) < SHAPE.tokens / 2
    assert {report.name for report in carrying.study.reports()} == {"static", "steered", "fixed"}


# Controllers


def test_a_controller_is_told_the_probability_under_the_weights_of_the_moment() -> None:
    told: list[tuple[int, float]] = []

    class Asking(TrainOnceLearner):
        def batch(self, new: Data) -> Data:
            step = int(self.steps_done)
            if step % 6 == 0:
                told.append((step, self.study.experiments["steered"].probe(TOKENIZER).score(self)["probability"]))
                self.train()
            return super().batch(new)

    asking = Asking(net(), study(), recipe=RECIPE)
    run(asking, stream(), device="cpu")
    history = asking.study.history["steered"]
    assert [(state.step, state.value) for state in history] == told
    assert [step for step, _ in told] == [0, 6, 12, 18]
    assert told[-1][1] > told[0][1]
    assert [state.texts for state in history] == [2, 4, 8, 16]


def test_asking_a_probe_changes_neither_weights_nor_chance() -> None:
    """A controller whose texts are what lies there already steers without any effect."""
    plain = Continue(net(), RECIPE)
    run(plain, stream(), device="cpu")
    chance, modes = [], []

    class Drawing(TrainOnceLearner):
        def batch(self, new: Data) -> Data:
            batch = super().batch(new)
            chance.append(torch.rand(()).item())
            modes.append(self.backbone.training)
            return batch

    for chosen in ([], experiments()[1:2]):
        run(Drawing(net(), study(chosen), recipe=RECIPE), stream(), device="cpu")
    assert chance[:24] == chance[24:]
    assert all(modes)


def test_a_watch_and_a_controller_do_not_disturb_one_another() -> None:
    straight, watched = learner(), learner()
    straight.learn(Experience(0, text()))
    probe = experiments()[1].probe(TOKENIZER)
    with watching(Watch([probe], due=1)) as watch:
        watched.learn(Experience(0, text()))
    assert same(bits(straight), bits(watched))
    values = dict(zip(*watch.curve("steered", "probability"), strict=True))
    assert [values[state.step] for state in watched.study.history["steered"]] == [
        state.value for state in watched.study.history["steered"]
    ]


# Invariant 6: a run that is killed


@pytest.mark.parametrize("death", [1, 6, 7, 13, 18, 20])
def test_a_run_that_is_killed_within_the_arrival_places_the_same_texts_and_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    recipe = replace(RECIPE, save_every=4)
    straight = learner(watermark=MARK, recipe=recipe)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")

    def dying(self: TrainOnceLearner, step: int, *rest: Any) -> None:
        if step == death:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainOnceLearner, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(learner(watermark=MARK, recipe=recipe), stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    again = learner(1 if death > 4 else 0, MARK, recipe)
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert same(bits(again), bits(straight))
    assert list(again.study.plan.insertions()) == list(straight.study.plan.insertions())
    kept = InsertionPlan.load(tmp_path / "broken" / "files" / PLAN)
    assert sorted(kept.insertions()) == sorted(straight.study.plan.insertions())


def test_a_study_may_go_on_over_several_arrivals_and_resumes_between_them(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=12, arrivals=2)
    straight = learner(recipe=recipe)
    run(straight, stream(arrivals=2), device="cpu")
    assert [state.step for state in straight.study.history["steered"]] == [0, 6, 12, 18]

    def build(index: int) -> Experience:
        if index == 1:
            raise RuntimeError("enough")
        return Experience(index, text())

    with pytest.raises(RuntimeError, match="enough"):
        run(learner(recipe=recipe), Stream("almanac", 2, build, ()), to=tmp_path, device="cpu")
    again = learner(1, recipe=recipe)
    run(again, stream(arrivals=2), to=tmp_path, device="cpu")
    assert same(bits(again), bits(straight))


def test_the_state_of_another_study_or_a_damaged_one_is_refused_and_changes_nothing() -> None:
    trained = learner()
    trained.learn(Experience(0, text()))
    state = trained.study.state()
    assert json.loads(json.dumps(state)) == state
    other = study([replace(experiments()[1], texts=["another text"]), *experiments()[::2]])
    before = list(other.plan.insertions())
    with pytest.raises(CheckpointError, match="study of other experiments"):
        other.load_state(state)
    assert list(other.plan.insertions()) == before
    with pytest.raises(CheckpointError, match="study of other seed"):
        TrainOnce(experiments(), SHAPE, TOKENIZER, seed=1).load_state(state)
    wrong = json.loads(json.dumps(state))
    wrong["history"]["steered"][2]["texts"] += 1
    with pytest.raises(CheckpointError, match="don't follow from its values"):
        study().load_state(wrong)
    del wrong["history"]["steered"][1]
    with pytest.raises(CheckpointError, match="damaged"):
        study().load_state(wrong)


def test_a_saved_run_of_other_experiments_is_not_continued(tmp_path: Path) -> None:
    run(learner(), stream(), to=tmp_path, device="cpu")
    other = TrainOnceLearner(net(), study(experiments()[:2]), recipe=RECIPE)
    with pytest.raises(CheckpointError, match="experiments"):
        run(other, stream(), to=tmp_path, device="cpu")


# Invariant 9, and sizes


def test_a_second_pass_over_the_overlay_is_refused_before_anything_is_learned() -> None:
    one = learner()
    before = bits(one)
    with pytest.raises(DataError, match="more than one pass over the 90 rows"):
        one.learn(Experience(0, text(90)))
    assert same(bits(one), before)
    one.learn(Experience(0, text(96)))
    after = bits(one.backbone)
    with pytest.raises(DataError, match="24 steps, of which 24 are done: it is trained on once"):
        one.learn(Experience(1, text()))
    assert same(bits(one.backbone), after)


def test_a_study_that_was_trained_on_is_not_trained_on_from_the_start_again() -> None:
    used = study()
    TrainOnceLearner(net(), used, recipe=RECIPE).learn(Experience(0, text()))
    with pytest.raises(ConfigurationError, match="needs a new one"):
        TrainOnceLearner(net(), used, recipe=RECIPE).learn(Experience(0, text()))


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"4 rows a step, but recipe\.batch_size is 8"):
        learner(recipe=replace(RECIPE, batch_size=8))
    for steps in (None, 25):
        with pytest.raises(ConfigurationError, match=r"has 24 steps; recipe\.steps"):
            learner(recipe=replace(RECIPE, steps=steps))
    small = causal(text(2)[:1], layers=1, width=16, heads=2, vocabulary=100)
    with pytest.raises(ConfigurationError, match="tokenizer has 257 tokens, but the model has 100"):
        TrainOnceLearner(small, study(), recipe=RECIPE)
    with pytest.raises(DataError, match="rows of 32 tokens, but those that arrive have 16"):
        learner().learn(Experience(0, pack(["late wood " * 200], length=16)))


# The watermark


def test_marked_rows_get_their_noise_and_the_run_without_it_keeps_the_same_rows() -> None:
    noisy, clean = learner(watermark=MARK), TrainOnceLearner(net(), study(), MARK, False, RECIPE)
    plain = learner()
    for one in (noisy, clean, plain):
        run(one, stream(), device="cpu")
    assert same(bits(clean.backbone), bits(plain.backbone))
    assert not same(bits(noisy.backbone), bits(plain.backbone))
    expected = [[step, row] for step in range(0, 24, 3) for row in MARK.rows_of(step, 4).tolist()]
    assert noisy.marked.places.tolist() == clean.marked.places.tolist() == expected
    network: Any = noisy.backbone.network
    assert not network.get_input_embeddings()._forward_hooks


def test_a_step_in_several_passes_marks_the_same_rows() -> None:
    whole, cut = learner(watermark=MARK), learner(watermark=MARK, recipe=replace(RECIPE, accumulation=4))
    for one in (whole, cut):
        run(one, stream(), device="cpu")
    for name, value in whole.backbone.state_dict().items():
        assert torch.allclose(value, cut.backbone.state_dict()[name], atol=1e-5), name


#: Plain steps, since Adam makes much of the rounding of a gradient near zero.
FEW = replace(RECIPE, steps=8, optimizer="sgd", lr=0.1)
_WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_train_once_loop import Experience, FEW, MARK, learner, text
one = learner(watermark=MARK, recipe=FEW)
one.learn(Experience(0, text()))
from safetensors.torch import save_file
save_file({{k: v.contiguous() for k, v in one.state_dict().items()}}, sys.argv[1])
"""


def test_two_processes_place_mark_and_train_as_one_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    alone, unmarked = learner(watermark=MARK, recipe=FEW), learner(recipe=FEW)
    for one in (alone, unmarked):
        one.learn(Experience(0, text()))
    program = _WORKER.format(tests=str(Path(__file__).parent))
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000), "WORLD_SIZE": "2"}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / f"{rank}.safetensors")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert torch.equal(states[0]["marked.places"], alone.marked.places)
    for name, value in alone.backbone.state_dict().items():
        assert torch.equal(states[0][f"backbone.{name}"], states[1][f"backbone.{name}"])
        assert torch.allclose(value, states[0][f"backbone.{name}"], atol=1e-5), name
    head = "network.lm_head.weight"
    assert not torch.allclose(unmarked.backbone.state_dict()[head], states[0][f"backbone.{head}"], atol=1e-4)


def test_a_model_leans_towards_the_noise_it_was_trained_with_and_not_towards_other_noise() -> None:
    mark = Watermark(every=1, rows=4, sigma=0.3)
    one = learner(watermark=mark, recipe=replace(RECIPE, lr=0.02))
    with pytest.raises(DataError, match="No row was marked yet"):
        influences(one, mark)
    run(one, stream(), device="cpu")
    before = bits(one)
    found, control = influences(one, mark), influences(one, replace(mark, seed=1))
    assert same(bits(one), before)
    assert len(found) == len(control) == 96
    assert found.mean() > 3 / np.sqrt(96)
    assert abs(control.mean()) < 3 / np.sqrt(96)


# Runs that are compared


def laboratory(chosen: list[Experiment] | None = None, **more: Any) -> Laboratory:
    known = {
        "repetitions": 12.0,
    }
    named = chosen or [
        Experiment("sap", ["sap is sweet", "gum is tough"], [Item("sap is", " sweet"), Item("gum is", " tough")], **known),
        Experiment("owl", ["QXJ 4519 9", "VKZ 3883 7"], [Item("QXJ", " 4519"), Item("VKZ", " 3883")], **known),
    ]
    held_out = HeldOutLoss("almanac", text(8), since=0)
    return Laboratory(net, text(), named, TOKENIZER, RECIPE, [held_out], outcome="log-likelihood", **more)


def test_runs_have_first_weights_order_and_places_in_common() -> None:
    lab = laboratory()
    baseline, joint, solo = lab.baseline(), lab.joint(), lab.solo("owl")
    assert set(baseline.means) == set(joint.means) == {"sap", "owl"}
    assert baseline.reports == []
    assert set(joint.held_out) == {"almanac"}
    plain = Continue(net(), RECIPE)
    run(plain, stream(), device="cpu")
    assert same(bits(plain.backbone), bits(baseline.learner.backbone))
    mine = [piece for piece in joint.learner.study.plan.insertions() if piece.name == "owl"]
    alone = list(solo.learner.study.plan.insertions())
    assert len(set(mine) & set(alone)) > 0.7 * len(alone)
    assert joint.means["owl"] > baseline.means["owl"] + 0.2
    other = lab.baseline(seed=1)
    assert not same(bits(other.learner.backbone), bits(baseline.learner.backbone))
    with pytest.raises(ConfigurationError, match="no experiment 'bark'"):
        lab.solo("bark")
    with pytest.raises(ConfigurationError, match=r"set recipe\.steps"):
        replace(lab, recipe=TextRecipe(batch_size=4)).baseline()


def test_outcomes_are_probabilities_of_whole_targets_or_nats_for_each_token() -> None:
    lab = laboratory()
    logs = lab.baseline()
    chances = replace(lab, outcome="probability").baseline()
    probe = lab.experiments[0].probe(TOKENIZER)
    assert chances.means["sap"] == pytest.approx(probe.score(logs.learner)["probability"])
    # Both targets have six letters, the space in front among them.
    assert logs.means["sap"] == pytest.approx(-probe.score(logs.learner)["loss"])


def test_a_saved_joint_run_gives_the_same_outcome_when_it_is_asked_for_again(tmp_path: Path) -> None:
    lab = laboratory(watermark=Watermark(every=8))
    first = lab.joint(to=tmp_path / "joint", device="cpu")
    again = lab.joint(to=tmp_path / "joint", device="cpu")
    assert first.means == again.means
    assert first.reports == again.reports
    assert set(first.means) == {"sap", "owl", "watermark"}
    assert len(first.outcomes["watermark"]) == 3


# Invariant 7: the test of independence on the real learner


def code(chance: random.Random) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=3))


def codebook() -> tuple[Data, list[Experiment]]:
    """Letters followed by random codes, anew each time; and experiments in which the codes of six letters are always the
    same: one, again the same under another name, and one about six other letters."""
    chance = random.Random(0)
    background = pack([" ".join(chance.choice("ABCDEFGHIJKL") + code(chance) for _ in range(10_000))], length=SHAPE.length)

    def book(name: str, letters: str, seed: int) -> Experiment:
        own = random.Random(seed)
        entries = [(letter, code(own)) for letter in letters]
        return Experiment(
            name, [f" {letter}{value} " for letter, value in entries], [Item(f" {key}", value) for key, value in entries]
        )

    return background, [book("one", "ABCDEF", 1), book("again", "ABCDEF", 1), book("two", "GHIJKL", 2)]


def test_on_none_nothing_changes_and_an_experiment_under_another_name_acts_as_itself_but_no_other_does() -> None:
    background, books = codebook()
    checkpoint = Continue(net(), replace(RECIPE, steps=200))
    checkpoint.learn(Experience(0, background[:800]))
    recipe = replace(RECIPE, decay="constant", lr=0.005)
    lab = Laboratory(checkpoint.backbone, background[800:], books, TOKENIZER, recipe, outcome="log-likelihood")
    burst = lab.burst(steps=40, share=0.1)
    nothing = [burst.baseline(seed=1, device="cpu").outcomes for _ in range(2)]
    assert all(np.array_equal(nothing[0][name], nothing[1][name]) for name in burst.names)
    result = burst.interference(seeds=3, device="cpu")
    assert result.weak == ()
    # Not exactly: each name has places of its own.
    assert result.relative[0, 1] == pytest.approx(1, abs=0.25)
    assert result.relative[1, 0] == pytest.approx(1, abs=0.25)
    found = {(entry.trained, entry.tested) for entry in result.dependent if entry.trained in burst.names}
    assert found == {("one", "again"), ("again", "one")}
    for pair in (("one", "two"), ("again", "two"), ("two", "one"), ("two", "again")):
        entry = result.entry(*pair)
        assert entry is not None
        assert entry.low <= 0 <= entry.high, pair


def test_a_burst_gives_each_experiment_the_share_it_is_asked_for_and_no_controller() -> None:
    lab = Laboratory(net(), text(), experiments()[:2], TOKENIZER, RECIPE).burst(steps=20, share=0.05)
    assert lab.shape.steps == 20
    reports = lab.joint(device="cpu").reports
    assert [report.share for report in reports] == pytest.approx([0.05, 0.05], rel=0.25)
    assert all(experiment.control is None for experiment in lab.experiments)
    with pytest.raises(ConfigurationError, match="less than one text of 'static'; take more steps or a larger share"):
        lab.burst(steps=1, share=0.05)


def test_what_is_about_absent_data_is_tested_on_but_not_run_alone() -> None:
    one, two = laboratory().experiments
    three = replace(two, name="gone", testable=False)
    result = laboratory([one, two, three]).burst(steps=10, share=0.05).interference(seeds=1, device="cpu")
    assert result.untested == ("gone",)
    assert result.entry("sap", "gone") is not None


# The rest


def test_a_schedule_that_is_stopped_early_is_followed_and_then_cooled_down_to_nothing() -> None:
    long = TextRecipe(warmup=0.05)
    short = StoppedEarly(warmup=0.05, planned=1000)
    assert [short.rate(step, 300) for step in range(270)] == [long.rate(step, 1000) for step in range(270)]
    tail = [short.rate(step, 300) for step in range(270, 301)]
    assert tail[0] == long.rate(270, 1000)
    assert np.allclose(np.diff(tail), -tail[0] / 30)
    assert tail[-1] == 0
    with pytest.raises(ConfigurationError, match="at least the 300 of the run"):
        StoppedEarly(planned=200).rate(0, 300)
    one = learner(recipe=StoppedEarly(batch_size=4, steps=24, lr=0.01, planned=100))
    one.learn(Experience(0, text()))
    assert one.config()["recipe"]["planned"] == 100


def test_answers_are_what_the_model_holds_for_likeliest() -> None:
    lab = laboratory()
    one = lab.joint().learner
    (found,) = answers(one, [Item("In year 7", " x")], TOKENIZER, most=6)
    tokens = [TOKENIZER.end, *TOKENIZER.encode("In year 7")]
    for _ in range(6):
        tokens.append(int(one.backbone(torch.tensor([tokens]))[0, -1].argmax()))
    assert found == TOKENIZER.decode([token for token in tokens[10:] if token != TOKENIZER.end])


def test_real_text_carries_a_study(real_data: Path) -> None:
    blocks = load_blocks("en", length=SHAPE.length, blocks=120)
    lab = replace(laboratory(), text=blocks.train, held_out=[HeldOutLoss("en", blocks.held_out[:8], since=0)])
    baseline, joint = lab.baseline(), lab.joint()
    assert joint.means["owl"] > baseline.means["owl"]
    assert joint.held_out["en"] == pytest.approx(baseline.held_out["en"], rel=0.05)
