"""Randomness: what a seed decides, what it leaves alone, and that the same run gives the same bits."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, GradientLearner, Learner, Probe, Recipe, Record, Stream, run
from latewood.core.progress import Bar, Progress
from latewood.core.seeding import derive_seed, deterministic, generator, seeded


def draw() -> tuple[float, float, float]:
    """One number from each global generator."""
    return float(torch.rand(())), float(np.random.rand()), random.random()


def numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))


# Seeds


def test_a_derived_seed_depends_on_every_part_of_its_key_and_their_order() -> None:
    keys: list[tuple[object, ...]] = [
        (0,),
        (1,),
        (0, 0),
        (0, "learn"),
        ("learn", 0),
        (0, "learn", 0),
        (0, "learn", 1),
        ("0",),
        (0.0,),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(derive_seed(*key) == derive_seed(*key) for key in keys)
    assert all(0 <= derive_seed(i) < 2**63 for i in range(200))


def test_a_derived_seed_is_the_same_everywhere_and_forever() -> None:
    """Or records could not be repeated with the next version; in particular it does not follow Python's hash seed."""
    assert derive_seed(0, "learn", 3) == 4237540105072386215


def test_a_named_generator_repeats() -> None:
    assert torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 1)))
    assert not torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 2)))


def test_inside_seeded_every_global_generator_repeats_and_outside_none_notices() -> None:
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    with seeded("x", 1):
        first = draw()
    with seeded("x", 1):
        assert draw() == first
    with seeded("x", 2):
        assert draw() != first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy_state() == before[1]
    assert random.getstate() == before[2]


def test_an_error_inside_seeded_still_restores_the_generators() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with pytest.raises(RuntimeError, match="stop"), seeded(0):
        draw()
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


def test_blocks_that_are_seeded_can_be_nested() -> None:
    with seeded("outer"):
        alone = [draw(), draw()]
    with seeded("outer"):
        first = draw()
        with seeded("inner"):
            draw()
        assert [first, draw()] == alone


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_determinism_is_asked_for_inside_the_block_only(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        with deterministic():
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled() == before[0]
        assert torch.is_deterministic_algorithms_warn_only_enabled() == before[1]
        with pytest.raises(RuntimeError, match="stop"), deterministic():
            raise RuntimeError("stop")
        assert torch.are_deterministic_algorithms_enabled() == before[0]
    finally:
        torch.use_deterministic_algorithms(False)


# Runs


class Dropping(GradientLearner):
    """Draws from its own generator (batches, the noise) and from all global ones (dropout, augmentation)."""

    def __init__(self, recipe: Recipe = Recipe(epochs=2, batch_size=8, lr=0.05)) -> None:
        super().__init__(recipe)
        with seeded("initial weights"):
            self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def loss(self, batch: Data) -> Tensor:
        x = batch.tensor("x") + 0.1 * torch.randn(len(batch), 4, generator=self.generator)
        x = x * np.random.uniform(0.9, 1.1) + random.gauss(0, 0.1)
        return F.cross_entropy(self.net(x), batch.tensor("label"))

    def predict(self, data: Data) -> Tensor:
        logits: Tensor = self.net(data.tensor("x"))
        return logits.argmax(1)

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])


class Accuracy(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"accuracy": float((learner.predict(self.data) == self.data.tensor("label")).float().mean())}


def stream(probes: int = 2) -> Stream:
    source = torch.Generator().manual_seed(2)
    parts = [Data(x=torch.randn(30, 4, generator=source), label=torch.arange(30) % 2) for _ in range(2)]
    held_out = [Accuracy(f"p{i}", parts[i % 2][:20], i % 2) for i in range(probes)]
    return Stream("noise", 2, lambda i: Experience(i, parts[i], (0, 1)), held_out)


