"""Data mixing agent (paper 21): a policy, trained beforehand on small models, that sets the shares of domains step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from latewood.core.cost import current_meter
from latewood.core.data import Data, concat
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.seeding import seeded
from latewood.language.learner import LanguageLearner
from latewood.language.mixing_agent.environment import affordable, frequencies, split, without_traces
from latewood.language.mixing_agent.policy import MixingAgent, load_agent
from latewood.language.mixing_agent.trajectories import FIELDS, Domains, Trajectory
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.memory import Exemplars


class Reweighting(NamedTuple):
    """One step of the agent: the ``shares`` by domain and of the source field, the rows of source text read by its end
    since the arrival came, and the score of each field after it."""

    shares: dict[str, float]
    source_share: float
    source_rows: float
    feedback: dict[str, float]


class _Domain(NamedTuple):
    train: Data
    apart: Data


class DataMixingAgent(LanguageLearner):
    """Continual pre-training on old and new text, in shares that a trained agent sets (arXiv 2507.15640).

    Domains are the sources of the text (the column ``source``). Those of the present arrival are the target field, those
    that arrived before and not now are the source field; with ``target`` these names are the target field and all others
    the source field, whenever they come. While there is text of one field alone, it is only kept (``first="keep"``, for a model
    that is trained already), or trained on in natural proportions (``first="train"``). At most ``memory`` rows of
    each domain are kept for later arrivals.

    Every ``steps_per_action`` steps the model is scored on ``held_out`` rows of each domain that it is never trained on
    (minus the mean loss of each field), and the agent in the folder ``agent`` says the next shares: that is the only extra
    cost, and it is counted. The agent is frozen. Its domains are matched with these by name, or else by the frequencies of
    tokens; those that have no counterpart get no share, and several that share one divide its share by their sizes.
    ``floor`` is mixed in uniformly.

    **Exhausted domains.** A domain is exhausted once its rows were read ``passes`` times in this arrival; it gets no share,
    and the others are renormalised. A share is also never more than what is left of its domain (to a row); the rest goes to
    the others. When less is left of all together than a step needs, every domain is allowed another pass.

    The folder ``agent`` is what :meth:`~latewood.language.mixing_agent.MixingAgent.save` wrote;
    ``latewood.studies.mixing_agent`` trains one.

    >>> import tempfile
    >>> from latewood.language.mixing_agent.policy import Actor, Shape
    >>> from latewood.language.nets import causal
    >>> untrained = Actor(2, Shape(size="mlp", width=8))
    >>> folder = f"{tempfile.mkdtemp()}/agent"
    >>> MixingAgent(untrained, Domains(("en", "sums"), (0, 1)), torch.ones(2)).save(folder)
    >>> text = {name: torch.randint(250, (200, 16), dtype=torch.int32) for name in ("en", "sums")}
    >>> net = causal(Data(tokens=text["en"]), layers=1, width=16, heads=2)
    >>> learner = DataMixingAgent(net, folder, recipe=TextRecipe(steps=40))
    >>> for index, (name, rows) in enumerate(text.items()):
    ...     learner.learn(Experience(index, Data(tokens=rows, source=[name] * len(rows))))
    >>> [list(step.shares) for step in learner.log()]
    [['en', 'sums'], ['en', 'sums']]
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-maths": Preset(
            "text-mlfoundations/dclm-baseline-1.0,allenai/dolmino-mix-1124:math",
            {
                "backbone": "EleutherAI/pythia-1b",
                "stream": {"tokenizer": "EleutherAI/pythia-1b", "length": 2048, "held_out": 512},
                **{"agent": "models/mixing-agent", "steps_per_action": 20, "floor": 1e-3, "held_out": 512},
                "recipe": {"lr": 3e-5, "batch_size": 512, "accumulation": 64, "steps": 400, "precision": "bfloat16"},
            },
            "Corpora of the paper, as one domain each: its 52 need the text divided by topics beforehand, such as by "
            "nvidia/domain-classifier, and named in the stream, joined by +. The agent must have been trained. Model, rate, "
            "batch and steps are our choice.",
        ),
    }

    def __init__(
        self,
        backbone: CausalLM,
        agent: str,
        target: tuple[str, ...] = (),
        steps_per_action: int = 20,
        floor: float = 1e-3,
        passes: int = 1,
        held_out: int = 64,
        memory: int = 10_000,
        first: Literal["keep", "train"] = "keep",
        recipe: TextRecipe = TextRecipe(),
    ) -> None:
        super().__init__(backbone, recipe)
        if min(steps_per_action, passes, held_out, memory) < 1 or not 0 <= floor <= 1:
            raise ConfigurationError(
                "steps_per_action, passes, held_out and memory must be at least 1, and floor lie from 0 to 1."
            )
        self.agent, self.target, self.steps_per_action = agent, target, steps_per_action
        self.floor, self.passes, self.held_out, self.memory, self.first = floor, passes, held_out, memory, first
        #: Rows of what arrived before; ``domain`` is a place in :attr:`names`, ``apart`` says whether it is for scoring.
        self.kept = Exemplars(memory)
        self.names: list[str] = []
        #: Of the present arrival: the shares of its domains in each step so far, and the scores before and after them.
        self.actions: list[list[float]] = []
        self.feedback: list[list[float]] = []
        self.source_rows: list[float] = []
        self.domains: Domains | None = None
        self._tables: dict[str, _Domain] = {}
        self._mixer: MixingAgent | None = None
        self._slots = torch.empty(0, dtype=torch.int64)
        self._steps = 0

    # What it does on an arrival

    def learn(self, experience: Experience) -> None:
        self.actions, self.feedback, self.source_rows = [], [], []
        self._mixer = self.mixer()
        self._gather(experience)
        if self.domains or self.first == "train":
            super().learn(experience)
        self._keep()

    def mixture(self, experience: Experience) -> Mixture:
        tables = {name: domain.train for name, domain in self._tables.items()}
        mixture = Mixture(tables, batch_size=self.rows(), seed=self.mixture_seed)
        if self.domains:
            self._steps = self.recipe.steps or math.ceil(self.recipe.epochs * len(experience.train) / self.rows())
            if self._mixer:
                self._slots = self._mixer.slots(self.domains)
            self.actions, self.feedback, self.source_rows = [], [self.environment().tolist()], []
            self._reweight(mixture)
        return mixture

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        if self.domains and (step % self.steps_per_action == 0 or step == self._steps):
            self.feedback.append(self.environment().tolist())
            self.source_rows.append(sum(mixture.given[self.domains.names[place]] for place in self.domains.of(0)))
            if step < self._steps:
                self._reweight(mixture)

    def environment(self) -> Tensor:
        """Minus the mean loss on what is kept apart of each field, every domain counted alike, float64 ``(fields,)``.

        Weights, modes and random generators stay as they were.
        """
        assert self.domains is not None
        modes = [(module, module.training) for module in self.modules()]
        with torch.no_grad(), seeded("environment"), current_meter().counting():
            scores = torch.stack([self._score(self._tables[name].apart) for name in self.domains.names])
        for module, training in modes:
            module.training = training
        return torch.stack([scores[self.domains.of(field)].mean() for field in range(len(FIELDS))])

    def _score(self, rows: Data) -> Tensor:
        return -self.predict(rows).mean() / (rows[:1].tensor("tokens").shape[1] - 1)

    # What the agent is asked

    def mixer(self) -> MixingAgent | None:
        """The agent that will be asked."""
        if not self.agent:
            raise ConfigurationError("agent must name the folder of a trained mixing agent.")
        return load_agent(self.agent)

    def choose(self, actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
        """The next shares, float64 ``(K,)``, given those before ``(t, K)`` and the scores ``(t + 1, fields)``; there will be
        ``steps`` in all."""
        agent = self._mixer
        assert agent is not None
        slots, count = self._slots, len(agent.domains)
        mask = torch.zeros(count, dtype=torch.bool)
        mask[slots] = True
        past = torch.zeros(len(actions), count, dtype=torch.float64).index_add_(1, slots, actions)
        shares = agent.act(past, feedback, steps, mask)
        sizes = self._sizes()
        together = torch.zeros(count, dtype=torch.float64).index_add_(0, slots, sizes)
        return shares[slots] * sizes / together[slots]

    def fingerprint(self) -> str:
        """What decides the shares, as a hash: a killed run goes on only with the same."""
        return self._mixer.fingerprint() if self._mixer else ""

    @property
    def trajectory(self) -> Trajectory:
        """The shares and the scores of the present arrival, or the last one."""
        return Trajectory(torch.tensor(self.actions, dtype=torch.float64), torch.tensor(self.feedback, dtype=torch.float64))

    def log(self) -> list[Reweighting]:
        """What the agent did in the present arrival, or the last one; empty where there was one field alone."""
        if self.domains is None:
            return []
        source = self.domains.of(0)
        rows = zip(self.actions, self.source_rows, self.feedback[1:], strict=False)
        return [
            Reweighting(
                dict(zip(self.domains.names, shares, strict=True)),
                sum(shares[place] for place in source),
                read,
                dict(zip(FIELDS, feedback, strict=True)),
            )
            for shares, read, feedback in rows
        ]

    def _reweight(self, mixture: Mixture) -> None:
        assert self.domains is not None
        actions = torch.tensor(self.actions, dtype=torch.float64).reshape(-1, len(self.domains))
        shares = self.choose(actions, torch.tensor(self.feedback, dtype=torch.float64), self._actions())
        shares = self._in_stock((1 - self.floor) * shares + self.floor / len(shares), mixture)
        self.actions.append(shares.tolist())
        mixture.set_shares(dict(zip(self.domains.names, self.actions[-1], strict=True)))

    def _in_stock(self, shares: Tensor, mixture: Mixture) -> Tensor:
        given = torch.tensor([mixture.given[name] for name in mixture.names])
        left = (self.passes * self._sizes() - given).clamp_min(0)
        rows = self.steps_per_action * self.rows()
        while int((left - 1).clamp_min(0).sum()) < rows:
            left = left + self._sizes()
        return affordable(shares, left, rows)

    def _actions(self) -> int:
        return math.ceil(self._steps / self.steps_per_action)

    def _sizes(self) -> Tensor:
        return torch.tensor([len(domain.train) for domain in self._tables.values()], dtype=torch.float64)

    # What is kept

    def _gather(self, experience: Experience) -> None:
        """The domains of old and new text, those of the source field first."""
        new = by_source(experience.train, f"arrival {experience.index}")
        tables: dict[str, _Domain] = {}
        for place, name in enumerate(self.names):
            tables[name] = _Domain(self._kept(place, apart=False), self._kept(place, apart=True))
        for name, rows in new.items():
            if name in tables:
                tables[name] = tables[name]._replace(train=concat(tables[name].train, rows.select("tokens")))
            else:
                tables[name] = _Domain(*split(rows, self.held_out, self.generator))
        apart = concat(*(domain.apart for domain in tables.values()))
        tables = {name: domain._replace(train=without_traces(domain.train, apart, name)) for name, domain in tables.items()}
        is_target = {name: int(name in self.target if self.target else name in new) for name in tables}
        self._tables = {name: tables[name] for name in sorted(tables, key=lambda name: is_target[name])}
        fields = tuple(is_target[name] for name in self._tables)
        self.domains = None
        if len(set(fields)) == len(FIELDS):
            centroids = [frequencies(domain.train, self.backbone.vocabulary) for domain in self._tables.values()]
            self.domains = Domains(tuple(self._tables), fields, torch.stack(centroids))

    def _kept(self, place: int, apart: bool) -> Data:
        held = self.kept.data.to("cpu")
        rows = (held.tensor("domain") == place) & (held.tensor("apart") == apart)
        return held.select("tokens")[rows]

    def _keep(self) -> None:
        self.names = list(self._tables)
        parts = []
        for place, (train, apart) in enumerate(self._tables.values()):
            chosen = torch.randperm(len(train), generator=self.generator)[: self.memory].sort().values
            for rows, is_apart in ((train[chosen], False), (apart, True)):
                marks = torch.full((len(rows),), place), torch.full((len(rows),), is_apart)
                parts.append(Data(tokens=rows.tensor("tokens"), domain=marks[0], apart=marks[1]))
        self.kept.replace(concat(*parts).to(self.device))

    def get_extra_state(self) -> Tensor:
        """The names of the domains that are kept, as bytes of JSON in a tensor."""
        return torch.tensor(list(json.dumps(self.names).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on the names of the domains that another learner kept."""
        self.names = json.loads(bytes(state.tolist()))

    def progress_state(self) -> dict[str, Any]:
        if self.domains is None:
            return {}
        told = {"actions": self.actions, "feedback": self.feedback, "source_rows": self.source_rows}
        return {"agent": self.fingerprint(), **told}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        if self.domains is None:
            return
        if state["agent"] != self.fingerprint():
            raise CheckpointError("This arrival was begun with another agent; give that one, or begin anew in another folder.")
        self.actions, self.feedback, self.source_rows = (list(state[n]) for n in ("actions", "feedback", "source_rows"))
