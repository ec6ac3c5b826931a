"""Data mixing within the loop: shares are kept to, nothing is read twice, scoring leaves no trace, a killed run goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language.learners.data_mixing_agent import DataMixingAgent
from latewood.language.mixing_agent.environment import frequencies
from latewood.language.mixing_agent.policy import Actor, MixingAgent, Shape, load_agent
from latewood.language.mixing_agent.trajectories import Domains
from latewood.language.mixture import Mixture
from latewood.language.nets import causal
from latewood.language.recipe import TextRecipe

LENGTH = 16
NAMES = ("en", "fr", "sums", "code")


def text(name: str, count: int) -> Data:
    """Rows of an alphabet of their own, no two of which share a row."""
    chance = torch.Generator().manual_seed(NAMES.index(name))
    return Data(
        tokens=torch.randint(50 * NAMES.index(name), 50 * NAMES.index(name) + 60, (count, LENGTH), generator=chance).int(),
        source=[name] * count,
    )


def joined(**counts: int) -> Data:
    parts = [text(name, count) for name, count in counts.items()]
    return Data(
        tokens=torch.cat([part.tensor("tokens") for part in parts]), source=[name for part in parts for name in part["source"]]
    )


def stream(**target: int) -> Stream:
    arrivals = (joined(en=300, fr=150), joined(**(target or {"sums": 200, "code": 120})))
    return Stream("text", 2, lambda index: Experience(index, arrivals[index]), ())


@pytest.fixture
def agent(tmp_path: Path) -> str:
    return saved(tmp_path / "agent")


def saved(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    actor = Actor(4, Shape("mlp", width=16))
    torch.nn.init.normal_(actor.head.weight)
    domains = Domains(NAMES, (0, 0, 1, 1), torch.stack([frequencies(text(name, 200), 257) for name in NAMES]))
    MixingAgent(actor, domains, torch.tensor([0.5, 0.5])).save(folder)
    return str(folder)


def made(agent: str, kind: type[DataMixingAgent] = DataMixingAgent, **settings: Any) -> DataMixingAgent:
    recipe = {"batch_size": 8, "lr": 0.01, "steps": 12, **settings.pop("recipe", {})}
    torch.manual_seed(0)
    net = causal(text("en", 1), layers=1, width=16, heads=2)
    return kind(net, agent, **{"steps_per_action": 4, "held_out": 16, "recipe": TextRecipe(**recipe), **settings})


def bits(learner: DataMixingAgent) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class _Watched(DataMixingAgent):
    """Notes every row that is trained on, and from which domain it is."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.rows_seen: list[tuple[int, ...]] = []
        self.counts: list[Counter[str]] = []

    def batch(self, new: Data) -> Data:
        self.rows_seen += map(tuple, new.tensor("tokens").tolist())
        assert self.domains is not None
        self.counts.append(Counter(self.domains.names[place] for place in new.tensor("domain").tolist()))
        return new

    def config(self) -> dict[str, Any]:
        return {}


# 6


def test_each_steps_rows_are_as_its_shares_say_and_no_row_is_read_twice(agent: str) -> None:
    learner = made(agent, _Watched, recipe={"steps": 16, "batch_size": 16})
    run(learner, stream(), device="cpu")
    assert isinstance(learner, _Watched) and learner.domains is not None
    assert learner.domains.names == NAMES and learner.domains.fields == (0, 0, 1, 1)
    for step, shares in enumerate(learner.actions):
        counts = sum(learner.counts[4 * step : 4 * step + 4], Counter())
        for name, share in zip(NAMES, shares, strict=True):
            multinomial = (64 * share * (1 - share)) ** 0.5
            assert abs(counts[name] - 64 * share) <= max(2.0, 2 * multinomial)
    assert len(set(learner.rows_seen)) == len(learner.rows_seen) == 256


