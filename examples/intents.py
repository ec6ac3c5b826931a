"""Ten weeks of new intents: a model directory against retraining everything and against fine-tuning on what is new.

CLINC150 (Larson et al., 2019): requests as text, 150 intents with 100 sentences each to learn from and 30 to test on.
Fifteen intents arrive at a time. After each arrival all ways are asked about every test sentence whose intent has arrived:

- ``latewood``: a model directory learns the arrival (frozen sentence encoder, G-ACIL on top);
- ``retrain``: the sentence encoder with a new softmax layer is trained on everything so far, from the published weights;
- ``retrain head``: only the softmax layer is trained on everything so far, on embeddings that are kept;
- ``fine-tune``: encoder and softmax layer, as the last arrival left them, are trained on the new arrival alone.

Times are processor seconds on one thread, embedding included.

    python examples/intents.py [--data FOLDER] [--ways latewood ...] [--json FILE] [--plot FILE.svg]

``--data`` is a folder with ``train*.parquet`` and ``test*.parquet`` (default: ``clinc150`` under LATEWOOD_DATA); without one
the data set comes from the hub (``clinc/clinc_oos``, configuration ``plus``, without its out-of-scope class).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Model
from latewood.core.data import Data
from latewood.core.seeding import seeded
from latewood.language.nets import sentence

WEEKS, SEED = 10, 0
Rows = tuple[list[str], list[int]]
Way = Callable[[list[Rows]], Callable[[list[str]], Tensor]]


def load(folder: Path | None) -> tuple[Rows, Rows]:
    """Training and test sentences, with the intents as numbers from 0."""
    import datasets

    if folder is not None:
        files = {part: [str(file) for file in sorted(folder.glob(f"{part}*.parquet"))] for part in ("train", "test")}
        table = datasets.load_dataset("parquet", data_files=files)
        label, outside = "label", None
    else:
        table = datasets.load_dataset("clinc/clinc_oos", "plus")
        label, outside = "intent", table["train"].features["intent"].str2int("oos")
    parts = []
    for part in ("train", "test"):
        rows = [
            (text, number) for text, number in zip(table[part]["text"], table[part][label], strict=True) if number != outside
        ]
        order = {number: place for place, number in enumerate(sorted({number for _, number in rows}))}
        parts.append(([text for text, _ in rows], [order[number] for _, number in rows]))
    return parts[0], parts[1]


def of_week(rows: Rows, weeks: Sequence[Sequence[int]], week: int) -> Rows:
    chosen = [(text, label) for text, label in zip(*rows, strict=True) if label in weeks[week]]
    return [text for text, _ in chosen], [label for _, label in chosen]


class ModelDirectory:
    """``latewood``: what a user of the command line does, in Python."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.model = Model.init(Path(self.folder.name) / "intents", kind="text")

    def learn(self, arrivals: list[Rows]) -> None:
        texts, labels = arrivals[-1]
        outcome = self.model.learn(
            {"text": texts, "label": [f"intent {label}" for label in labels]}, source=f"week {len(arrivals)}"
        )
        if outcome.held:
            self.model.accept()

    def predict(self, texts: list[str]) -> list[int]:
        return [int(guesses[0].label.split()[1]) for guesses in self.model.predict(texts)]