def go(seed: int = 0, probes: int = 2, progress: Progress | None = None, **more: Any) -> tuple[Record, Tensor]:
    learner = Dropping()
    record = run(learner, stream(probes), seed=seed, device="cpu", progress=progress, **more)
    return record, learner.weights()


def test_the_same_seed_gives_the_same_record_and_the_same_bits() -> None:
    (first, weights), (second, again) = go(), go()
    assert first.repeatable() == second.repeatable()
    assert torch.equal(weights, again)
    assert not torch.equal(weights, Dropping().weights())  # it did learn


def test_another_seed_gives_other_weights() -> None:
    assert not torch.equal(go(seed=0)[1], go(seed=1)[1])


def test_the_seed_decides_every_kind_of_randomness() -> None:
    """Each source of noise alone: batches, the learner's generator, torch's, numpy's and Python's."""

    class Still(Dropping):
        def loss(self, batch: Data) -> Tensor:
            return F.cross_entropy(self.net(batch.tensor("x") + self.noise(batch)), batch.tensor("label"))

        noise: Callable[[Data], Any]

    sources: list[Callable[[Still], Callable[[Data], Any]]] = [
        lambda learner: lambda batch: torch.randn(len(batch), 4, generator=learner.generator),
        lambda learner: lambda batch: torch.randn(len(batch), 4),
        lambda learner: lambda batch: float(np.random.randn()),
        lambda learner: lambda batch: random.gauss(0, 1),
        lambda learner: lambda batch: 0.0,
    ]
    for source in sources:

        def weights(seed: int, source: Callable[[Still], Callable[[Data], Any]] = source) -> Tensor:
            learner = Still(Recipe(epochs=1, batch_size=8))
            learner.net[2].p = 0.0  # type: ignore[assignment]
            learner.noise = source(learner)
            run(learner, stream(), seed=seed, device="cpu")
            return learner.weights()

        assert torch.equal(weights(0), weights(0))
        assert not torch.equal(weights(0), weights(1))


def test_more_probes_do_not_change_the_weights() -> None:
    few, many = go(probes=1), go(probes=5)
    assert torch.equal(few[1], many[1])
    assert few[0].matrix()[:, 0].tolist() == many[0].matrix()[:, 0].tolist()


def test_scoring_unseen_probes_does_not_change_the_weights() -> None:
    assert torch.equal(go()[1], go(transfer=True)[1])


def test_watching_does_not_change_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert torch.equal(go()[1], go(progress=Bar())[1])
    capsys.readouterr()


def test_what_the_global_generators_did_before_does_not_change_the_weights() -> None:
    first = go()
    draw()
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    second = go()
    assert torch.equal(first[1], second[1])
    assert first[0].repeatable() == second[0].repeatable()


def test_what_happens_between_two_experiences_does_not_change_the_weights() -> None:
    class Drawing(Progress):
        def experience_done(self) -> None:
            draw()

    class Random(Accuracy):
        def score(self, learner: Learner) -> dict[str, float]:
            draw()
            return super().score(learner)

    learner, base = Dropping(), stream()
    noisy = Stream("noise", 2, base._build, [Random(p.name, p.data, p.since) for p in base.probes])
    run(learner, noisy, device="cpu", progress=Drawing())
    assert torch.equal(learner.weights(), go()[1])


def test_a_run_leaves_the_global_generators_as_they_were() -> None:
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    go(transfer=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy_state() == before[1]
    assert random.getstate() == before[2]
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_experience_is_learned_the_same_whatever_was_learned_before() -> None:
    """Each experience has a seed of its own: that is what makes it possible to resume."""
    learner = Dropping()
    run(learner, stream(), seed=4, device="cpu")
    alone = Dropping()
    alone.generator.manual_seed(derive_seed(4, "learn", 0))
    alone.learn(stream()[0])
    torch.rand(99, generator=alone.generator)
    alone.generator.manual_seed(derive_seed(4, "learn", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone.learn(stream()[1])
    assert torch.equal(alone.weights(), learner.weights())
