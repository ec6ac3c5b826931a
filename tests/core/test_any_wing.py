"""The core knows no wing: a language model and a regression learner run through it unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, GradientLearner, Learner, Probe, Recipe, Record, Stream, run

BLOCK = 32


class NextCharacter(GradientLearner):
    """A tiny recurrent language model over bytes."""

    def __init__(self, width: int = 32, recipe: Recipe = Recipe(optimizer="adam", lr=5e-3, batch_size=16)) -> None:
        super().__init__(recipe)
        self.width = width
        self.net = nn.ModuleDict({"embed": nn.Embedding(256, width), "gru": nn.GRU(width, width, batch_first=True)})
        self.net["out"] = nn.Linear(width, 256)

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        states, _ = self.net["gru"](self.net["embed"](tokens))
        return F.log_softmax(self.net["out"](states), dim=-1)

    def loss(self, batch: Data) -> Tensor:
        tokens = batch.tensor("tokens").long()
        return F.nll_loss(self.log_probabilities(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def predict(self, data: Data) -> Tensor:
        """The log-likelihood of each token but the first, shape ``(n, BLOCK - 1)``."""
        tokens = data.tensor("tokens").long()
        return self.log_probabilities(tokens[:, :-1]).gather(-1, tokens[:, 1:, None])[..., 0]


class Perplexity(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"perplexity": False}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"perplexity": float(learner.predict(self.data).mean().neg().exp())}


def language_stream(texts: Mapping[str, bytes]) -> Stream:
    blocks = {}
    for name, text in texts.items():
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        blocks[name] = Data(tokens=tokens[: len(tokens) // BLOCK * BLOCK].view(-1, BLOCK))
    names = list(texts)
    probes = [Perplexity(name, blocks[name][200:250], since=i) for i, name in enumerate(names)]
    return Stream("text", len(names), lambda i: Experience(i, blocks[names[i]][:200]), probes, config={"texts": names})


class RidgeLine(Learner):
    """Linear regression by its normal equations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gram", torch.eye(2, dtype=torch.float64) * 1e-6)
        self.register_buffer("moment", torch.zeros(2, dtype=torch.float64))

    def learn(self, experience: Experience) -> None:
        rows = self._rows(experience.train)
        self.gram += rows.T @ rows
        self.moment += rows.T @ experience.train.tensor("y").double()

    def predict(self, data: Data) -> Tensor:
        return self._rows(data) @ torch.linalg.solve(self.gram, self.moment)

    @staticmethod
    def _rows(data: Data) -> Tensor:
        x = data.tensor("x").double()
        return torch.stack([x, torch.ones_like(x)], dim=1)


class SquaredError(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"squared_error": False}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"squared_error": float((learner.predict(self.data) - self.data.tensor("y")).square().mean())}


def regression_stream() -> Stream:
    x = torch.linspace(-1, 1, 100)
    parts = [Data(x=x, y=3 * x + 1), Data(x=x, y=1 - 3 * x)]
    return Stream("lines", 2, lambda i: Experience(i, parts[i]), [SquaredError(f"line {i}", parts[i], i) for i in range(2)])


def _check_record(record: Record) -> None:
    assert record.matrix().shape == (2, 2)
    assert np.isnan(record.matrix()[0, 1])
    assert np.isfinite(record.forgetting)
    assert record.forgetting == -record.backward_transfer  # two experiences: the best is the first
    assert record.cost.seconds > 0
    assert record.cost.flops > 0
    assert record.cost.peak_memory > 0


def test_a_language_model_runs_on_real_text_and_forgets_english_when_it_learns_french(real_data: Path) -> None:
    english = (real_data / "text" / "tinyshakespeare.txt").read_bytes()[:20000]
    french = (real_data / "text" / "fr.txt").read_bytes()[:20000]
    stream = language_stream({"english": english, "french": french})
    torch.manual_seed(0)
    learner = NextCharacter(recipe=Recipe(optimizer="adam", lr=5e-3, batch_size=16, epochs=6))
    record = run(learner, stream, device="cpu", transfer=True)
    _check_record(record)
    assert record.main == "perplexity"
    assert record.matrix()[0, 0] < 30  # of 256 bytes: it has learned English
    assert record.forgetting > 0  # perplexity on English rose, and a rise of what should be low is forgetting
    assert record.forward_transfer > 0  # knowing English helps French, compared with knowing nothing


def test_a_regression_learner_gives_the_same_kind_of_record() -> None:
    record = run(RidgeLine(), regression_stream(), device="cpu")
    _check_record(record)
    assert record.matrix()[0, 0] < 1e-9
    assert record.forgetting > 0.5  # the second line contradicts the first


def test_costs_name_what_is_kept_between_experiences() -> None:
    record = run(RidgeLine(), regression_stream(), device="cpu")
    assert record.cost.state == {"gram": 32, "moment": 16}
    assert record.cost.kept_bytes == 48
    assert record.cost.parameters == 0
