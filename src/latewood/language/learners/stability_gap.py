"""Stability gap (paper 26): several passes over a small subset of the best new text, at the rates of pre-training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.progress import current_progress
from latewood.core.seeding import generator
from latewood.language.corpora import load_corpus, load_tokenizer
from latewood.language.expansion import layers
from latewood.language.learner import LanguageLearner
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM
from latewood.language.quality import Integers, QualityScorer, best_until, epoch_blocks, keep_rates
from latewood.language.recipe import TextRecipe
from latewood.parts.memory import Exemplars

#: What the new text is called beside the sources of pre-training.
DOMAIN = "domain"
#: The shares of Llama's pre-training (Touvron et al., 2023): of what a domain's text replaces, and of the other sources.
_PILE = "togethercomputer/RedPajama-Data-1T"
_WEB = {"common_crawl": 0.67, "c4": 0.15}
_LLAMA = {"github": 0.045, "wikipedia": 0.045, "book": 0.045, "arxiv": 0.025, "stackexchange": 0.02}


class Epochs(Mixture):
    """A mixture in epochs of ``batches`` batches: in each epoch every domain gives exactly its share of the rows, to the
    whole row, none of them twice.

    ``dynamic`` draws an epoch's rows anew from all rows of a domain; otherwise every epoch is made of the rows of the
    first, in another order. Errors: :class:`~latewood.core.errors.DataError` if a domain holds too few rows for an epoch.

    >>> prose = Data(tokens=torch.zeros(30, 4, dtype=torch.int32))
    >>> code = Data(tokens=torch.ones(9, 4, dtype=torch.int32))
    >>> epochs = Epochs({"prose": prose, "code": code}, {"prose": 0.75, "code": 0.25}, batches=5, batch_size=4)
    >>> for _ in range(5): _ = epochs.draw()
    >>> epochs.given
    {'prose': 15, 'code': 5}
    """

    def __init__(
        self,
        domains: Mapping[str, Data],
        shares: Mapping[str, float],
        *,
        batches: int,
        batch_size: int = 16,
        dynamic: bool = True,
        seed: int = 0,
    ) -> None:
        self._of_an_epoch = (dict(shares), batches * batch_size)
        self._available = {name: len(data) for name, data in domains.items()}
        self._dynamic = dynamic
        self._chosen: dict[int, dict[str, Integers]] = {}
        self.seed = seed
        counts = {name: len(self._epoch(0)[name]) for name in domains}
        realised = {name: count / (batches * batch_size) for name, count in counts.items()}
        super().__init__(domains, realised, batch_size=batch_size, seed=seed)
        # What a pass is to a mixture, an epoch is here.
        self.sizes = tuple(counts.values())

    def _epoch(self, number: int) -> dict[str, Integers]:
        if number not in self._chosen:
            while len(self._chosen) > 1:
                del self._chosen[next(iter(self._chosen))]
            shares, rows = self._of_an_epoch
            self._chosen[number] = epoch_blocks(self._available, shares, rows, number, dynamic=self._dynamic, seed=self.seed)
        return self._chosen[number]

    def _order(self, domain: int, number_of_pass: int) -> Tensor:
        rows = torch.from_numpy(self._epoch(number_of_pass)[self.names[domain]])
        return rows[super()._order(domain, number_of_pass)]


class StabilityGap(LanguageLearner):
    """Continual pre-training that mitigates the stability gap (Guo et al., 2024, arXiv 2406.14833): three strategies.

    The first arrival is general text, its sources told apart by the column ``source``. With ``first="train"`` the model is
    trained on it; with ``first="keep"``, for a model that is trained already, it is only kept for replay: ``memory`` rows
    of all sources together, at their rates. Each later arrival is the raw corpus of a domain, learned so:

    1. ``epochs`` passes over a ``subset`` of it, a share up to 1 or a number of tokens, under one schedule and one
       optimiser. An epoch is as many whole batches as the subset holds, replay included; all of them must fit into the
       budget, which is ``recipe.steps``, or else as many steps as ``recipe.epochs`` passes over the corpus are.
    2. With ``quality`` the subset is made of the documents of least perplexity per token under an n-gram model of ``order``
       tokens, learned from the corpus ``reference`` (any name that :func:`~latewood.language.corpora.load_corpus` knows),
       in the tokens of ``tokenizer``, which must be the model's own. Without it the subset's rows are drawn at random.
    3. Every epoch keeps the ``rates`` of the sources in pre-training (default: those of the first arrival), with text of the
       domain in the place of the sources ``web`` (default: the largest). ``dynamic`` draws every epoch anew, from all of
       the subset and of what is kept.

    What it is compared with is a setting too: ``subset=1, epochs=1`` is one pass over everything; ``rates={"web": 1},
    web=["web"]`` replays nothing, and ``rates={"web": 0.9, "books": 0.1}`` a tenth from one source; ``freeze_bottom`` and
    ``freeze_top`` layers are not trained on a domain; how the rate is warmed up and decays again is the recipe's.

    The subset that ``quality`` chooses and the kept rows lie in memory, the latter in the state as well. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for settings that contradict one another or the first arrival,
    :class:`~latewood.core.errors.DataError` if an epoch needs more rows of a source than are kept; both before any training.

    >>> from latewood.language.nets import causal
    >>> text = Data(tokens=torch.tensor(list(b"late wood, early wood, " * 40)).reshape(-1, 23).int())
    >>> general = text.with_columns(source=["crawl"] * 30 + ["books"] * 10)
    >>> net = causal(text[:1], layers=1, width=16, heads=2)
    >>> learner = StabilityGap(net, subset=0.4, epochs=2, first="keep", recipe=TextRecipe(batch_size=8))
    >>> learner.learn(Experience(0, general))
    >>> learner.shares()
    {'domain': 0.75, 'books': 0.25}
    >>> learner.learn(Experience(1, text))
    >>> int(learner.steps_done)  # two passes over 0.4 of 40 rows
    4
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-openllama-3b": Preset(
            f"text-{'+'.join(f'{_PILE}:{source}' for source in _LLAMA)},tiiuae/falcon-refinedweb",
            {
                "backbone": "openlm-research/open_llama_3b_v2",
                "stream": {"tokenizer": "openlm-research/open_llama_3b_v2", "length": 2048, "held_out": 512},
                "rates": {f"{_PILE}:{source}": share for source, share in {**_WEB, **_LLAMA}.items()},
                "web": tuple(f"{_PILE}:{source}" for source in _WEB),
                **{"subset": 5e9, "epochs": 4, "quality": True, "reference": "gamino/wiki_medical_terms"},
                **{"memory": 450_000, "first": "keep", "tokenizer": "openlm-research/open_llama_3b_v2"},
                "recipe": {
                    **{"lr": 3e-5, "warmup": 0.1, "weight_decay": 0.01, "floor": 0.0, "precision": "bfloat16"},
                    **{"batch_size": 512, "accumulation": 64, "steps": 19_074, "save_every": 500},
                },
            },
            "Rates of Llama, subset, epochs, rate and schedule of the paper; a batch of a million tokens is our choice, as the "
            "paper's own figure can't be right.",
        ),
    }

    def __init__(
        self,
        backbone: CausalLM,
        subset: float = 0.1,
        epochs: int = 4,
        quality: bool = False,
        reference: str | None = None,
        rates: dict[str, float] | None = None,
        web: tuple[str, ...] | None = None,
        dynamic: bool = True,
        memory: int = 10_000,
        first: Literal["train", "keep"] = "train",
        freeze_bottom: int = 0,
        freeze_top: int = 0,
        order: int = 5,
        tokenizer: str = "bytes",
        recipe: TextRecipe = TextRecipe(warmup=0.1, weight_decay=0.01),
    ) -> None:
        super().__init__(backbone, recipe)
        if not subset > 0 or epochs < 1 or memory < 1:
            raise ConfigurationError("subset must be above 0, and epochs and memory at least 1.")
        if quality and reference is None:
            raise ConfigurationError("quality is measured against trusted text of the domain; name its corpus as reference.")
        if recipe.arrivals > 1:
            raise ConfigurationError("Each domain has a schedule of its own here; leave recipe.arrivals at 1.")
        if freeze_bottom < 0 or freeze_top < 0:
            raise ConfigurationError("freeze_bottom and freeze_top are numbers of layers, at least 0.")
        self.subset, self.epochs, self.dynamic, self.memory = subset, epochs, dynamic, memory
        self.quality, self.reference, self.order, self.tokenizer = quality, reference, order, tokenizer
        self.rates, self.web, self.first = rates, web, first
        self.freeze_bottom, self.freeze_top = freeze_bottom, freeze_top
        #: Rows of the sources that are replayed; ``source`` counts them in the order of ``sources``.
        self.kept = Exemplars(memory)
        #: The shares of the sources in the first arrival, once it has come.
        self.sources: dict[str, float] = {}

    def learn(self, experience: Experience) -> None:
        if self.sources:
            with self._on_a_domain(experience.train):
                super().learn(experience)
            return
        parts = by_source(experience.train)
        sources = {name: len(part) / len(experience.train) for name, part in parts.items()}
        shares = self._shares(sources)
        if absent := next((name for name in shares if name not in (DOMAIN, *sources)), None):
            raise ConfigurationError(
                f"The rates ask for {absent!r}, but the first arrival is of {', '.join(sources)}; name it as web, or bring it."
            )
        if self.first == "train":
            super().learn(experience)
        self._keep(parts, shares)
        self.sources = sources

    def shares(self) -> dict[str, float]:
        """The shares that every epoch on a domain has: of the domain, and of each source that is replayed.

        Errors: :class:`~latewood.core.errors.ConfigurationError` before the first arrival.
        """
        if not self.sources:
            raise ConfigurationError("The shares are known once general text has arrived, which comes first.")
        return self._shares(self.sources)

    def mixture(self, experience: Experience) -> Mixture:
        """General text at its rates, or the epochs on a domain."""
        if self.sources:
            return self.plan(experience.train)
        parts = by_source(experience.train)
        rates = self.rates or {name: float(len(part)) for name, part in parts.items()}
        total = sum(rates.get(name, 0.0) for name in parts)
        if not total > 0:
            raise ConfigurationError(f"The first arrival is of {', '.join(parts)}, none of which has a rate; use first='keep'.")
        shares = {name: rates.get(name, 0.0) / total for name in parts}
        return Mixture(parts, shares, batch_size=self.rows(), seed=self.mixture_seed)

    def plan(self, corpus: Data) -> Epochs:
        """The epochs on the raw corpus of a domain."""
        shares = self.shares()
        domains = {DOMAIN: self.pool(corpus)} if DOMAIN in shares else {}
        return Epochs(
            domains | self._replayed(shares),
            shares,
            batches=self._batches(corpus),
            batch_size=self.rows(),
            dynamic=self.dynamic,
            seed=self.mixture_seed,
        )

    def pool(self, corpus: Data) -> Data:
        """The subset of a corpus that is trained on, in the order of the corpus: at least as many rows as asked for."""
        rows = self._subset(corpus)
        if rows == len(corpus):
            return corpus.select("tokens")
        if not self.quality:
            chance = generator(self.mixture_seed, "subset")
            return corpus[torch.randperm(len(corpus), generator=chance)[:rows].sort().values].select("tokens")
        return self._best(corpus, rows)

    def get_extra_state(self) -> Tensor:
        """The shares of the sources, as bytes of JSON in a tensor."""
        return torch.tensor(list(json.dumps(self.sources).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on the shares of another learner's first arrival."""
        self.sources = json.loads(bytes(state.tolist()))

    # Strategy I: several passes over a subset

    @contextmanager
    def _on_a_domain(self, corpus: Data) -> Iterator[None]:
        """Inside the block the schedule spans all epochs, and frozen layers don't learn."""
        recipe = self.recipe
        steps = self.epochs * self._batches(corpus)
        budget = recipe.steps or -(-recipe.epochs * len(corpus) // recipe.batch_size)
        if steps > budget:
            raise ConfigurationError(
                f"{self.epochs} epochs of {steps // self.epochs:,} steps exceed the budget of {budget:,} steps; take fewer "
                "epochs or a smaller subset, or raise recipe.steps."
            )
        frozen = [parameter for parameter in self._frozen() if parameter.requires_grad]
        try:
            self.recipe = replace(recipe, steps=steps)
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            self.recipe = recipe
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _subset(self, corpus: Data) -> int:
        """How many rows the subset of a corpus has."""
        length = corpus[:1].tensor("tokens").shape[1]
        rows = _whole(self.subset, len(corpus)) if self.subset <= 1 else int(self.subset // length)
        if rows > len(corpus):
            raise ConfigurationError(f"The subset is of {rows:,} rows, but the corpus has only {len(corpus):,}.")
        return rows

    def _batches(self, corpus: Data) -> int:
        """How many batches an epoch has."""
        rows = self._subset(corpus)
        if rows < self.recipe.batch_size:
            raise ConfigurationError(
                f"The subset of {rows:,} rows does not fill a batch of {self.recipe.batch_size}; take a larger subset."
            )
        return rows // self.recipe.batch_size

    def _frozen(self) -> Iterator[torch.nn.Parameter]:
        if not (self.freeze_bottom or self.freeze_top):
            return
        stack = list(layers(self.backbone.network))
        if self.freeze_bottom + self.freeze_top > len(stack):
            raise ConfigurationError(
                f"The model has {len(stack)} layers, so {self.freeze_bottom} and {self.freeze_top} of them can't be frozen."
            )
        for layer in stack[: self.freeze_bottom] + stack[len(stack) - self.freeze_top :]:
            yield from layer.parameters()

    # Strategy II: the best documents

    def _best(self, corpus: Data, rows: int) -> Data:
        """The best documents, until they fill so many rows, packed anew."""
        assert self.reference is not None
        tokenizer = load_tokenizer(self.tokenizer)
        current_progress().phase("choosing documents", 0)
        scorer = QualityScorer(self.order, tokenizer)
        scorer.train(load_corpus(self.reference).documents())
        documents = split_documents(corpus, tokenizer.end)
        length = corpus[:1].tensor("tokens").shape[1]
        sizes = np.array([len(document) + 1 for document in documents], dtype=np.int64)
        chosen = best_until(scorer.perplexities(documents), sizes, rows * length)
        end = np.array([tokenizer.end], dtype=np.int32)
        stream = np.concatenate([part for number in np.sort(chosen) for part in (documents[number], end)])
        full = len(stream) // length
        return Data(tokens=stream[: full * length].reshape(full, length))

    # Strategy III: the rates of pre-training

    def _shares(self, sources: Mapping[str, float]) -> dict[str, float]:
        rates = self.rates or dict(sources)
        web = (max(rates, key=lambda name: rates[name]),) if self.web is None else self.web
        return keep_rates(rates, web, DOMAIN)

    def _keep(self, parts: Mapping[str, Data], shares: Mapping[str, float]) -> None:
        """Keep a sample of each source that will be replayed."""
        replayed = {name: share for name, share in shares.items() if name != DOMAIN}
        samples = []
        for number, (name, part) in enumerate(parts.items()):
            if name not in replayed:
                continue
            count = max(1, _whole(replayed[name] / sum(replayed.values()), self.memory))
            chosen = part[torch.randperm(len(part), generator=self.generator)[:count]].select("tokens")
            samples.append(chosen.with_columns(source=torch.full((len(chosen),), number)))
        if samples:
            self.kept.replace(concat(*samples))

    def _replayed(self, shares: Mapping[str, float]) -> dict[str, Data]:
        """What is kept of each source."""
        if not len(self.kept):
            return {}
        held = self.kept.data.to("cpu")
        of_source = {name: held[held["source"] == number].select("tokens") for number, name in enumerate(self.sources)}
        return {name: of_source[name] for name in shares if name != DOMAIN}


def split_documents(data: Data, end: int) -> list[NDArray[np.int32]]:
    """The documents that rows of tokens were packed from, in their order, without the token ``end`` behind each.

    Rows that follow one another are read as one line of tokens, unless their ``source`` differs. A document that is cut, at
    either end, counts as one; of an empty one nothing is left. Whole tables are not copied.

    >>> [document.tolist() for document in split_documents(Data(tokens=torch.tensor([[1, 2, 0], [3, 0, 4]])), end=0)]
    [[1, 2], [3], [4]]
    """
    rows = data.tensor("tokens").cpu().numpy()
    line = rows.reshape(-1)
    starts = {0, len(line), *(np.flatnonzero(line == end) + 1).tolist()}
    if "source" in data:
        names = data["source"]
        starts |= {row * rows.shape[1] for row in range(1, len(names)) if names[row] != names[row - 1]}
    pieces = (line[start:stop] for start, stop in pairwise(sorted(starts)))
    documents = (piece[:-1] if piece[-1] == end else piece for piece in pieces)
    return [document for document in documents if len(document)]


def _whole(share: float, total: int) -> int:
    """So many of a total, rounded down: 3 of 10 are 0.3, and so is what lies a last bit below."""
    return int(share * total + 1e-9)
