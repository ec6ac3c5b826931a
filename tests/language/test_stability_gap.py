"""Stability gap: its three strategies hold for whole runs, each can be left out, and a run that is killed goes on."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latewood.core.configure import build
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language.corpora import ByteTokenizer, join, pack
from latewood.language.expansion import layers
from latewood.language.learner import LanguageLearner
from latewood.language.learners.stability_gap import DOMAIN, Epochs, StabilityGap, split_documents
from latewood.language.nets import causal
from latewood.language.quality import QualityScorer
from latewood.language.recipe import TextRecipe
from latewood.parts.drift import Drift

LENGTH, BATCH = 16, 4
#: The first token of a row tells its source, and the next two its number.
SOURCES = {"crawl": 1, "books": 2, "code": 3}
SIZES = {"crawl": 120, "books": 60, "code": 20}


def numbered(source: int, count: int) -> Data:
    rows = torch.full((count, LENGTH), source, dtype=torch.int32)
    rows[:, 1], rows[:, 2] = torch.arange(count) // 100, torch.arange(count) % 100
    return Data(tokens=rows, bytes=torch.full((count,), LENGTH, dtype=torch.int32))


def general() -> Data:
    return join({name: numbered(SOURCES[name], count) for name, count in SIZES.items()})


def corpus(count: int = 80) -> Data:
    return numbered(9, count)


def made(depth: int = 1, seed: int = 0, recipe: dict[str, Any] | None = None, **settings: Any) -> StabilityGap:
    torch.manual_seed(seed)
    net = causal(corpus(1), layers=depth, width=16, heads=2)
    settings = {"first": "keep", **settings}
    return StabilityGap(net, recipe=TextRecipe(**{"batch_size": BATCH, "warmup": 0.1, **(recipe or {})}), **settings)


def ready(**settings: Any) -> StabilityGap:
    """A learner that has seen the general text."""
    learner = made(**settings)
    learner.learn(Experience(0, general()))
    return learner


def epochs(learner: StabilityGap, text: Data | None = None) -> list[Data]:
    """All rows that the learner would be trained on, an epoch each."""
    text = corpus() if text is None else text
    plan = learner.plan(text)
    batches = learner._batches(text)
    drawn = [torch.cat([plan.draw().tensor("tokens") for _ in range(batches)]) for _ in range(learner.epochs)]
    return [Data(tokens=tokens) for tokens in drawn]


def counts(epoch: Data) -> Counter[int]:
    return Counter(epoch.tensor("tokens")[:, 0].tolist())


def identities(epoch: Data, source: int = 9) -> list[tuple[int, ...]]:
    return [tuple(row[:3]) for row in epoch["tokens"].tolist() if row[0] == source]


def weights(learner: LanguageLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.backbone.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Recorder(StabilityGap):
    """Remembers what every step learned from, and at which rate."""

    def __init__(self, *rest: Any, **settings: Any) -> None:
        super().__init__(*rest, **settings)
        self.seen: list[Tensor] = []
        self.lr: list[float] = []

    def batch(self, new: Data) -> Data:
        self.seen.append(new.tensor("tokens"))
        return new

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Any) -> None:
        self.lr.append(optimizer.param_groups[0]["lr"])


def recorded(**settings: Any) -> Recorder:
    learner = made(**settings)
    learner.__class__ = Recorder
    assert isinstance(learner, Recorder)
    learner.seen, learner.lr = [], []
    learner.learn(Experience(0, general()))
    learner.learn(Experience(1, corpus()))
    return learner


# Strategy III: the rates of pre-training


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("subset", [0.2, 0.45, 1.0])
def test_every_epoch_has_the_rates_within_one_row_and_the_web_gives_nothing(dynamic: bool, subset: float) -> None:
    rates = {"crawl": 0.61, "books": 0.27, "code": 0.12}
    learner = ready(subset=subset, epochs=3, rates=rates, dynamic=dynamic, memory=200)
    assert learner.shares() == pytest.approx({DOMAIN: 0.61, "books": 0.27, "code": 0.12})
    for epoch in epochs(learner):
        found = counts(epoch)
        assert found[SOURCES["crawl"]] == 0
        assert len(epoch) == int(subset * 80) // BATCH * BATCH
        for number, share in ((9, 0.61), (2, 0.27), (3, 0.12)):
            assert abs(found[number] - share * len(epoch)) < 1


def test_without_rates_those_of_the_first_arrival_count_and_its_largest_source_is_the_web() -> None:
    assert ready().shares() == pytest.approx({DOMAIN: 0.6, "books": 0.3, "code": 0.1})
    assert ready(web=("books", "code")).shares() == pytest.approx({DOMAIN: 0.4, "crawl": 0.6})


def test_what_is_trained_on_is_what_was_planned() -> None:
    learner = recorded(subset=0.5, epochs=2)
    planned = torch.cat([epoch.tensor("tokens") for epoch in epochs(learner)])
    assert torch.equal(torch.cat(learner.seen), planned)


def test_sources_that_the_domain_replaces_need_not_arrive_and_take_no_place() -> None:
    learner = ready(rates={"c4": 0.5, "books": 0.3, "code": 0.2}, web=("c4",))
    assert set(learner.kept.data["source"].tolist()) == {1, 2}
    assert learner.shares() == pytest.approx({DOMAIN: 0.5, "books": 0.3, "code": 0.2})


def test_each_source_keeps_slots_at_its_rate_and_different_rows_of_its_own() -> None:
    learner = ready(memory=20)
    kept = learner.kept.data["tokens"].tolist()
    assert Counter(row[0] for row in kept) == {2: 15, 3: 5}
    assert len({tuple(row[:3]) for row in kept}) == 20


def test_without_web_sources_the_plan_is_plain_replay_of_general_text() -> None:
    learner = ready(rates={"books": 0.7, "code": 0.3}, web=(), subset=0.5, memory=60, epochs=1)
    (epoch,) = epochs(learner)
    assert counts(epoch) == {2: 28, 3: 12}


def test_one_epoch_over_everything_with_nothing_kept_is_one_pass_over_the_corpus() -> None:
    learner = ready(subset=1, epochs=1, rates={"crawl": 1.0})
    assert len(learner.kept) == 0
    (epoch,) = epochs(learner)
    assert sorted(identities(epoch)) == sorted(identities(corpus()))


# Strategy I: several epochs


def test_epochs_share_the_part_of_the_pool_that_chance_gives_and_all_of_it_if_the_data_is_fixed() -> None:
    for dynamic in (True, False):
        learner = ready(subset=180 * LENGTH, epochs=2, dynamic=dynamic, memory=300)
        first, second = (identities(epoch) for epoch in epochs(learner, corpus(500)))
        assert len(set(first)) == len(first) == len(second) == 108
        common = len(set(first) & set(second)) / 108
        assert common == (pytest.approx(108 / 180, abs=0.1) if dynamic else 1)
        assert first != second  # in another order


def test_without_quality_the_subset_is_a_random_one_that_the_seed_decides() -> None:
    learner = ready(subset=0.25)
    learner.mixture_seed = 5
    pool = learner.pool(corpus())
    assert len(pool) == 20
    assert torch.equal(pool.tensor("tokens"), learner.pool(corpus()).tensor("tokens"))
    learner.mixture_seed = 6
    assert not torch.equal(pool.tensor("tokens"), learner.pool(corpus()).tensor("tokens"))


def test_all_epochs_fit_into_the_budget_and_a_plan_that_does_not_is_refused_before_training() -> None:
    for subset, passes in ((0.1, 4), (0.3, 3), (1.0, 1), (20 * LENGTH, 4)):
        learner = recorded(subset=subset, epochs=passes)
        wanted = subset * 80 if subset <= 1 else subset / LENGTH
        assert sum(map(len, learner.seen)) <= passes * wanted <= 80
    for settings in ({"subset": 0.3, "epochs": 4}, {"subset": 0.1, "epochs": 4, "recipe": {"steps": 7}}):
        learner = ready(**settings)
        before = weights(learner)
        with pytest.raises(ConfigurationError, match="exceed the budget"):
            learner.learn(Experience(1, corpus()))
        assert equal(weights(learner), before)


def test_one_schedule_spans_all_epochs_and_ends_at_its_minimum_once() -> None:
    learner = recorded(subset=0.5, epochs=2, recipe={"lr": 0.01, "floor": 0.1})
    rising = 2  # a tenth of 20 steps
    assert len(learner.lr) == 20
    assert learner.lr[:rising] == sorted(learner.lr[:rising])
    falling = learner.lr[rising:]
    assert all(later < before for before, later in pairwise(falling))
    assert falling[-1] == pytest.approx(0.001, rel=0.1)


def test_one_optimiser_goes_through_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    make = TextRecipe.make_optimizer
    monkeypatch.setattr(TextRecipe, "make_optimizer", lambda *rest: built.append(1) or make(*rest))  # type: ignore[func-returns-value]
    recorded(subset=0.25, epochs=4)
    assert len(built) == 1


def test_the_recipe_is_as_it_was_afterwards() -> None:
    learner = ready(recipe={"steps": 30})
    learner.learn(Experience(1, corpus()))
    assert learner.recipe.steps == 30


# Strategy II: the best documents


@pytest.fixture
def reference(tmp_path: Path) -> str:
    place = tmp_path / "trusted.txt"
    place.write_text("\n\n".join(f"def f{n}(x): return x + {n}" for n in range(200)))
    return str(place)


def crawl(count: int = 60) -> list[str]:
    """Documents of which every third is like the reference."""
    return [
        f"def g{n}(x): return x * {n}" if n % 3 == 0 else f"On day {n}, it rained in the hills and we stayed."
        for n in range(count)
    ]


def test_the_subset_is_made_of_the_documents_nearest_to_the_reference(reference: str) -> None:
    learner = ready(subset=0.2, quality=True, reference=reference)
    raw = pack(crawl(), length=LENGTH)
    pool = learner.pool(raw)
    scorer = QualityScorer(5)
    scorer.train(Path(reference).read_text().split("\n\n"))
    documents = [ByteTokenizer().decode(document.tolist()) for document in split_documents(raw, 256)]
    chosen = {ByteTokenizer().decode(document.tolist()) for document in split_documents(pool, 256)[:-1]}
    scores = dict(zip(documents, scorer.perplexities(documents), strict=True))
    assert chosen <= set(documents)
    assert all(document.startswith("def") for document in chosen)
    # The last one may be cut, so it is known by neither list.
    left = sorted(scores[document] for document in documents if document not in chosen)
    assert sorted(scores[document] for document in chosen)[-1] <= left[1]
    longest = max(map(len, documents)) + 1
    assert 0.2 * raw.tensor("tokens").numel() - LENGTH <= pool.tensor("tokens").numel()
    assert pool.tensor("tokens").numel() <= 0.2 * raw.tensor("tokens").numel() + longest
    assert torch.equal(pool.tensor("tokens"), learner.pool(raw).tensor("tokens"))


def test_the_pool_has_at_least_the_rows_that_epochs_are_drawn_from(reference: str) -> None:
    raw = pack(crawl(), length=LENGTH)
    for subset in (0.03, 0.11, 0.5, 0.99, 1.0):
        learner = ready(subset=subset, quality=True, reference=reference)
        assert len(learner.pool(raw)) >= learner._subset(raw)


def test_documents_are_those_that_rows_were_packed_from() -> None:
    texts = crawl(20)
    found = [ByteTokenizer().decode(document.tolist()) for document in split_documents(pack(texts, length=LENGTH), 256)]
    assert found[:-1] == texts[: len(found) - 1]
    assert texts[len(found) - 1].startswith(found[-1])


def test_no_document_reaches_over_two_sources_and_empty_ones_vanish() -> None:
    rows = Data(tokens=torch.tensor([[1, 0, 0, 2], [3, 4, 0, 5], [6, 0, 0, 0]]), source=["a", "a", "b"])
    assert [document.tolist() for document in split_documents(rows, 0)] == [[1], [2, 3, 4], [5], [6]]


def test_tokens_score_as_the_text_that_they_stand_for() -> None:
    scorer = QualityScorer(4)
    tokens = [np.array(ByteTokenizer().encode(text), dtype=np.int32) for text in crawl(9)]
    scorer.train(crawl(30))
    assert scorer.perplexities(tokens).tolist() == scorer.perplexities(crawl(9)).tolist()
    mixed: list[Any] = [*tokens[:4], *crawl(9)[4:]]
    assert scorer.rank(mixed).tolist() == scorer.rank(tokens).tolist()
    again = QualityScorer(4)
    again.train([np.array(ByteTokenizer().encode(text)) for text in crawl(30)])
    assert again.perplexities(tokens).tolist() == scorer.perplexities(tokens).tolist()


def test_tokens_of_another_tokenizer_are_refused() -> None:
    scorer = QualityScorer(2)
    scorer.train(["text"])
    for wrong in ([5000], [-1]):
        with pytest.raises(DataError, match="lie from 0 to 256; name the one that it was made with"):
            scorer.perplexities([np.array(wrong)])


# Arrivals


def test_the_first_arrival_trains_the_model_or_only_gives_what_is_replayed() -> None:
    for first, trained in (("train", True), ("keep", False)):
        learner = made(first=first)
        before = weights(learner)
        learner.learn(Experience(0, general()))
        assert equal(weights(learner), before) == (not trained)
        assert len(learner.kept) > 0
        assert list(learner.sources) == list(SIZES)


def test_the_first_arrival_is_trained_on_at_the_rates() -> None:
    learner = made(first="train", rates={"crawl": 0.5, "books": 0.25, "code": 0.25}, web=("crawl",))
    mixture = learner.mixture(Experience(0, general()))
    for _ in range(20):
        mixture.draw()
    assert mixture.given == {"crawl": 40, "books": 20, "code": 20}


def test_every_later_arrival_is_learned_beside_the_same_general_text() -> None:
    learner = ready(subset=0.25, epochs=4)
    kept = learner.kept.data.tensor("tokens").clone()
    for index in (1, 2):
        learner.learn(Experience(index, corpus()))
    assert torch.equal(learner.kept.data.tensor("tokens"), kept)
    assert int(learner.steps_done) == 40


def test_text_without_sources_is_one_source() -> None:
    learner = made(rates={"arrival": 0.2, "web": 0.8}, web=("web",))
    learner.learn(Experience(0, corpus()))
    assert learner.shares() == pytest.approx({DOMAIN: 0.8, "arrival": 0.2})


# Baselines


@pytest.mark.parametrize(("bottom", "top"), [(2, 0), (0, 1), (1, 2), (0, 0)])
def test_frozen_layers_do_not_move_on_a_domain_and_are_free_again(bottom: int, top: int) -> None:
    learner = ready(depth=4, freeze_bottom=bottom, freeze_top=top)
    drift = Drift(learner.backbone.network)
    learner.learn(Experience(1, corpus()))
    moved = [value > 0 for value in drift.by_layer().values()]
    assert moved == [bottom <= place < 4 - top for place in range(4)]
    assert all(parameter.requires_grad for parameter in learner.backbone.parameters())
    assert len(layers(learner.backbone.network)) == 4


# Killed and resumed


def stream() -> Stream:
    return Stream("rows", 2, lambda index: Experience(index, corpus() if index else general()), ())


@pytest.mark.parametrize(("death", "quality"), [(20, False), (26, True), (30, False), (32, True)])
def test_a_run_that_is_killed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int, quality: bool
) -> None:
    trusted = tmp_path / "trusted.txt"
    trusted.write_text("\t\t\t\t\t\n\n" * 40 + "some text")
    settings: dict[str, Any] = {"first": "train", "subset": 0.25, "epochs": 4, "recipe": {"batch_size": 8, "save_every": 3}}
    settings |= {"quality": quality, "reference": str(trusted), "freeze_top": 1}
    straight = made(depth=2, **settings)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    assert int(straight.steps_done) == 25 + 8
    count = [0]

    def dying(self: StabilityGap, *_: Any) -> None:
        count[0] += 1
        if count[0] == death:
            raise KeyboardInterrupt

    monkeypatch.setattr(StabilityGap, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(made(depth=2, **settings), stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    again = made(depth=2, **settings)
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert equal(weights(again), weights(straight))
    assert torch.equal(again.kept.data.tensor("tokens"), straight.kept.data.tensor("tokens"))


def test_state_carries_what_is_replayed_and_at_which_rates() -> None:
    learner, other = ready(memory=20), made(memory=20, seed=1)
    other.load_state_dict(learner.state_dict())
    assert other.shares() == learner.shares()
    assert torch.equal(other.kept.data.tensor("tokens"), learner.kept.data.tensor("tokens"))


# What makes no sense


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"subset": 0}, "subset must be above 0"),
        ({"epochs": 0}, "at least 1"),
        ({"memory": 0}, "at least 1"),
        ({"quality": True}, "name its corpus as reference"),
        ({"recipe": {"arrivals": 2, "steps": 5}}, "recipe.arrivals at 1"),
        ({"freeze_top": -1}, "numbers of layers"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        made(**settings)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"subset": 0.01}, ConfigurationError, "0 rows does not fill a batch of 4"),
        ({"subset": 100 * LENGTH}, ConfigurationError, "100 rows, but the corpus has only 80"),
        ({"freeze_bottom": 1, "freeze_top": 1}, ConfigurationError, "has 1 layers, so 1 and 1 of them can't be frozen"),
        ({"subset": 0.5, "epochs": 2, "memory": 8}, DataError, "blocks of 'books', but there are 6"),
        ({"quality": True, "reference": "./nowhere"}, ConfigurationError, "no file or folder './nowhere'"),
    ],
)
def test_a_domain_that_does_not_fit_is_refused_before_training(
    settings: dict[str, Any], kind: type[Exception], said: str
) -> None:
    learner = ready(**settings)
    recipe, before = learner.recipe, weights(learner)
    with pytest.raises(kind, match=said):
        learner.learn(Experience(1, corpus()))
    assert equal(weights(learner), before)
    assert learner.recipe == recipe
    assert all(parameter.requires_grad for parameter in learner.backbone.parameters())


def test_rates_that_do_not_fit_the_general_text_are_refused_before_training() -> None:
    for settings, said in (
        ({"rates": {"crawl": 0.5, "wiki": 0.5}, "web": ("crawl",)}, "rates ask for 'wiki'"),
        ({"web": ("wiki",)}, "'wiki' is none of the sources"),
        ({"rates": {"c4": 1.0}}, "none of which has a rate"),
    ):
        learner = made(first="train", **settings)
        before = weights(learner)
        with pytest.raises(ConfigurationError, match=said):
            learner.learn(Experience(0, general()))
        assert equal(weights(learner), before)
    with pytest.raises(ConfigurationError, match="which comes first"):
        made().shares()


def test_it_can_be_set_from_text_as_on_the_command_line() -> None:
    net = causal(corpus(1), layers=1, width=16, heads=2)
    settings = {"rates": "{web=0.9, books=0.1}", "web": '["web"]', "subset": "0.2", "first": "keep", "lr": "0.01"}
    learner = build(StabilityGap, settings, "stability-gap", backbone=net)
    assert (learner.rates, learner.web, learner.subset) == ({"web": 0.9, "books": 0.1}, ("web",), 0.2)
    assert (learner.recipe.lr, learner.recipe.warmup) == (0.01, 0.1)


def test_epochs_go_on_exactly_from_their_state() -> None:
    def fresh() -> Epochs:
        domains = {"a": numbered(1, 50), "b": numbered(2, 30)}
        return Epochs(domains, {"a": 0.6, "b": 0.4}, batches=5, batch_size=4, seed=3)

    straight = [batch for mixture in [fresh()] for batch in [mixture.draw()["tokens"] for _ in range(22)]]
    broken = fresh()
    for _ in range(13):
        broken.draw()
    resumed = fresh()
    resumed.load_state(broken.state())
    assert all(torch.equal(resumed.draw()["tokens"], straight[step]) for step in range(13, 22))
    assert torch.equal(resumed.read(4)["tokens"], straight[4])
    origin = resumed.origin(20, 0)
    assert origin.number_of_pass == 4  # an epoch is a pass
    assert straight[20][0, 1:3].tolist() == [origin.block // 100, origin.block % 100]
