"""Tasks: the arrivals of split, with the task revealed to learner and probes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latewood import Recipe
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.learner import Learner
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.images.datasets import load_images
from latewood.images.learners.finetune import Finetune
from latewood.images.learners.nmc import NMC
from latewood.images.nets import mlp, pixels
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.embedding import Encoder


def learners(stream: Stream) -> list[Learner]:
    return [NMC(pixels(stream.example)), Finetune(mlp(stream.example, width=32), recipe=Recipe(epochs=2))]


def test_the_samples_are_those_of_split() -> None:
    revealed, hidden = (make("digits", steps=4, base=3, seed=7) for make in (tasks, split))
    for a, b in zip(revealed, hidden, strict=True):
        assert (a.index, a.classes) == (b.index, b.classes)
        assert all(torch.equal(a.train[name], b.train[name]) for name in ("image", "label"))
    for p, q in zip(revealed.probes, hidden.probes, strict=True):
        assert (p.name, p.since, p.weight) == (q.name, q.since, q.weight)
        assert all(torch.equal(p.data[name], q.data[name]) for name in ("image", "label"))


def test_the_task_is_a_column_of_train_and_test_and_a_field_of_the_experience() -> None:
    stream = tasks("digits", steps=3)
    for step, (experience, probe) in enumerate(zip(stream, stream.probes, strict=True)):
        assert experience.task == step
        for data in (experience.train, probe.data):
            assert data["task"].tolist() == [step] * len(data)


def test_it_can_not_be_taken_for_split_when_a_run_is_resumed() -> None:
    assert tasks("digits").config != split("digits").config


@pytest.mark.parametrize("kind", [0, 1], ids=["closed form", "gradient"])
def test_a_learner_chooses_only_among_the_classes_of_the_task(kind: int) -> None:
    stream = tasks("digits", steps=5)
    learner = learners(stream)[kind]
    for experience in stream:
        learner.learn(experience)
    strangers = 0
    for step, probe in enumerate(stream.probes):
        assert set(learner.predict(probe.data).tolist()) <= set(stream[step].classes)
        free = learner.predict(probe.data.select("image", "label"))
        strangers += sum(label not in stream[step].classes for label in free.tolist())
    assert strangers > 0, "without the task it would have chosen the same, so this shows nothing"


def test_told_the_task_accuracy_is_higher() -> None:
    revealed, hidden = tasks("digits", steps=5), split("digits", steps=5)
    told = run(NMC(pixels(revealed.example)), revealed, device="cpu")
    untold = run(NMC(pixels(hidden.example)), hidden, device="cpu")
    assert told.last > untold.last
    assert (told.matrix()[-1] >= untold.matrix()[-1]).all()


def embedded(encoder: Encoder, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows the network has to look at for all of a stream."""
    seen = 0
    original = Encoder._embed

    def counting(self: Encoder, rows: Data) -> tuple[Tensor, int]:
        nonlocal seen
        seen += len(rows)
        return original(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "_embed", counting)
        for experience in stream:
            encoder(experience.train)
        for probe in stream.probes:
            encoder(probe.data)
    return seen


def test_embeddings_are_those_of_split_so_nothing_is_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    encoder, images = Encoder(mlp(split("digits").example)), load_images("digits")
    assert embedded(encoder, split(images), monkeypatch) == len(images.train) + len(images.test)
    assert embedded(encoder, tasks(images, seed=3), monkeypatch) == 0


def test_a_subset_of_the_classes_shares_the_embeddings_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    images = load_images("digits")
    encoder, subset = Encoder(mlp(split(images).example)), images.subset([3, 1, 4, 5])
    embedded(encoder, split(images), monkeypatch)
    assert embedded(encoder, split(subset, steps=2), monkeypatch) == 0
    assert embedded(encoder, tasks(subset, steps=2), monkeypatch) == 0


def test_what_split_refuses_is_refused_here() -> None:
    with pytest.raises(ConfigurationError, match="lists class 1 twice"):
        tasks("digits", groups=[[1], [1]])
    with pytest.raises(ConfigurationError, match="can't be divided into 11 arrivals"):
        tasks("digits", steps=11)