class Trained:
    """Encoder and softmax layer trained by AdamW with a linear schedule; ``fresh`` starts over with all data each week."""

    epochs, batch, encoder_rate, head_rate = 2, 32, 2e-4, 1e-2

    def __init__(self, fresh: bool) -> None:
        self.fresh = fresh
        self._start()

    def _start(self) -> None:
        with seeded(SEED, "head"):
            self.encoder = sentence(Data(text=["a"]))
            self.head = nn.Linear(self.encoder.width, 150)

    def learn(self, arrivals: list[Rows]) -> None:
        if self.fresh:
            self._start()
        texts, labels = joined(arrivals) if self.fresh else arrivals[-1]
        steps = self.epochs * -(-len(texts) // self.batch)
        groups = [
            {"params": self.encoder.parameters(), "lr": self.encoder_rate},
            {"params": self.head.parameters(), "lr": self.head_rate},
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / (0.1 * steps), 1 - step / steps))
        targets = torch.tensor(labels)
        self.encoder.train()
        with seeded(SEED, "training", len(arrivals)):
            for rows in self._batches(len(texts)):
                inputs = self.encoder.prepare(Data(text=[texts[row] for row in rows]))
                loss = F.cross_entropy(self.head(self.encoder(inputs) * self.encoder.width**0.5), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.encoder.eval()

    def _batches(self, count: int) -> Iterator[list[int]]:
        for _ in range(self.epochs):
            yield from (part.tolist() for part in torch.randperm(count).split(self.batch))

    @torch.no_grad()
    def predict(self, texts: list[str]) -> list[int]:
        return self.head(embedded(self.encoder, texts) * self.encoder.width**0.5).argmax(1).tolist()


class Head:
    """``retrain head``: logistic regression on embeddings of everything so far, which are kept."""

    def __init__(self) -> None:
        self.encoder = sentence(Data(text=["a"])).eval()
        self.features: list[Tensor] = []

    def learn(self, arrivals: list[Rows]) -> None:
        from sklearn.linear_model import LogisticRegression

        self.features.append(embedded(self.encoder, arrivals[-1][0]))
        labels = joined(arrivals)[1]
        scaled = torch.cat(self.features) * self.encoder.width**0.5
        self.classifier = LogisticRegression(max_iter=200, C=0.1).fit(scaled.numpy(), labels)

    def predict(self, texts: list[str]) -> list[int]:
        return self.classifier.predict((embedded(self.encoder, texts) * self.encoder.width**0.5).numpy()).tolist()


WAYS: dict[str, Callable[[], Any]] = {
    "latewood": ModelDirectory,
    "retrain": lambda: Trained(fresh=True),
    "retrain head": Head,
    "fine-tune": lambda: Trained(fresh=False),
}


def joined(arrivals: list[Rows]) -> Rows:
    return [text for texts, _ in arrivals for text in texts], [label for _, labels in arrivals for label in labels]


@torch.no_grad()
def embedded(encoder: Any, texts: list[str]) -> Tensor:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features = torch.empty(len(texts), encoder.width)
    for start in range(0, len(texts), 64):
        rows = order[start : start + 64]
        features[rows] = encoder(encoder.prepare(Data(text=[texts[row] for row in rows])))
    return features


def live(way: Any, train: Rows, test: Rows, weeks: Sequence[Sequence[int]], tell: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy on each week's intents after each arrival, and the seconds that learning took."""
    arrivals: list[Rows] = []
    matrix, seconds = [], []
    for week in range(len(weeks)):
        arrivals.append(of_week(train, weeks, week))
        start = time.process_time()
        way.learn(arrivals)
        seconds.append(time.process_time() - start)
        row = []
        for past in range(week + 1):
            texts, labels = of_week(test, weeks, past)
            row.append(sum(a == b for a, b in zip(way.predict(texts), labels, strict=True)) / len(labels))
        matrix.append(row)
        tell(f"week {week + 1}: {sum(row) / len(row):.3f} in {seconds[-1]:.1f} s")
    last = matrix[-1]
    forgetting = [max(matrix[i][past] for i in range(past, len(weeks) - 1)) - last[past] for past in range(len(weeks) - 1)]
    return {
        "accuracy": [sum(row) / len(row) for row in matrix],
        "seconds": seconds,
        "forgetting": sum(forgetting) / len(forgetting),
        "matrix": matrix,
    }


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy after each arrival, and seconds of each arrival, side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    grey = "#7a7f87"  # readable on light and on dark ground
    mpl.rcParams.update({"svg.hashsalt": "latewood", "font.size": 10, "text.color": grey, "axes.edgecolor": grey})
    mpl.rcParams.update({"axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    styles = {
        "latewood": ("#2f8f5b", "o"),
        "retrain": ("#3b6fb6", "s"),
        "retrain head": ("#8d6bb8", "^"),
        "fine-tune": ("#c2573a", "D"),
    }
    for name, found in results.items():
        colour, marker = styles[name]
        weeks = range(1, len(found["accuracy"]) + 1)
        left.plot(weeks, [100 * value for value in found["accuracy"]], color=colour, marker=marker, markersize=4, label=name)
        right.plot(weeks, found["seconds"], color=colour, marker=marker, markersize=4, label=name)
    left.set(xlabel="arrival (15 intents each)", ylabel="accuracy on all intents so far (%)", ylim=(0, 100))
    right.set(xlabel="arrival", ylabel="processor seconds to learn it", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    figure.savefig(path, transparent=True, metadata={"Date": None})


def table(results: dict[str, Any]) -> str:
    heads = ("way", "accuracy after the last arrival", "averaged over arrivals", "forgetting")
    lines = [f"| {' | '.join((*heads, 'seconds, first arrival', 'last arrival', 'all'))} |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        mean = sum(found["accuracy"]) / len(found["accuracy"])
        shares = " | ".join(f"{100 * value:.1f} %" for value in (found["accuracy"][-1], mean, found["forgetting"]))
        times = " | ".join(f"{value:,.0f}" for value in (found["seconds"][0], found["seconds"][-1], sum(found["seconds"])))
        lines.append(f"| {name} | {shares} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shelf = os.environ.get("LATEWOOD_DATA")
    local = Path(shelf) / "clinc150" if shelf else None
    parser.add_argument("--data", type=Path, default=local if local and local.is_dir() else None)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--weeks", type=int, default=WEEKS, help="how many of the ten arrivals to live through")
    parser.add_argument("--json", type=Path, help="results; ways that are in the file already are kept")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load(options.data)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(SEED)).tolist()
    weeks = [order[15 * week : 15 * week + 15] for week in range(WEEKS)][: options.weeks]
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.ways:
        tell = functools.partial(print, f"{name}:", flush=True)
        results[name] = live(WAYS[name](), train, test, weeks, tell)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    results = {name: results[name] for name in WAYS if name in results}
    if options.plot:
        plot(results, options.plot)
    print(table(results))


if __name__ == "__main__":
    main()
