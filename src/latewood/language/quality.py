"""Which documents to train on: those nearest to a trusted text, beside replay at the rates of pre-training.

After Guo et al., *Efficient Continual Pre-training by Mitigating the Stability Gap* (2024), strategies II and III.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latewood.core import checkpoint
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import derive_seed
from latewood.language.corpora.tokenizers import ByteTokenizer, Tokenizer

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
#: A document as text, or as its tokens, whole numbers ``(n,)``, without the one that ends it.
Document = str | NDArray[np.integer[Any]]

#: What Llama 1 was pre-trained on, and its shares (Touvron et al., 2023, table 1): for models whose own are unknown.
LLAMA_RATES = {
    "commoncrawl": 0.67,
    "c4": 0.15,
    "github": 0.045,
    "wikipedia": 0.045,
    "books": 0.045,
    "arxiv": 0.025,
    "stackexchange": 0.02,
}
#: Which of them are crawled from the web: what domain text takes the place of.
LLAMA_WEB = ("commoncrawl", "c4")

#: Documents are scored in groups of about this many tokens, which bounds the memory.
_TOKENS_AT_ONCE = 1 << 20
_DOCUMENTS_AT_ONCE = 1000
#: The discounts where counts are too few, or all too large, to estimate them.
_USUAL_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length. A key is the number of the n-gram's context, times the base, plus its last token.

    ``keys`` and ``shares`` have an entry for each n-gram, keys ascending; ``backoff`` one for each n-gram a token shorter.
    """

    keys: Integers
    shares: Floats
    backoff: Floats

    def find(self, keys: Integers) -> Integers:
        """The numbers of the n-grams with these keys, -1 where there is none."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


class QualityScorer:
    """Perplexity per token under a language model of a trusted reference text: the lower, the nearer to the reference.

    The model is an interpolated modified Kneser-Ney n-gram model (Chen and Goodman, 1999) of ``order`` tokens, which are bytes
    unless a tokenizer is given. Each token is predicted from those before it in its document; the end of a document is not
    predicted, so the score does not depend on the length. Counting is exact, by sorting. Wherever documents are asked for,
    each may be a text, or an array of its tokens.

    >>> scorer = QualityScorer(order=3)
    >>> scorer.train(["the cat sat on the mat", "the dog sat on the log"])
    >>> scorer.rank(["xqzj vkw", "the cat sat on the log"]).tolist()
    [1, 0]
    """

    def __init__(self, order: int = 5, tokenizer: Tokenizer | None = None) -> None:
        if order < 1:
            raise ConfigurationError(f"An n-gram model needs an order of at least 1, but it is {order}.")
        self.order = order
        self.tokenizer: Tokenizer = tokenizer or ByteTokenizer()
        self._orders: list[_Order] = []

    def train(self, documents: Iterable[Document]) -> None:
        """Count the n-grams of the reference; what was learned before is replaced.

        Errors: :class:`~latewood.core.errors.DataError` if there is no text in it.
        """
        encoded = [tokens for tokens in self._encode(documents) if len(tokens)]
        if not encoded:
            raise DataError("The reference text is empty; the quality of documents is measured against it.")
        orders: list[_Order] = []
        for keys, counts in self._counted(self._joined(encoded)):
            orders.append(self._order(keys, counts, len(orders[-1].keys) if orders else 1))
        self._orders = orders

    def perplexity(self, document: Document) -> float:
        """The perplexity per token of one document."""
        return float(self.perplexities([document])[0])

    def perplexities(self, documents: Sequence[Document]) -> Floats:
        """The perplexity per token of each document, float64 ``(n,)``.

        Errors: :class:`~latewood.core.errors.DataError` for a document without text,
        :class:`~latewood.core.errors.ConfigurationError` before :meth:`train`.
        """
        return self._scored(documents)[0]

    def rank(self, documents: Sequence[Document]) -> Integers:
        """The indices of the documents, best first; equal ones in their own order."""
        return np.argsort(self.perplexities(documents), kind="stable")

    def best(self, documents: Sequence[Document], tokens: int) -> Integers:
        """The indices of the best documents, best first, until they hold ``tokens`` tokens.

        Together they hold at least that many, and less than a document more. Errors:
        :class:`~latewood.core.errors.DataError` if all documents hold fewer.
        """
        return best_until(*self._scored(documents), tokens)

    def save(self, folder: Path) -> None:
        """Write the model as the new folder ``folder``: safetensors and JSON."""
        self._check_trained()
        parts = ("keys", "shares", "backoff")
        state = {f"{k}.{name}": torch.from_numpy(getattr(o, name)) for k, o in enumerate(self._orders) for name in parts}
        checkpoint.save(folder, state, {"order": self.order, "tokenizer": self.tokenizer.fingerprint})

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer | None = None) -> QualityScorer:
        """The model that :meth:`save` wrote, with the tokenizer that it was trained with.

        Errors: :class:`~latewood.core.errors.CheckpointError` if it is damaged or was trained with another tokenizer.
        """
        state, info = checkpoint.load(folder)
        try:
            scorer = cls(int(info["order"]), tokenizer)
            if info["tokenizer"] != scorer.tokenizer.fingerprint:
                raise CheckpointError(
                    f"The scorer in {folder} was trained with another tokenizer than {scorer.tokenizer.name}."
                )
            names = ("keys", "shares", "backoff")
            scorer._orders = [_Order(*(state[f"{k}.{name}"].numpy() for name in names)) for k in range(scorer.order)]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder} does not hold a quality scorer ({error}).") from error
        return scorer

    # Tokens

    @property
    def _start(self) -> int:
        """What stands before a document, as often as a context is long; no token of the tokenizer."""
        return self.tokenizer.size

    @property
    def _base(self) -> int:
        return self.tokenizer.size + 1

    def _encode(self, documents: Iterable[Document]) -> Iterator[Integers]:
        for batch in _batches(documents):
            texts = iter(self.tokenizer.encode_batch([document for document in batch if isinstance(document, str)]))
            for document in batch:
                yield next(texts).tokens.astype(np.int64) if isinstance(document, str) else self._checked(document)

    def _checked(self, tokens: NDArray[np.integer[Any]]) -> Integers:
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.tokenizer.size:
            raise DataError(
                f"A document holds the tokens {tokens.min()} to {tokens.max()}, but those of the tokenizer "
                f"{self.tokenizer.name!r} lie from 0 to {self.tokenizer.size - 1}; name the one that it was made with."
            )
        return tokens.astype(np.int64)

    def _joined(self, documents: Sequence[Integers]) -> Integers:
        start = np.full(self.order - 1, self._start, dtype=np.int64)
        return np.concatenate([part for document in documents for part in (start, document)])

    # Training

    def _counted(self, tokens: Integers) -> Iterator[tuple[Integers, Integers]]:
        """The keys of each order, ascending, and what each n-gram counts.

        The longest count how often they occur; a shorter one counts how many different tokens occur before it.
        """
        real = tokens != self._start
        keys = np.empty(0, dtype=np.int64)
        numbers, start = np.zeros(len(tokens), dtype=np.int64), 0
        for order in range(1, self.order + 1):
            unique, first, longer, occurrences = np.unique(
                self._keys(tokens, numbers, start), return_index=True, return_inverse=True, return_counts=True
            )
            if order > 1:
                yield keys, np.bincount(numbers[first[real[first]]], minlength=len(keys))
            keys, numbers, start = unique, longer, int(longer[0])
        yield keys, np.where(real[first], occurrences, 0)

    def _keys(self, tokens: Integers, numbers: Integers, start: int) -> Integers:
        """The key of the n-gram that ends at each token, from the numbers of those a token shorter (-1: unknown)."""
        contexts = np.concatenate([[start], numbers[:-1]])
        keys = np.where(contexts < 0, -1, contexts * self._base + tokens)
        return np.where(tokens == self._start, start * self._base + self._start, keys)

    def _order(self, keys: Integers, counts: Integers, contexts: int) -> _Order:
        """Shares and back-off weights of one order: modified Kneser-Ney."""
        counts = counts.astype(np.int64)
        discounts = np.array([0.0, *_discounts(counts)])
        parents, kinds = keys // self._base, np.minimum(counts, 3)
        totals = np.bincount(parents, weights=counts, minlength=contexts)
        taken = np.bincount(parents, weights=discounts[kinds], minlength=contexts)
        known = totals > 0
        backoff = np.ones(contexts)
        backoff[known] = taken[known] / totals[known]
        shares = np.zeros(len(keys))
        np.divide(counts - discounts[kinds], totals[parents], out=shares, where=known[parents])
        return _Order(keys, shares, backoff)

    # Scoring

    def _scored(self, documents: Sequence[Document]) -> tuple[Floats, Integers]:
        """The perplexity per token and the number of tokens of each document."""
        self._check_trained()
        surprises, lengths = [], []
        group: list[Integers] = []
        held = 0
        for position, tokens in enumerate(self._encode(documents)):
            if not len(tokens):
                raise DataError(f"Document {position} is empty, so it has no perplexity; leave it out.")
            group.append(tokens)
            lengths.append(len(tokens))
            held += len(tokens)
            if held >= _TOKENS_AT_ONCE:
                surprises.append(self._surprises(group))
                group, held = [], 0
        if group:
            surprises.append(self._surprises(group))
        return np.exp(np.concatenate([*surprises, np.empty(0)])), np.array(lengths, dtype=np.int64)

    def _surprises(self, documents: Sequence[Integers]) -> Floats:
        """The mean surprise of each document's tokens, in nats."""
        tokens = self._joined(documents)
        surprise = -np.log(self._probabilities(tokens)[tokens != self._start])
        lengths = np.array([len(document) for document in documents])
        return np.asarray(np.add.reduceat(surprise, np.cumsum(lengths) - lengths) / lengths)

    def _probabilities(self, tokens: Integers) -> Floats:
        """The probability of each token after those before it."""
        probabilities = np.full(len(tokens), 1 / self.tokenizer.size)
        numbers, start = np.zeros(len(tokens), dtype=np.int64), 0
        for order in self._orders:
            contexts = np.concatenate([[start], numbers[:-1]])
            numbers = order.find(self._keys(tokens, numbers, start))
            start = int(order.find(np.array([start * self._base + self._start]))[0])
            shares = np.where(numbers >= 0, order.shares[numbers], 0.0)
            interpolated = shares + order.backoff[contexts] * probabilities
            probabilities = np.where(contexts >= 0, interpolated, probabilities)
        return probabilities

    def _check_trained(self) -> None:
        if not self._orders:
            raise ConfigurationError("The quality scorer has no reference yet; train it on trusted documents first.")


