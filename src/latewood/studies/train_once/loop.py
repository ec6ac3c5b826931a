"""The training of a study: a language learner that carries its experiments, and the runs that are compared."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.checkpoint import current_shelf
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.core.watch import Watch
from latewood.language.corpora import Tokenizer
from latewood.language.insertions import Report, StreamShape
from latewood.language.learners.continue_ import Continue
from latewood.language.mixture import Mixture
from latewood.language.nets.causal import CausalLM
from latewood.language.probes import HeldOutLoss
from latewood.language.recipe import TextRecipe
from latewood.parts.growing import Growing
from latewood.studies.train_once.experiments import Experiment, Item, encoded
from latewood.studies.train_once.interference import ENOUGH_SEEDS, Interference, collect, cpdt
from latewood.studies.train_once.orchestrate import TrainOnce
from latewood.studies.train_once.watermark import Watermark, influence

Values = NDArray[np.float64]
Outcome = Literal["probability", "log-likelihood"]
#: The folder of the insertion plan among a run's files.
PLAN = "train-once"


@dataclass(frozen=True)
class StoppedEarly(TextRecipe):
    """A schedule made for ``planned`` steps that is followed for part of the way only, and then cooled down.

    The last ``cooldown`` share of the steps on an arrival is linear down to 0, from where the long schedule was. Whatever
    it is compared with must be stopped in the same way.

    >>> recipe = StoppedEarly(lr=1e-3, warmup=0.0, floor=0.0, planned=200)
    >>> [round(recipe.rate(step, 100), 3) for step in (0, 50, 90, 95, 100)]
    [1.0, 0.854, 0.578, 0.289, 0.0]
    """

    planned: int = 1

    def rate(self, step: int, steps: int) -> float:
        border = round((1 - self.cooldown) * steps)
        if self.planned < steps:
            raise ConfigurationError(
                f"recipe.planned are the steps of the long schedule, so at least the {steps} of the run, not {self.planned}."
            )
        if step < border:
            return super().rate(step, self.planned)
        return super().rate(border, self.planned) * (steps - step) / (steps - border)


class Marked(Growing):
    """The rows of the stream that a watermark chose: ``places``, their step and row, ``(n, 2)``, and ``tokens``,
    ``(n, length)``."""

    places: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.zeros(0, 2, dtype=torch.int64))
        self.register_buffer("tokens", torch.zeros(0, 0, dtype=torch.int32))

    def add(self, step: int, rows: Tensor, tokens: Tensor) -> None:
        """Keep some rows of a step."""
        if not len(rows):
            return
        places = torch.stack([torch.full_like(rows, step), rows], 1).to(self.places.device)
        kept = self.tokens if len(self.tokens) else self.tokens.new_zeros(0, tokens.shape[1])
        self.places, self.tokens = torch.cat([self.places, places]), torch.cat([kept, tokens.to(kept)])


class TrainOnceLearner(Continue):
    """Plain pre-training on a stream that carries the experiments of a :class:`~.orchestrate.TrainOnce` study.

    Before each step the study's insertions replace tokens of the step's rows, at their exact positions; nothing else of
    the stream changes. Where a controller is due, the experiment's own probe is scored on the weights of the moment,
    unnoticed by weights, modes and random generators, and its texts go into the steps to come. With ``watermark`` noise is
    added to the input embeddings of the rows that it chooses; :attr:`marked` keeps these. ``marks=False`` keeps them
    without the noise: what a run with it is compared with.

    The study's state is part of the learner's: a run that is killed within an arrival and started again places the same
    texts, and ends with the same bits. In a run that is saved, the insertion plan also lies among its files, in
    ``train-once``. ``recipe.steps`` (times ``recipe.arrivals``) and ``recipe.batch_size`` are those of the study's stream.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if the sizes of study, recipe and model differ; and before
    anything is learned :class:`~latewood.core.errors.DataError` for rows of another length, or too few of them for one
    pass: a second one would show what was replaced.

    >>> from latewood.language.corpora import ByteTokenizer, pack
    >>> from latewood.language.nets.causal import causal
    >>> text = pack(["late wood, early wood, " * 40], length=16)
    >>> study = TrainOnce([Experiment("fact", ["sap rises"], [Item("sap", " rises")])], (10, 4, 16), ByteTokenizer())
    >>> recipe = TextRecipe(batch_size=4, steps=10)
    >>> learner = TrainOnceLearner(causal(text[:1], layers=1, width=16, heads=2), study, recipe=recipe)
    >>> learner.learn(Experience(0, text))
    >>> learner.study.reports()[0].sequences
    1
    """

    def __init__(
        self,
        backbone: CausalLM,
        study: TrainOnce,
        watermark: Watermark | None = None,
        marks: bool = True,
        recipe: TextRecipe = TextRecipe(),
    ) -> None:
        super().__init__(backbone, recipe)
        self.study, self.watermark, self.marks = study, watermark, marks
        self.marked = Marked()
        self._check_sizes()
        #: The step of the stream that is being trained; none before the first.
        self._step: int | None = None
        #: How many rows of that step went through the embedding.
        self._passed = 0

    def config(self) -> dict[str, Any]:
        return {**super().config(), "study": self.study.facts()}

    def learn(self, experience: Experience) -> None:
        with self._marking():
            super().learn(experience)

    def mixture(self, experience: Experience) -> Mixture:
        mixture, shape = super().mixture(experience), self.study.plan.shape
        if mixture.length != shape.length:
            raise DataError(
                f"The study's stream has rows of {shape.length} tokens, but those that arrive have {mixture.length}."
            )
        assert self.recipe.steps is not None
        if int(self.steps_done) + self.recipe.steps > shape.steps:
            raise DataError(
                f"The study's stream has {shape.steps} steps, of which {int(self.steps_done)} are done: it is trained on once; "
                "make a new study for more."
            )
        last = range(self.rows())
        if any(mixture.origin(self.recipe.steps - 1, row).number_of_pass for row in last):
            raise DataError(
                f"{self.recipe.steps} steps of {self.rows()} rows are more than one pass over the {len(experience.train)} rows "
                "that arrive, and a second one would show what insertions replaced; set fewer steps or give more text."
            )
        return mixture

    def begin(self, experience: Experience) -> None:
        self._step = None
        if not int(self.steps_done) and self.study.plan.closed:
            raise ConfigurationError("This study was trained on already; a run from the start needs a new one.")

    def batch(self, new: Data) -> Data:
        self._step = int(self.steps_done) if self._step is None else self._step + 1
        self._steer(self._step)
        self._passed = 0
        tokens = new.tensor("tokens")
        overlaid = self.study.plan.overlaid(self._step, tokens)
        if self.watermark is not None:
            rows = self.watermark.rows_of(self._step, len(overlaid))
            self.marked.add(self._step, rows, overlaid[rows])
        return new if overlaid is tokens else new.with_columns(tokens=overlaid)

    def saved(self) -> None:
        self._keep_plan()

    def finish(self, experience: Experience) -> None:
        self._keep_plan()

    def get_extra_state(self) -> Tensor:
        """What controllers were told and decided, as bytes of JSON in a tensor."""
        return torch.tensor(list(json.dumps(self.study.state()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Place again what another learner's study had placed."""
        self.study.load_state(json.loads(bytes(state.tolist())))

    def _check_sizes(self) -> None:
        shape, recipe = self.study.plan.shape, self.recipe
        if shape.rows != recipe.batch_size:
            raise ConfigurationError(
                f"The study's stream has {shape.rows} rows a step, but recipe.batch_size is {recipe.batch_size}."
            )
        if recipe.steps is None or recipe.steps * recipe.arrivals > shape.steps:
            raise ConfigurationError(
                f"The study's stream has {shape.steps} steps; recipe.steps, times recipe.arrivals, may be at most as many, but "
                f"they are {recipe.steps} and {recipe.arrivals}."
            )
        if self.study.plan.vocabulary > self.backbone.vocabulary:
            raise ConfigurationError(
                f"The study's tokenizer has {self.study.plan.vocabulary} tokens, but the model has {self.backbone.vocabulary}."
            )

    def _steer(self, step: int) -> None:
        due = self.study.due(step)
        if not due:
            return
        watch = Watch([experiment.probe(self.study.tokenizer) for experiment in due])
        watch.after(step, self, last=True)
        scores = watch.moments[0].scores
        self.study.steer(step, self._agreed({e.name: scores[e.name]["probability"] for e in due}))

    def _agreed(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values of the first process: all must decide alike."""
        told = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if _processes() > 1:
            torch.distributed.broadcast(told, 0)
        return dict(zip(values, told.tolist(), strict=True))

    def _keep_plan(self) -> None:
        if (shelf := current_shelf()) is not None:
            self.study.save(shelf.files / PLAN)

    @contextmanager
    def _marking(self) -> Iterator[None]:
        """Within the block the forward pass of a training step is marked."""
        if self.watermark is None or not self.marks:
            yield
            return
        handle = _embedding(self.backbone).register_forward_hook(self._mark)
        try:
            yield
        finally:
            handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _mark(self, module: nn.Module, _: Any, embedded: Tensor) -> Tensor:
        # Measurements before the first step, and probes between steps, go through the same embedding.
        if self.watermark is None or self._step is None or not module.training:
            return embedded
        processes = _processes()
        first = (torch.distributed.get_rank() if processes > 1 else 0) + processes * self._passed
        self._passed += len(embedded)
        return self.watermark.added(embedded, self._step, first, self.recipe.batch_size, processes)


def _processes() -> int:
    """How many processes share the rows of a step."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _embedding(backbone: CausalLM) -> nn.Module:
    network: Any = backbone.network
    return cast(nn.Module, network.get_input_embeddings())


def influences(learner: TrainOnceLearner, noise: Watermark) -> Values:
    """For each row that the learner's watermark chose: how much the model leans towards ``noise`` on it, ``(n,)``.

    ``noise`` is the watermark itself, or, as a control, one of another seed; :func:`~.watermark.detect` compares the two.
    Errors: :class:`~latewood.core.errors.DataError` if no row was marked.
    """
    marked, backbone = learner.marked, learner.backbone
    if not len(marked.places):
        raise DataError("No row was marked yet; train with a watermark first.")
    embedding = _embedding(backbone)
    learner.eval()
    found = []
    for (step, row), tokens in zip(marked.places.tolist(), marked.tokens, strict=True):
        inputs = tokens.long()[None].to(learner.device)
        embedded = embedding(inputs)
        mark = noise.noise(step, row, *embedded.shape[1:])[None].to(embedded)
        found.append(influence(_losses_of(backbone, inputs), embedded, mark, noise.sigma))
    return cast(Values, torch.cat(found).cpu().numpy())


def _losses_of(backbone: CausalLM, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean loss of each row, from its embeddings."""

    def losses(embedded: Tensor) -> Tensor:
        logits: Tensor = backbone.network(inputs_embeds=embedded).logits[:, :-1].float()
        flat = F.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        return flat.view(len(inputs), -1).mean(1)

    return losses


@torch.no_grad()
def answers(learner: Continue, items: Sequence[Item], tokenizer: Tokenizer, most: int = 25) -> list[str]:
    """What the model goes on with after each item's beginning, at most so many tokens, always the likeliest one.

    For :func:`~.scores.contained`, :func:`~.scores.partial_ratio`, :func:`~.scores.recall` and :func:`~.scores.is_garbage`.
    """
    network: Any = learner.backbone.network
    learner.eval()
    found = []
    for item in items:
        start = torch.tensor([[tokenizer.end, *tokenizer.encode(item.beginning)]], device=learner.device)
        more = network.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=most,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.end,
            pad_token_id=tokenizer.end,
        )
        found.append(tokenizer.decode([token for token in more[0, start.shape[1] :].tolist() if token != tokenizer.end]))
    return found


@dataclass(frozen=True)
class Finished:
    """What came out of one run: the trained ``learner``, for every experiment the outcome of each item of its probe,
    active or not, and the loss on each held-out text."""

    learner: TrainOnceLearner
    outcomes: Mapping[str, Values]
    held_out: Mapping[str, float]

    @property
    def means(self) -> dict[str, float]:
        """The outcome of each experiment: what :func:`~.orchestrate.effects` compares."""
        return {name: float(values.mean()) for name, values in self.outcomes.items()}

    @property
    def reports(self) -> list[Report]:
        """What each experiment inserted."""
        return self.learner.study.reports()


@dataclass(frozen=True)
class Laboratory:
    """All that runs to be compared have in common: first weights, text in its order, schedule, and experiments.

    ``backbone`` is a model, of which every run gets a copy (a checkpoint to go on from), or makes one from a seed.
    ``text`` has rows of tokens, enough for one pass of ``recipe.steps`` steps. A ``watermark`` counts as one more
    experiment, whose items are the marked rows. The ``outcome`` of an item is the ``probability`` of its whole target, or
    its ``log-likelihood``, in nats for each token, which shows an effect long before the probability does. ``seed`` of a run
    decides the order of the text and the places of insertions, alike whatever is active.

    >>> from latewood.language.corpora import ByteTokenizer, pack
    >>> from latewood.language.nets.causal import causal
    >>> from latewood.studies.train_once.orchestrate import effects, table
    >>> text = pack(["late wood, early wood, " * 60], length=16)
    >>> fact = Experiment("fact", ["sap rises"], [Item("sap", " rises")], repetitions=20)
    >>> model = causal(text[:1], layers=1, width=16, heads=2)
    >>> lab = Laboratory(model, text, [fact], ByteTokenizer(), TextRecipe(batch_size=4, steps=20, lr=0.02))
    >>> baseline, joint = lab.baseline(), lab.joint()
    >>> print(table(effects(baseline.means, joint.means), joint.reports).splitlines()[2][:29])
    | fact | 20 | 220 | 17.188% |
    """

    backbone: CausalLM | Callable[[int], CausalLM]
    text: Data
    experiments: Sequence[Experiment]
    tokenizer: Tokenizer
    recipe: TextRecipe
    held_out: Sequence[HeldOutLoss] = ()
    watermark: Watermark | None = None
    outcome: Outcome = "probability"

    @property
    def names(self) -> tuple[str, ...]:
        """The experiments, the watermark last."""
        return (*(e.name for e in self.experiments), *([self.watermark.name] if self.watermark else []))

    @property
    def shape(self) -> StreamShape:
        """The stream of one run. Errors: :class:`~latewood.core.errors.ConfigurationError` without ``recipe.steps``."""
        if self.recipe.steps is None:
            raise ConfigurationError("Experiments are placed in a stream of known length; set recipe.steps.")
        length = int(self.text[:1].tensor("tokens").shape[1])
        return StreamShape(self.recipe.steps, self.recipe.batch_size, length)

    def baseline(self, seed: int = 0, to: str | Path | None = None, device: str = "auto") -> Finished:
        """The run without any experiment."""
        return self.run((), seed, to, device)

    def solo(self, name: str, seed: int = 0, to: str | Path | None = None, device: str = "auto") -> Finished:
        """The run with one experiment alone."""
        return self.run((name,), seed, to, device)

    def joint(self, seed: int = 0, to: str | Path | None = None, device: str = "auto") -> Finished:
        """The run with all of them."""
        return self.run(self.names, seed, to, device)

    def run(self, active: Collection[str], seed: int = 0, to: str | Path | None = None, device: str = "auto") -> Finished:
        """Train with some experiments active, and score the probes of all.

        With ``to`` it is saved there, and goes on from there if it was interrupted (see ``recipe.save_every``). Errors:
        :class:`~latewood.core.errors.ConfigurationError` for names that are no experiments, and those of
        :class:`TrainOnceLearner` and :func:`latewood.run`.
        """
        if unknown := sorted(set(active) - set(self.names)):
            raise ConfigurationError(f"There is no experiment {unknown[0]!r}; there are {', '.join(self.names) or 'none'}.")
        learner = self._learner(active, seed)
        stream = Stream(
            "train-once",
            1,
            lambda index: Experience(index, self.text),
            self.held_out,
            config={"text": self.text.fingerprint(), "outcome": self.outcome},
        )
        record = run(learner, stream, to=to, seed=seed, device=device)
        losses = record.matrix("loss")[-1] if self.held_out else ()
        held_out = {probe.name: float(loss) for probe, loss in zip(self.held_out, losses, strict=True)}
        return Finished(learner, self._outcomes(learner), held_out)

    def burst(self, steps: int = 100, share: float = 0.01) -> Laboratory:
        """The same for short runs in which each experiment is as large as ``share`` of the tokens, without a controller.

        Errors: :class:`~latewood.core.errors.ConfigurationError` if that is less than one text of an experiment.
        """
        lab = replace(self, recipe=replace(self.recipe, steps=steps))
        return replace(lab, experiments=[_intense(e, lab.shape, self.tokenizer, share) for e in self.experiments])

    def interference(self, seeds: int = ENOUGH_SEEDS, device: str = "auto") -> Interference:
        """Whether experiments influence one another: runs on none, on each and on all, and the test on their outcomes.

        Meant for :meth:`burst` of a laboratory whose backbone is a checkpoint of the training in question: it costs
        ``seeds`` times (experiments + 2) short runs.
        """
        testable = [name for name in self.names if name not in {e.name for e in self.experiments if not e.testable}]
        return cpdt(
            collect(
                lambda active, seed: self.run(active, seed, device=device).outcomes, self.names, seeds=seeds, alone=testable
            )
        )

    def _learner(self, active: Collection[str], seed: int) -> TrainOnceLearner:
        made = copy.deepcopy(self.backbone) if isinstance(self.backbone, CausalLM) else self.backbone(seed)
        chosen = [experiment for experiment in self.experiments if experiment.name in active]
        study = TrainOnce(chosen, self.shape, self.tokenizer, seed=seed)
        marks = self.watermark is not None and self.watermark.name in active
        return TrainOnceLearner(made, study, self.watermark, marks, self.recipe)

    def _outcomes(self, learner: TrainOnceLearner) -> dict[str, Values]:
        found = {name: self._values(learner, data) for name, data in self._items.items()}
        if self.watermark is not None:
            found[self.watermark.name] = influences(learner, self.watermark)
        return found

    def _values(self, learner: TrainOnceLearner, items: Data) -> Values:
        nats = learner.predict(items).numpy()
        if self.outcome == "probability":
            return cast(Values, np.exp(-nats))
        return cast(Values, -nats / items.tensor("targets")[:, 1:].sum(1).numpy())

    @cached_property
    def _items(self) -> dict[str, Data]:
        return {experiment.name: experiment.probe(self.tokenizer).data for experiment in self.experiments}


def _intense(experiment: Experiment, shape: StreamShape, tokenizer: Tokenizer, share: float) -> Experiment:
    """The experiment with its texts repeated, or a part of them drawn, until they are ``share`` of the tokens."""
    sizes = [min(len(tokens) + 2, shape.length) for tokens in encoded(experiment.texts, tokenizer)]
    wanted = share * shape.tokens / math.fsum(sizes)
    repetitions = wanted if wanted < 1 else float(round(wanted))
    if int(len(experiment.texts) * repetitions) < 1:
        raise ConfigurationError(
            f"{share:.3g} of {shape.tokens} tokens is less than one text of {experiment.name!r}; take more steps or a larger "
            "share."
        )
    return replace(experiment, control=None, span=None, positions=None, repetitions=repetitions)
