"""The loop of the language wing: it can stop anywhere, counts what it does, and adds nothing to the arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError, LatewoodError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language.learner import LanguageLearner
from latewood.language.learners.continue_ import Continue
from latewood.language.learners.replay import Replay
from latewood.language.nets import causal
from latewood.language.recipe import TextRecipe

LENGTH = 24
Learners: Mapping[str, Callable[..., LanguageLearner]] = {"continue": Continue, "replay": Replay}


def blocks(count: int, seed: int) -> Data:
    """Text-like rows: runs of letters of an alphabet that depends on the seed."""
    chance = torch.Generator().manual_seed(seed)
    starts = torch.randint(60 + 20 * seed, 75 + 20 * seed, (count, 1), generator=chance)
    return Data(tokens=(starts + torch.arange(LENGTH) % (3 + seed)).int())


def stream(arrivals: int = 2, rows: int = 64) -> Stream:
    return Stream("rows", arrivals, lambda index: Experience(index, blocks(rows, index)), ())


def learner(kind: str = "continue", seed: int = 0, **recipe: Any) -> LanguageLearner:
    torch.manual_seed(seed)
    wanted = TextRecipe(**{"batch_size": 8, "lr": 0.01, **recipe})
    return Learners[kind](causal(blocks(1, 0), layers=1, width=16, heads=2), recipe=wanted)


def bits(one: LanguageLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_is_the_loop_that_one_would_write_by_hand() -> None:
    ours = learner(steps=5, warmup=0.0, decay="constant", clip=1.0)
    hand = learner(steps=5)
    data = blocks(8, 0)
    ours.learn(Experience(0, data))
    net = hand.backbone
    plain = [p for p in net.parameters() if p.dim() < 2]
    groups = [{"params": [p for p in net.parameters() if p.dim() >= 2]}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    hand.generator.manual_seed(0)
    torch.randint(2**62, (), generator=hand.generator)
    hand.mixture_seed = int(torch.randint(2**62, (), generator=hand.generator))
    mixture = hand.mixture(Experience(0, data))
    for _ in range(5):
        tokens = mixture.draw()["tokens"].long()
        logits = net.network(input_ids=tokens).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, ours.backbone.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("kind", Learners)
@pytest.mark.parametrize("death", [1, 5, 6, 7, 11, 13])
def test_a_run_that_is_killed_within_an_arrival_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, death: int
) -> None:
    straight = learner(kind, save_every=2)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    broken = learner(kind, save_every=2)
    after, seen = type(broken).after_step, []

    def dying(self: LanguageLearner, step: int, *rest: Any) -> None:
        seen.append(step)
        if len(seen) == death:
            raise KeyboardInterrupt
        after(self, step, *rest)

    monkeypatch.setattr(type(broken), "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(broken, stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    again = learner(kind, save_every=2, seed=1)  # its own weights don't matter: those on disk do
    if death <= 2:
        again = learner(kind, save_every=2)  # nothing was saved yet
    record = run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert same(bits(again), bits(straight))
    assert record.rows[0].cost.flops == run(learner(kind, save_every=2), stream(), device="cpu").rows[0].cost.flops
    assert not (tmp_path / "broken" / "unfinished").exists()


def test_one_schedule_over_all_arrivals_never_warms_up_again_and_keeps_the_moments() -> None:
    rates: list[float] = []

    class Watching(Continue):
        def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    torch.manual_seed(0)
    recipe = TextRecipe(batch_size=8, lr=1.0, steps=10, arrivals=2, warmup=0.2, decay="linear", floor=0.0, weight_decay=0.0)
    watching = Watching(causal(blocks(1, 0), layers=1, width=16, heads=2), recipe)
    run(watching, stream(), device="cpu")
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([1 - step / 16 for step in range(16)])
    assert len(watching.optimizer_state.state_dict()) > 0


def test_a_run_over_a_common_schedule_resumes_between_arrivals_with_the_same_bits(tmp_path: Path) -> None:
    wanted = {"steps": 6, "arrivals": 2}
    straight = learner(**wanted)
    run(straight, stream(), device="cpu")
    first = learner(**wanted)
    with pytest.raises(RuntimeError, match="enough"):

        def build(index: int) -> Experience:
            if index == 1:
                raise RuntimeError("enough")
            return Experience(index, blocks(64, index))

        run(first, Stream("rows", 2, build, ()), to=tmp_path, device="cpu")
    second = learner(**wanted, seed=1)
    run(second, stream(), to=tmp_path, device="cpu")
    assert same(bits(second), bits(straight))


def test_accumulating_small_passes_equals_one_large_pass() -> None:
    whole, cut = learner(steps=4), learner(steps=4, accumulation=4)
    for one in (whole, cut):
        one.learn(Experience(0, blocks(64, 0)))
    for name, value in whole.backbone.state_dict().items():
        assert torch.allclose(value, cut.backbone.state_dict()[name], atol=1e-5), name


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    states = []
    for seed in (0, 0, 1):
        one = learner()
        run(one, stream(), seed=seed, device="cpu")
        states.append(bits(one))
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_new_rows_of_an_arrival_do_not_depend_on_the_share_of_replay() -> None:
    seen: dict[float, list[int]] = {}
    for share in (0.0, 0.25, 0.5):
        torch.manual_seed(0)
        one = Replay(causal(blocks(1, 0), layers=1, width=16, heads=2), share, recipe=TextRecipe(batch_size=8))
        batches: list[int] = []
        mixed = one.batch
        one.batch = lambda new, mixed=mixed, batches=batches: (batches.append(len(new)), mixed(new))[1]  # type: ignore[method-assign,misc]
        one.learn(Experience(0, blocks(48, 0)))
        seen[share] = batches
        assert len(one.batch(blocks(one.rows(), 0))) == 8
    assert {share: sum(batches[: -(-48 // (8 - round(8 * share)))]) for share, batches in seen.items()} == {
        0.0: 48,
        0.25: 48,
        0.5: 48,
    }


def test_replay_keeps_more_of_an_old_domain_than_going_on_without() -> None:
    losses = {}
    for kind in Learners:
        one = learner(kind, seed=3, steps=60)
        run(one, stream(), device="cpu")
        losses[kind] = float(one.predict(blocks(32, 0)).mean())
    assert losses["replay"] < 0.7 * losses["continue"]


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.3])
def test_a_share_that_is_no_whole_number_of_rows_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="no whole number"):
        Replay(causal(blocks(1, 0), layers=1, width=16, heads=2), share, recipe=TextRecipe(batch_size=8))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"arrivals": 2}, r"needs recipe\.steps"),
        ({"accumulation": 3}, "must divide"),
        ({"steps": 0}, "at least 1"),
        ({"save_every": 0}, "at least 1"),
        ({"floor": 2.0}, "floor"),
        ({"decay": "exponential"}, ""),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], sentence: str) -> None:
    if "decay" in settings:
        from latewood.core.configure import build

        with pytest.raises(ConfigurationError, match=r"recipe\.decay"):
            build(Continue, {"recipe": settings}, "continue", backbone=None)
        return
    with pytest.raises(ConfigurationError, match=sentence):
        TextRecipe(**{"batch_size": 8, **settings})


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "wsd"])
def test_schedules_start_low_reach_the_rate_and_end_at_the_floor(decay: Any) -> None:
    recipe = TextRecipe(decay=decay, warmup=0.1, floor=0.1, cooldown=0.2)
    rates = [recipe.rate(step, 1000) for step in range(1001)]
    assert rates[0] < 0.02 and max(rates) <= 1.0 and max(rates) > 0.99
    assert rates[1000] == pytest.approx(1.0 if decay == "constant" else 0.1)
    if decay == "wsd":
        assert rates[799] == 1.0 and rates[801] < 1.0


def test_tokens_of_another_tokenizer_are_refused_with_a_sentence() -> None:
    with pytest.raises(DataError, match="token 999, but this model knows 257: it belongs to another tokenizer"):
        learner().learn(Experience(0, Data(tokens=torch.full((8, LENGTH), 999, dtype=torch.int32))))


def test_a_loss_that_is_no_number_ends_with_a_sentence() -> None:
    one = learner(lr=1e30, steps=60, clip=None)
    with pytest.raises(LatewoodError, match="NaN or infinite by step"):
        one.learn(Experience(0, blocks(64, 0)))


def test_a_prediction_is_the_likelihood_of_the_row_or_of_its_targets() -> None:
    one = learner()
    data = blocks(5, 0)
    logs = one.backbone(data["tokens"].long()).log_softmax(-1)[:, :-1]
    each = -logs.gather(-1, data["tokens"][:, 1:, None].long())[..., 0].double()
    assert torch.allclose(one.predict(data), each.sum(1), atol=1e-4)
    targets = torch.zeros(5, LENGTH, dtype=torch.bool)
    targets[:, 7:9] = True
    assert torch.allclose(one.predict(data.with_columns(targets=targets)), each[:, 6:8].sum(1), atol=1e-4)


_WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_learner import Experience, blocks, learner
one = learner(steps=6)
one.learn(Experience(0, blocks(64, 0)))
from safetensors.torch import save_file
save_file({{k: v.contiguous() for k, v in one.backbone.state_dict().items()}}, sys.argv[1])
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Each takes every second row of the same batches; gradients are averaged with gloo."""
    from safetensors.torch import load_file

    alone = learner(steps=6)
    alone.learn(Experience(0, blocks(64, 0)))
    program = _WORKER.format(tests=str(Path(__file__).parent))
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000), "WORLD_SIZE": "2"}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / f"{rank}.safetensors")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    weights = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name, value in alone.backbone.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert torch.allclose(value, weights[0][name], atol=1e-5), name
