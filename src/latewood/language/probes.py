"""How this wing scores a learner: the loss on held-out text, questions with options, and texts to complete.

``learner.predict(data)`` returns for each row of tokens, ``(n, length)``, the sum of the negative log-likelihoods in nats
of its tokens but the first, each given those before it: float64, ``(n,)``. Where the data has a column ``targets``
(bool, ``(n, length)``), only tokens count at which it is true.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.language.corpora import Tokenizer
from latewood.parts.drift import Drift


class Question(NamedTuple):
    """A question, its options, and the place of the right one among them."""

    question: str
    options: Sequence[str]
    answer: int


class _TextProbe(Probe):
    """A probe on the likelihood of tokens; ``needs`` are the columns that it reads beside ``tokens``."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, data: Data, since: int, weight: float = 1.0) -> None:
        super().__init__(name, data, since, weight)
        if absent := next((column for column in ("tokens", *self.needs) if column not in data), None):
            raise DataError(f"Probe {name!r} needs a column {absent!r}, but its data has {', '.join(map(repr, data))}.")
        self._predicted = _predicted(data)
        if not bool(self._predicted.all()):
            row = int((self._predicted == 0).nonzero()[0])
            raise DataError(f"Row {row} of probe {name!r} has no token to predict: there is none behind its first that counts.")

    def score(self, learner: Learner) -> dict[str, float]:
        nats = learner.predict(self.data).detach().cpu().double()
        if nats.shape != (len(self.data),):
            raise DataError(
                f"For probe {self.name!r} the learner must predict one number for each of {len(self.data)} rows, the nats of "
                f"its tokens, but it gave the shape {tuple(nats.shape)}."
            )
        return {metric: float(value) for metric, value in self.scores(nats).items()}

    @abstractmethod
    def scores(self, nats: Tensor) -> dict[str, Tensor]:
        """One number for each metric, given the nats of each row, float64 ``(n,)``."""


class HeldOutLoss(_TextProbe):
    """How well a learner foretells held-out text.

    ``loss`` is in nats for each predicted token; ``perplexity`` is its exponential; ``bits_per_byte`` is the same loss
    for each UTF-8 byte of text, so that models with different tokenizers can be compared: ``loss`` times the tokens in a
    byte (of whole rows: tokens that end a text are tokens, but no bytes), divided by ``ln 2``. The data has the columns
    ``tokens`` and ``bytes`` of :func:`~latewood.language.corpora.load_blocks`, or of ``pack``.

    >>> from latewood.language.corpora import pack
    >>> class Clueless(Learner):
    ...     def learn(self, experience): ...
    ...     def predict(self, data): return torch.full((len(data),), 7 * math.log(256))
    >>> scores = HeldOutLoss("en", pack(["To be, or not to be"], length=8), since=0).score(Clueless())
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'loss': 5.545, 'bits_per_byte': 8.0, 'perplexity': 256.0}
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "bits_per_byte": False, "perplexity": False}
    needs: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, name: str, data: Data, since: int, weight: float = 1.0) -> None:
        super().__init__(name, data, since, weight)
        size = int(data.tensor("bytes").sum())
        if size < 1:
            raise DataError(f"Probe {name!r} stands for no byte of text, so it can't be scored in bits per byte.")
        self._tokens_per_byte = len(data) * int(data[:1].tensor("tokens").shape[1]) / size

    def scores(self, nats: Tensor) -> dict[str, Tensor]:
        """Over all predicted tokens of all rows."""
        loss = nats.sum() / self._predicted.sum()
        return {"loss": loss, "bits_per_byte": loss * self._tokens_per_byte / math.log(2), "perplexity": loss.exp()}


class MultipleChoice(_TextProbe):
    """Questions with options, answered by likelihood, as the field's evaluation harness does (lm-evaluation-harness).

    Each row is a question and one of its options. ``acc`` is the share of questions whose right option has the highest
    log-likelihood, given the question; ``acc_norm`` the same with the log-likelihood divided by the option's UTF-8 bytes.
    Of equal ones the first counts. :meth:`from_questions` makes the rows; they have the columns ``tokens``, ``targets``,
    ``question`` (int64, rows of one question are neighbours), ``right`` (bool) and ``bytes`` (of the option).
    """

    metrics: ClassVar[Mapping[str, bool]] = {"acc": True, "acc_norm": True}
    needs: ClassVar[tuple[str, ...]] = ("targets", "question", "right", "bytes")

    def __init__(self, name: str, data: Data, since: int, weight: float = 1.0) -> None:
        super().__init__(name, data, since, weight)
        self._options = data.tensor("question").unique_consecutive(return_counts=True)[1].tolist()

    @classmethod
    def from_questions(
        cls,
        name: str,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        *,
        since: int = 0,
        weight: float = 1.0,
        length: int | None = None,
    ) -> MultipleChoice:
        """Each option stands behind its question and a space. A row begins with the token that ends a text (what comes
        before is over) and is padded with it on the right. Of a row of more than ``length`` tokens the beginning is left out.

        Errors: :class:`~latewood.core.errors.DataError` for no questions, fewer than two options, an empty one, an answer
        that is none of them, or an option that doesn't fit into ``length``.

        >>> from latewood.language.corpora import ByteTokenizer
        >>> probe = MultipleChoice.from_questions("colours", [Question("Snow is", ["white", "black"], 0)], ByteTokenizer())
        >>> ByteTokenizer().decode(probe.data["tokens"][1][probe.data["targets"][1]].tolist())
        ' black'
        """
        for number, question in enumerate(questions):
            if len(question.options) < 2 or not all(option.strip() for option in question.options):
                raise DataError(f"Question {number} of probe {name!r} needs at least two options, and none that is empty.")
            if not 0 <= question.answer < len(question.options):
                raise DataError(
                    f"Question {number} of probe {name!r} has the options 0 to {len(question.options) - 1}, but its answer is "
                    f"number {question.answer}."
                )
        rows = [(number, q, place) for number, q in enumerate(questions) for place in range(len(q.options))]
        texts = [(q.question, f" {q.options[place]}") for _, q, place in rows]
        columns = {
            "question": torch.tensor([number for number, _, _ in rows]),
            "right": torch.tensor([place == q.answer for _, q, place in rows]),
            "bytes": torch.tensor([len(q.options[place].encode()) for _, q, place in rows]),
        }
        return cls(name, _table(name, texts, tokenizer, length).with_columns(**columns), since, weight)

    def scores(self, nats: Tensor) -> dict[str, Tensor]:
        """Shares of questions, in [0, 1]."""
        by_byte = nats / self.data.tensor("bytes")
        return {"acc": self._share(nats), "acc_norm": self._share(by_byte)}

    def _share(self, costs: Tensor) -> Tensor:
        right = self.data.tensor("right").split(self._options)
        cheapest = [bool(r[c.argmin()]) for c, r in zip(costs.split(self._options), right, strict=True)]
        return torch.tensor(cheapest, dtype=torch.float64).mean()


class Cloze(_TextProbe):
    """Beginnings of texts, and how likely a learner holds what should follow.

    ``probability`` is the mean over rows of the probability of the whole target, given what comes before it; ``loss`` is
    in nats for each target token. :meth:`from_texts` makes the rows, with the columns ``tokens`` and ``targets``.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"probability": True, "loss": False}
    needs: ClassVar[tuple[str, ...]] = ("targets",)

    @classmethod
    def from_texts(
        cls,
        name: str,
        texts: Sequence[tuple[str, str]],
        tokenizer: Tokenizer,
        *,
        since: int = 0,
        weight: float = 1.0,
        length: int | None = None,
    ) -> Cloze:
        """Each text is a beginning and a target, which follow one another as they are: a space between them is part of one.
        Rows are made as for :meth:`MultipleChoice.from_questions`, with the same errors.

        >>> from latewood.language.corpora import ByteTokenizer
        >>> probe = Cloze.from_texts("capitals", [("The capital of France is", " Paris")], ByteTokenizer())
        >>> int(probe.data["targets"].sum())
        6
        """
        for number, (_, target) in enumerate(texts):
            if not target.strip():
                raise DataError(f"Text {number} of probe {name!r} has no target; it needs at least one character to complete.")
        return cls(name, _table(name, texts, tokenizer, length), since, weight)

    def scores(self, nats: Tensor) -> dict[str, Tensor]:
        """Over rows, and over target tokens."""
        return {"probability": nats.neg().exp().mean(), "loss": nats.sum() / self._predicted.sum()}