def _discounts(counts: Integers) -> tuple[float, float, float]:
    """What is taken from n-grams that count one, two, and three or more (Chen and Goodman, 1999, equation 26)."""
    once, twice, thrice, four = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (once and twice and thrice and four):
        return _USUAL_DISCOUNTS
    rate = once / (once + 2 * twice)
    found = (1 - 2 * rate * twice / once, 2 - 3 * rate * thrice / twice, 3 - 4 * rate * four / thrice)
    fits = all(0 < discount <= count for count, discount in enumerate(found, start=1))
    return found if fits else _USUAL_DISCOUNTS


def best_until(perplexities: Floats, lengths: Integers, tokens: int) -> Integers:
    """The indices of the documents with the lowest perplexities, lowest first, until their lengths sum to ``tokens``.

    Errors: :class:`~latewood.core.errors.DataError` if all of them together are shorter.

    >>> best_until(np.array([7.0, 3.0, 5.0]), np.array([40, 40, 40]), 50).tolist()
    [1, 2]
    """
    if tokens < 1:
        raise ConfigurationError(f"A subset needs at least one token, but {tokens} were asked for.")
    ranked = np.argsort(perplexities, kind="stable")
    total = np.cumsum(lengths[ranked])
    if not len(total) or total[-1] < tokens:
        held = int(total[-1]) if len(total) else 0
        raise DataError(f"A subset of {tokens:,} tokens was asked for, but the documents hold only {held:,}.")
    return ranked[: int(np.searchsorted(total, tokens)) + 1]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in lists that are worth a call."""
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _DOCUMENTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def keep_rates(rates: Mapping[str, float], web: Collection[str], domain: str = "domain") -> dict[str, float]:
    """The shares to train on: those of pre-training, with domain text in the place of the web sources (strategy III).

    Sources without a share are left out. Errors: :class:`~latewood.core.errors.ConfigurationError` if the rates are not
    shares that sum to 1, a web source is none of them, or ``domain`` is called as one.

    >>> {source: round(share, 3) for source, share in keep_rates(LLAMA_RATES, LLAMA_WEB).items()}
    {'domain': 0.82, 'github': 0.045, 'wikipedia': 0.045, 'books': 0.045, 'arxiv': 0.025, 'stackexchange': 0.02}
    """
    _check_shares(rates)
    for source in web:
        if source not in rates:
            raise ConfigurationError(f"The web source {source!r} is none of the sources {', '.join(rates)}.")
    if domain in rates:
        raise ConfigurationError(f"The domain can't be called {domain!r}, as a source of pre-training is; name it otherwise.")
    crawled = {*web}
    kept = {source: share for source, share in rates.items() if source not in crawled and share > 0}
    share = 1 - sum(kept.values()) if kept else 1.0
    return {domain: share, **kept} if any(rates[source] > 0 for source in crawled) else kept


def epoch_blocks(
    available: Mapping[str, int],
    shares: Mapping[str, float],
    blocks: int,
    epoch: int,
    *,
    dynamic: bool = True,
    seed: int = 0,
) -> dict[str, Integers]:
    """Which of each source's packed blocks an epoch of ``blocks`` blocks consists of, drawn at the sources' shares.

    The counts sum to ``blocks`` and each is within one of its exact share. No block comes twice in an epoch; ``dynamic``
    draws every epoch anew, otherwise all are the first. Same seed, same blocks. Errors:
    :class:`~latewood.core.errors.DataError` if a source holds too few blocks.

    >>> chosen = epoch_blocks({"domain": 100, "books": 50}, {"domain": 0.8, "books": 0.2}, 20, epoch=0)
    >>> {source: len(rows) for source, rows in chosen.items()}
    {'domain': 16, 'books': 4}
    """
    _check_shares(shares)
    counts = _whole(shares, blocks)
    chosen = {}
    for source, count in counts.items():
        held = available.get(source, 0)
        if held < count:
            raise DataError(
                f"An epoch needs {count:,} blocks of {source!r}, but there are {held:,}; take a smaller subset, or keep more."
            )
        generator = np.random.default_rng(derive_seed(seed, "epoch", source, epoch if dynamic else 0))
        chosen[source] = generator.choice(held, size=count, replace=False).astype(np.int64)
    return chosen


def _check_shares(shares: Mapping[str, float]) -> None:
    if any(not share >= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        told = ", ".join(f"{source} {share:g}" for source, share in shares.items())
        raise ConfigurationError(f"The shares of the sources must be at least 0 and sum to 1, but they are {told}.")


def _whole(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to ``total``, by the largest remainder."""
    counts = {source: int(share * total) for source, share in shares.items()}
    rest = sorted(shares, key=lambda source: counts[source] - shares[source] * total)
    for source in rest[: total - sum(counts.values())]:
        counts[source] += 1
    return counts