class _Greedy(_Watched):
    """Wants almost everything from one domain."""

    def choose(self, actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
        return torch.tensor([0.02, 0.02, 0.02, 0.94], dtype=torch.float64)


def test_a_small_domain_is_read_once_and_then_gets_nothing(agent: str) -> None:
    learner = made(agent, _Greedy, recipe={"steps": 28, "batch_size": 16}, steps_per_action=4)
    run(learner, stream(sums=200, code=100), device="cpu")
    assert isinstance(learner, _Greedy)
    read = Counter(learner.rows_seen)
    assert max(read.values()) == 1
    code = [shares[3] for shares in learner.actions]
    assert code[0] == pytest.approx(0.94, abs=2e-3)
    assert code[1] == pytest.approx((100 - 16 - 60 - 1) / 64, abs=0.03)
    assert all(share < 0.02 for share in code[2:])
    assert all(sum(shares) == pytest.approx(1, abs=1e-9) for shares in learner.actions)


def test_a_domain_may_be_read_as_often_as_allowed_and_all_again_when_nothing_is_left(agent: str) -> None:
    twice = made(agent, _Greedy, recipe={"steps": 12, "batch_size": 16}, passes=2)
    run(twice, stream(sums=200, code=100), device="cpu")
    assert isinstance(twice, _Greedy)
    assert max(Counter(twice.rows_seen).values()) == 2 and twice.actions[1][3] == pytest.approx(0.94, abs=2e-3)
    again = made(agent, _Watched, recipe={"steps": 60, "batch_size": 16}, held_out=4)
    run(again, stream(sums=60, code=40), device="cpu")
    assert isinstance(again, _Watched)
    assert len(again.rows_seen) == 960 > len(set(again.rows_seen))


def test_rows_that_are_scored_on_are_never_trained_on(agent: str) -> None:
    learner = made(agent, _Watched, recipe={"steps": 40, "batch_size": 16})
    run(learner, stream(), device="cpu")
    assert isinstance(learner, _Watched)
    apart = {tuple(row) for domain in learner._tables.values() for row in domain.apart.tensor("tokens").tolist()}
    assert len(apart) == 4 * 16 and not apart & set(learner.rows_seen)


# 7


def test_the_agent_is_frozen(agent: str) -> None:
    before = load_agent(agent).fingerprint()
    files = {file.name: file.read_bytes() for file in Path(agent).iterdir()}
    learner = made(agent)
    run(learner, stream(), device="cpu")
    assert learner.fingerprint() == before
    assert {file.name: file.read_bytes() for file in Path(agent).iterdir()} == files
    assert not [name for name, _ in learner.named_parameters() if not name.startswith("backbone")]


class _Nosy(DataMixingAgent):
    """Scores far more often than is needed."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        if self.domains:
            training = self.backbone.training
            before, chance = bits(self), torch.get_rng_state()
            moments = [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
            self.environment()
            assert same(before, bits(self)) and torch.equal(chance, torch.get_rng_state())
            assert self.backbone.training == training
            for kept, state in zip(moments, optimizer.state.values(), strict=True):
                assert all(torch.equal(kept[name], state[name]) for name in kept)
        super().after_step(step, optimizer, mixture)


def test_scoring_leaves_weights_optimiser_and_the_order_of_the_data_as_they_were(agent: str) -> None:
    plain, nosy = made(agent), made(agent, _Nosy)
    for learner in (plain, nosy):
        run(learner, stream(), device="cpu")
    assert same(bits(plain), bits(nosy)) and plain.actions == nosy.actions


# The rest of its promises


@pytest.mark.parametrize("death", [3, 4, 5, 9])
def test_a_run_that_is_killed_ends_with_the_same_bits(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    settings: dict[str, Any] = {"recipe": {"save_every": 2}}
    straight = made(agent, **settings)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    after, count = DataMixingAgent.after_step, [0]

    def dying(self: DataMixingAgent, *rest: Any) -> None:
        count[0] += 1
        if count[0] == death:
            raise KeyboardInterrupt
        after(self, *rest)

    monkeypatch.setattr(DataMixingAgent, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(made(agent, **settings), stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    again = made(agent, **settings)
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert same(bits(again), bits(straight))
    assert again.actions == straight.actions and again.feedback == straight.feedback and again.log() == straight.log()


def test_a_killed_run_does_not_go_on_with_another_agent(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: DataMixingAgent, step: int, *rest: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(DataMixingAgent, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(made(agent, recipe={"save_every": 2}), stream(), to=tmp_path / "run", device="cpu")
    monkeypatch.undo()
    Path(agent).rename(tmp_path / "old")
    saved(Path(agent), seed=1)
    with pytest.raises(CheckpointError, match="another agent"):
        run(made(agent, recipe={"save_every": 2}), stream(), to=tmp_path / "run", device="cpu")


def test_the_first_arrival_is_kept_and_trained_on_only_if_that_is_asked(agent: str) -> None:
    kept, trained = made(agent), made(agent, first="train")
    before = {name: value.clone() for name, value in kept.backbone.state_dict().items()}
    for learner in (kept, trained):
        learner.learn(stream()[0])
        assert learner.names == ["en", "fr"] and len(learner.kept) == 450 and learner.log() == []
    assert all(torch.equal(value, before[name]) for name, value in kept.backbone.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in trained.backbone.state_dict().items())


def test_the_target_field_may_be_named_and_arrive_with_the_rest(agent: str) -> None:
    learner = made(agent, target=("sums",))
    learner.learn(Experience(0, joined(sums=100, en=100)))
    assert learner.domains is not None
    assert learner.domains.names == ("en", "sums") and learner.domains.fields == (0, 1)
    assert len(learner.actions) == 3 and all(len(shares) == 2 for shares in learner.actions)


def test_what_arrived_before_is_the_source_field_and_no_more_than_memory_of_it_is_kept(agent: str) -> None:
    learner = made(agent, memory=40)
    for index, name in enumerate(("en", "sums")):
        learner.learn(Experience(index, text(name, 200)))
    assert len(learner.kept) == 2 * (40 + 16) and learner.names == ["en", "sums"]
    again = made(agent, memory=40)
    again.load_state_dict(learner.state_dict())
    assert again.names == ["en", "sums"]
    for one in (learner, again):
        one.generator.manual_seed(0)
        one.learn(Experience(2, text("code", 200)))
        assert one.names == ["en", "sums", "code"]
    assert same(bits(learner), bits(again))


def test_domains_that_share_a_slot_divide_its_share_by_their_sizes(tmp_path: Path) -> None:
    domains = Domains(("old", "new"), (0, 1), torch.stack([frequencies(text(name, 200), 257) for name in ("en", "sums")]))
    torch.manual_seed(0)
    MixingAgent(Actor(2, Shape("mlp", width=16)), domains, torch.ones(2)).save(tmp_path / "a")
    learner = made(str(tmp_path / "a"), floor=0.0)
    run(learner, stream(), device="cpu")
    sizes = learner._sizes()
    for shares in learner.actions:
        assert shares[0] / shares[1] == pytest.approx(float(sizes[0] / sizes[1]), rel=1e-6)
        assert shares[2] / shares[3] == pytest.approx(float(sizes[2] / sizes[3]), rel=1e-6)


def test_the_log_tells_shares_source_text_and_scores_of_each_step(agent: str) -> None:
    learner = made(agent, _Watched)
    run(learner, stream(), device="cpu")
    log = learner.log()
    assert isinstance(learner, _Watched) and len(log) == 3 and len(learner.feedback) == 4
    source = [sum(counts[name] for counts in learner.counts[: 4 * n] for name in ("en", "fr")) for n in (1, 2, 3)]
    assert [step.source_rows for step in log] == source
    assert log[1].source_share == pytest.approx(log[1].shares["en"] + log[1].shares["fr"])
    assert list(log[2].feedback) == ["source", "target"] and log[2].feedback["target"] == learner.feedback[3][1]


@pytest.mark.parametrize("settings", [{"steps_per_action": 0}, {"floor": 1.5}, {"held_out": 0}, {"passes": 0}, {"memory": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        made("agent", **settings)


def test_too_little_text_and_a_missing_agent_are_told(tmp_path: Path, agent: str) -> None:
    with pytest.raises(DataError, match="'en'"):
        made(agent).learn(Experience(0, text("en", 10)))
    for missing, error in (("", ConfigurationError), (str(tmp_path / "nowhere"), CheckpointError)):
        with pytest.raises(error):
            made(missing).learn(stream()[0])