class WeightDrift(Probe):
    """How far each layer of a language model has moved since the probe was made (:class:`~latewood.parts.drift.Drift`).

    The metrics are ``layer 0``, ``layer 1``, ... and ``ratio``, that of the bottom layers to the top ones; it is NaN while
    nothing has moved. Its metrics are not those of other probes, so it is for a :class:`~latewood.core.watch.Watch`.

    >>> from latewood.language.nets import causal
    >>> net = causal(Data(tokens=torch.zeros(1, 8, dtype=torch.int32)), layers=2, width=16, heads=2)
    >>> list(WeightDrift("drift", net).metrics)
    ['layer 0', 'layer 1', 'ratio']
    """

    def __init__(self, name: str, backbone: nn.Module, since: int = 0, weight: float = 1.0) -> None:
        super().__init__(name, Data(layer=[0]), since, weight)
        self._drift = Drift(backbone)
        self.metrics = {f"layer {layer}": False for layer in self._drift.by_layer()} | {"ratio": False}  # type: ignore[misc]

    def score(self, learner: Learner) -> dict[str, float]:
        """Of the model that the probe was made with, whatever learner trains it."""
        drifts = {f"layer {layer}": drift for layer, drift in self._drift.by_layer().items()}
        return drifts | {"ratio": self._drift.ratio()}


def _predicted(data: Data) -> Tensor:
    """How many tokens of each row are predicted, int64 ``(n,)``."""
    if "targets" in data:
        return data.tensor("targets")[:, 1:].sum(1)
    return torch.full((len(data),), data[:1].tensor("tokens").shape[1] - 1)


def _table(name: str, texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, length: int | None) -> Data:
    """Rows of a beginning and a target each, padded on the right; ``targets`` is true at the tokens of the target."""
    if not texts:
        raise DataError(f"Probe {name!r} holds no rows; a score needs at least one.")
    rows: list[list[int]] = []
    starts: list[int] = []
    for number, (beginning, target) in enumerate(texts):
        row = [tokenizer.end, *tokenizer.encode(beginning + target)]
        # A space between them counts as part of the target: that is how tokenizers divide words.
        start = 1 + len(tokenizer.encode(beginning.rstrip()))
        excess = max(0, len(row) - length) if length is not None else 0
        if excess >= start:
            raise DataError(f"Row {number} of probe {name!r} has a target of {len(row) - start} tokens, too many for {length}.")
        rows.append(row[excess:])
        starts.append(start - excess)
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.end, dtype=torch.int32)
    targets = torch.zeros(tokens.shape, dtype=torch.bool)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[place, : len(row)] = torch.tensor(row, dtype=torch.int32)
        targets[place, start : len(row)] = True
    return Data(tokens=tokens, targets=targets)
