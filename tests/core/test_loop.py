"""The training loop: what a recipe promises, step by step, and that the fast path leaves no trace."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, GradientLearner, Learner, Recipe
from latewood.core import speed
from latewood.core.cost import StepCounter, metered
from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.core.loop import fit, resolve_device
from latewood.core.seeding import seeded
from latewood.core.step import accelerated


class Line(GradientLearner):
    """``y = w x`` with one weight, which starts at 0; keeps what happened."""

    def __init__(self, recipe: Recipe = Recipe(momentum=0.0)) -> None:
        super().__init__(recipe)
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.batches: list[list[float]] = []
        self.epochs: list[int] = []
        self.modes: list[bool] = []

    @property
    def weight(self) -> float:
        return float(self.net.weight.detach())

    def loss(self, batch: Data) -> Tensor:
        self.batches.append(batch.tensor("x").flatten().tolist())
        self.epochs.append(self.epoch)
        self.modes.append(self.training)
        return F.mse_loss(self.net(batch.tensor("x")), batch.tensor("y"))

    def predict(self, data: Data) -> Tensor:
        predicted: Tensor = self.net(data.tensor("x"))
        return predicted


class Pixels(GradientLearner):
    """A little convolutional network."""

    def __init__(self, recipe: Recipe = Recipe()) -> None:
        super().__init__(recipe)
        with seeded("weights"):
            layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
            self.net = layers.append(nn.Linear(4 * 16, 3))
        self.register_buffer("memory", torch.zeros(2, 2))
        self.formats: list[bool] = []
        self.types: list[torch.dtype] = []

    def loss(self, batch: Data) -> Tensor:
        out = self.net(batch.tensor("image"))
        self.types.append(out.dtype)
        self.formats.append(is_channels_last(self.net[0].weight))
        return F.cross_entropy(out.float(), batch.tensor("label"))

    def predict(self, data: Data) -> Tensor:
        logits: Tensor = self.net(data.tensor("image"))
        return logits.argmax(1)


def is_channels_last(weight: object) -> bool:
    assert isinstance(weight, Tensor)
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def line(rows: int = 10) -> Data:
    x = torch.arange(1.0, rows + 1)[:, None]
    return Data(x=x, y=3 * x)


def images(rows: int = 12) -> Data:
    source = torch.Generator().manual_seed(0)
    return Data(image=torch.rand(rows, 2, 6, 6, generator=source), label=torch.arange(rows) % 3)


def state_of(learner: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(autouse=True)
def _repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    with seeded("tests"):
        yield


# What a recipe refuses


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, r"recipe\.epochs must be at least 1, but it is 0"),
        ({"batch_size": -3}, r"recipe\.batch_size must be at least 1, but it is -3"),
        ({"lr": -0.1}, r"recipe\.lr must be a number of at least 0, but it is -0\.1"),
        ({"lr": math.nan}, r"recipe\.lr must be a number of at least 0, but it is nan"),
        ({"momentum": math.inf}, r"recipe\.momentum must be a number of at least 0, but it is inf"),
        ({"weight_decay": -1e-4}, r"recipe\.weight_decay must be a number of at least 0"),
        ({"lr_decay": math.nan}, r"recipe\.lr_decay must be a number of at least 0"),
        ({"warmup": 1.0}, r"recipe\.warmup is a share of the steps, from 0 to below 1, but it is 1\.0"),
        ({"warmup": -0.1}, r"recipe\.warmup is a share"),
        ({"clip": 0.0}, r"recipe\.clip must be .*above 0.* but it is 0\.0"),
        ({"clip": math.nan}, r"recipe\.clip must be .*above 0.* but it is nan"),
        ({"clip": math.inf}, r"recipe\.clip .*inf"),
        ({"optimizer": "rmsprop"}, r"recipe\.optimizer .*rmsprop"),
        ({"schedule": "cosin"}, r"recipe\.schedule .*cosin"),
        ({"precision": "bf16"}, r"recipe\.precision .*bf16"),
        ({"compile": True}, r"recipe\.compile .*True"),
        ({"channels_last": "yes"}, r"recipe\.channels_last .*yes"),
    ],
)
def test_a_recipe_that_can_not_be_followed_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Recipe(**settings)


def test_a_recipe_knows_whether_something_is_left_to_measurement() -> None:
    assert not Recipe().undecided
    assert Recipe(precision="auto").undecided
    assert Recipe(channels_last="auto").undecided
    assert Recipe(compile="auto").undecided


# Schedules


def test_a_constant_rate_is_constant() -> None:
    assert [Recipe().rate(step, 7) for step in range(7)] == [1.0] * 7


def test_cosine_starts_at_the_full_rate_and_ends_near_zero() -> None:
    rates = [Recipe(schedule="cosine").rate(step, 100) for step in range(101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert rates[100] == pytest.approx(0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_a_step_schedule_falls_at_its_milestones() -> None:
    recipe = Recipe(epochs=4, schedule="step", milestones=(1, 3), lr_decay=0.1)
    rates = [recipe.rate(step, 20) for step in range(20)]  # five steps an epoch
    assert rates == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_a_warmup_rises_to_the_full_rate(schedule: Literal["constant", "cosine", "step"]) -> None:
    recipe = Recipe(schedule=schedule, warmup=0.2)
    rates = [recipe.rate(step, 50) for step in range(50)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert max(rates) == rates[10] == 1


def test_the_optimiser_takes_the_rates_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    make = Recipe.make_optimizer

    def watched(self: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = make(self, groups)
        optimizer.register_step_pre_hook(lambda opt, *_: taken.append(opt.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(Recipe, "make_optimizer", watched)
    recipe = Recipe(epochs=3, batch_size=4, lr=0.01, schedule="cosine", warmup=0.3)
    fit(Line(recipe), line())
    assert taken == pytest.approx([0.01 * recipe.rate(step, 9) for step in range(9)])


# Optimisers


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_one_that_was_named(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = Recipe(optimizer=name, lr=0.5, momentum=0.7, weight_decay=0.01).make_optimizer([{"params": [weight]}])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.01)
    assert group.get("momentum", 0.7) == 0.7


def test_a_groups_own_settings_go_before_the_recipes() -> None:
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": [slow], "lr": 0.001, "weight_decay": 0.5}, {"params": [fast]}]
    made = Recipe(lr=0.1, weight_decay=0.0).make_optimizer(groups).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in made] == [(0.001, 0.5), (0.1, 0.0)]


def test_parameter_groups_decide_what_is_trained_and_how_fast() -> None:
    class Two(Line):
        def __init__(self) -> None:
            super().__init__(Recipe(lr=0.01, momentum=0.0, batch_size=10))
            self.frozen, self.slow = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.slow], "lr": 0.001}, {"params": self.net.parameters()}]

        def loss(self, batch: Data) -> Tensor:
            return (self.net.weight + self.slow + self.frozen).sum()

    learner = Two()
    fit(learner, line())
    assert learner.weight == pytest.approx(-0.01)
    assert learner.slow.item() == pytest.approx(-0.001)
    assert learner.frozen.item() == 1


def test_the_optimiser_is_fresh_for_each_experience() -> None:
    """Momentum of one arrival must not push into the next."""
    learner = Line(Recipe(lr=0.01, momentum=0.9, batch_size=10))
    learner.learn(Experience(0, line()))
    before = learner.weight
    still = Data(x=torch.ones(1, 1), y=torch.full((1, 1), before))  # already fitted: no gradient
    learner.learn(Experience(1, still))
    assert learner.weight == pytest.approx(before)


# Steps


def test_a_step_is_that_of_the_optimiser_on_the_batch() -> None:
    learner = Line(Recipe(lr=0.001, momentum=0.0, batch_size=4))
    fit(learner, line())
    weight = 0.0
    for batch in learner.batches:
        weight -= 0.001 * sum(2 * (weight * x - 3 * x) * x for x in batch) / len(batch)
    assert learner.weight == pytest.approx(weight, rel=1e-5)


def test_every_epoch_sees_each_row_once_with_the_last_partial_batch() -> None:
    learner = Line(Recipe(epochs=3, batch_size=4, lr=0.001))
    fit(learner, line(10))
    assert [len(batch) for batch in learner.batches] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(itertools.chain(*learner.batches[3 * epoch : 3 * epoch + 3])) == list(range(1, 11))
    assert learner.epochs == [0] * 3 + [1] * 3 + [2] * 3
    assert learner.batches[:3] != learner.batches[3:6]  # shuffled anew


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    learner = Line(Recipe(batch_size=32, lr=0.001))
    fit(learner, line(3))
    assert [len(batch) for batch in learner.batches] == [3]


def test_a_gradient_is_clipped_to_the_norm_and_a_small_one_is_left() -> None:
    steep = Line(Recipe(lr=0.1, momentum=0.0, clip=0.5, batch_size=10))
    fit(steep, line())
    assert steep.weight == pytest.approx(0.05)
    gentle = Line(Recipe(lr=1e-5, momentum=0.0, clip=1e6, batch_size=10))
    plain = Line(Recipe(lr=1e-5, momentum=0.0, batch_size=10))
    for learner in (gentle, plain):
        fit(learner, line())
    assert gentle.weight == plain.weight > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training_and_names_what_to_change(bad: float) -> None:
    class Broken(Line):
        def loss(self, batch: Data) -> Tensor:
            return super().loss(batch) * (bad if self.epoch == 1 else 1)

    learner = Broken(Recipe(epochs=4, batch_size=5, lr=0.002))
    sentence = r"became NaN or infinite in epoch 2 of 4; lower recipe\.lr \(now 0\.002\) or set recipe\.clip\."
    with pytest.raises(LatewoodError, match=sentence):
        fit(learner, line())
    assert learner.epochs == [0, 0, 1, 1]  # it stopped at the end of that epoch


def test_a_rate_that_is_too_high_is_told_as_such() -> None:
    with pytest.raises(LatewoodError, match=r"lower recipe\.lr \(now 1000000\.0\)"):
        fit(Line(Recipe(epochs=30, lr=1e6)), line())


# Hooks


class Hooked(Line):
    def __init__(self, recipe: Recipe = Recipe(epochs=2, batch_size=4, lr=0.001)) -> None:
        super().__init__(recipe)
        self.events: list[str] = []

    def prepare(self, experience: Experience) -> None:
        self.events.append("prepare")

    def training_data(self, experience: Experience) -> Data:
        self.events.append("data")
        return experience.train[:6]

    def loss(self, batch: Data) -> Tensor:
        self.events.append("loss")
        return super().loss(batch)

    def after_batch(self, batch: Data) -> None:
        assert not any(p.grad is None for p in self.parameters())
        self.events.append(f"after {len(batch)}")

    def conclude(self, experience: Experience) -> None:
        self.events.append("conclude")


def test_hooks_are_called_in_order_and_after_batch_once_a_batch() -> None:
    learner = Hooked()
    learner.learn(Experience(0, line()))
    steps = ["loss", "after 4", "loss", "after 2"] * 2
    assert learner.events == ["prepare", "data", *steps, "conclude"]


def test_who_defines_no_hook_after_the_batch_has_none_to_call() -> None:
    """A method that does nothing would still be called for every batch."""
    assert GradientLearner.after_batch is None
    assert Line().after_batch is None
    fit(Line(), line())
    assert Hooked().after_batch is not None


def test_it_trains_in_training_mode_and_ends_in_evaluation_mode() -> None:
    learner = Line().eval()
    learner.learn(Experience(0, line()))
    assert all(learner.modes)
    assert not learner.training


def test_learning_depends_on_the_learners_generator_alone() -> None:
    def learned(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        learner = Pixels(Recipe(epochs=2, batch_size=5))
        learner.generator.manual_seed(seed)
        learner.learn(Experience(0, images()))
        return torch.cat([p.detach().flatten() for p in learner.parameters()])

    assert torch.equal(learned(1, 1), learned(1, 2))
    assert not torch.equal(learned(1, 1), learned(2, 1))


def test_compute_modules_are_those_with_something_to_train() -> None:
    class Parts(Line):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.activation = nn.ReLU()

    learner = Parts()
    assert learner.compute_modules() == [learner.net]


# Configuration of a learner


def test_a_learners_configuration_is_its_hyper_parameters_as_json_can_hold_them() -> None:
    class Net(nn.Linear):
        def config(self) -> dict[str, Any]:
            return {"name": "line", "width": 1}

    class Many(Learner):
        def __init__(
            self, net: nn.Module, plain: nn.Module, sizes: tuple[int, ...], names: dict[int, str], recipe: Recipe
        ) -> None:
            super().__init__()
            self.net, self.plain, self.sizes, self.names, self.recipe = net, plain, sizes, names, recipe

        def learn(self, experience: Experience) -> None: ...

        def predict(self, data: Data) -> Tensor:
            return data.tensor("x")

    config = Many(Net(1, 1), nn.ReLU(), (1, 2), {0: "a"}, Recipe(milestones=(3,))).config()
    assert config["net"] == {"name": "line", "width": 1}
    assert config["plain"] == "ReLU"
    assert (config["sizes"], config["names"]) == ([1, 2], {"0": "a"})
    assert config["recipe"]["milestones"] == [3]
    assert json.loads(json.dumps(config)) == config


def test_a_learner_is_where_its_tensors_are() -> None:
    assert Line().device == torch.device("cpu")
    assert Line().to("meta").device == torch.device("meta")


# The fast path


def works(recipe: Recipe) -> Pixels:
    learner = Pixels(recipe)
    before = state_of(learner)
    learner.learn(Experience(0, images()))
    after = state_of(learner)
    assert not same(before, after)
    assert all(torch.isfinite(value.float()).all() for value in after.values())
    return learner


def test_channels_last_is_on_during_training_and_off_after_it() -> None:
    learner = works(Recipe(batch_size=4, channels_last="on"))
    assert all(learner.formats)
    assert not is_channels_last(learner.net[0].weight)
    assert not any(works(Recipe(batch_size=4)).formats)


def test_a_network_that_was_in_channels_last_stays_in_it() -> None:
    for switch in ("on", "off"):
        learner = Pixels(Recipe(batch_size=4, channels_last=switch))
        learner.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner.learn(Experience(0, images()))
        assert is_channels_last(learner.net[0].weight), switch


def test_bfloat16_computes_in_it_and_keeps_the_weights_as_they_are() -> None:
    learner = works(Recipe(batch_size=4, precision="bfloat16"))
    assert set(learner.types) == {torch.bfloat16}
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    assert set(works(Recipe(batch_size=4)).types) == {torch.float32}


def test_the_fast_path_is_left_also_when_the_training_fails() -> None:
    class Failing(Pixels):
        def loss(self, batch: Data) -> Tensor:
            raise RuntimeError("stop")

    learner = Failing(Recipe(channels_last="on"))
    with pytest.raises(RuntimeError, match="stop"):
        learner.learn(Experience(0, images()))
    assert not is_channels_last(learner.net[0].weight)


class Compiled:
    """Stands for what torch makes of a module: does the same, and counts."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.calls = module, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.module._call_impl(*args)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """What was compiled; no compiler is needed."""
    made: list[Compiled] = []

    def compile_(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        module._compiled_call_impl = Compiled(module)
        made.append(module._compiled_call_impl)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return made


def test_compiled_code_runs_every_step_that_is_not_measured_and_is_gone_after(compilations: list[Compiled]) -> None:
    learner = Pixels(Recipe(epochs=4, batch_size=4, compile="on"))
    learner.learn(Experience(0, images()))
    assert [made.calls for made in compilations] == [12]
    assert learner.net._compiled_call_impl is None

    with metered() as meter:
        learner.learn(Experience(1, images()))
    assert compilations[1].calls == 12 - 2  # the first and the second step are counted on the plain path
    plain = Pixels(Recipe(epochs=4, batch_size=4))
    with metered() as other:
        plain.learn(Experience(1, images()))
    assert meter.flops == other.flops > 0


def test_code_that_the_user_compiled_before_is_there_after(compilations: list[Compiled]) -> None:
    for switch in ("on", "off"):
        learner = Pixels(Recipe(batch_size=4, compile=switch))
        learner.net.compile()
        own = learner.net._compiled_call_impl
        learner.learn(Experience(0, images()))
        assert learner.net._compiled_call_impl is own, switch


def test_a_step_on_the_plain_path_sees_no_compiled_code(compilations: list[Compiled]) -> None:
    learner = Pixels(Recipe(compile="on"))
    with accelerated(learner, learner.recipe) as plain:
        now = [learner.net._compiled_call_impl]
        for measured in (True, False):
            with plain(measured):
                now.append(learner.net._compiled_call_impl)
    assert now == [compilations[0], None, compilations[0]]
    assert learner.net._compiled_call_impl is None


def test_real_compilation_gives_the_same_learning_up_to_rounding() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("compiling needs a C++ compiler")
    data, weights = line(16), []
    for switch in ("off", "on"):
        learner = Line(Recipe(epochs=3, batch_size=8, lr=0.001, compile=switch))
        learner.learn(Experience(0, data))
        assert learner.net._compiled_call_impl is None
        weights.append(learner.weight)
    assert weights[1] == pytest.approx(weights[0], rel=1e-5)
    assert weights[0] != 0


# Leaving it to measurement


AUTO = Recipe(batch_size=4, precision="auto", channels_last="auto", compile="auto")


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Seconds that are made up, bfloat16 being the only switch that helps; returns what was measured."""
    measured: list[Recipe] = []

    def seconds(learner: GradientLearner, batch: Data, recipe: Recipe) -> float:
        measured.append(recipe)
        return (0.5 if recipe.precision == "bfloat16" else 1.0) * (0.97 if recipe.compile == "on" else 1.0)

    monkeypatch.setattr(speed, "seconds_per_step", seconds)
    return measured


def test_auto_takes_what_is_measurably_faster_and_nothing_else(stopwatch: list[Recipe]) -> None:
    decided = speed.decide(Pixels(AUTO), images(4), AUTO)
    assert (decided.precision, decided.channels_last, decided.compile) == ("bfloat16", "off", "off")
    assert not decided.undecided
    assert len(stopwatch) == 4


def test_auto_decides_only_what_is_left_to_it(stopwatch: list[Recipe]) -> None:
    recipe = Recipe(precision="float32", channels_last="on", compile="auto")
    decided = speed.decide(Pixels(recipe), images(4), recipe)
    assert (decided.precision, decided.channels_last, decided.compile) == ("float32", "on", "off")
    assert all(r.channels_last == "on" and r.precision == "float32" for r in stopwatch)


def test_auto_remembers_and_measures_once(stopwatch: list[Recipe]) -> None:
    first = speed.decide(Pixels(AUTO), images(4), AUTO)
    count = len(stopwatch)
    assert speed.decide(Pixels(AUTO), images(4), AUTO) == first
    assert len(stopwatch) == count
    speed.decide(Pixels(AUTO), images(6), AUTO)  # another shape is another question
    assert len(stopwatch) == 2 * count


def test_auto_without_a_cache_measures_again(stopwatch: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    for _ in range(2):
        speed.decide(Pixels(AUTO), images(4), AUTO)
    assert len(stopwatch) == 8


@pytest.mark.parametrize("content", ["", "{", "[]", '{"optimizer": 3}', '{"precision": "fp8"}'])
def test_a_damaged_decision_is_made_again(stopwatch: list[Recipe], tmp_path: Path, content: str) -> None:
    first = speed.decide(Pixels(AUTO), images(4), AUTO)
    (remembered,) = (tmp_path / "cache" / "speed").iterdir()
    remembered.write_text(content)
    assert speed.decide(Pixels(AUTO), images(4), AUTO) == first
    assert speed.decide(Pixels(AUTO), images(4), AUTO) == first
    assert len(stopwatch) == 8


def test_a_measurement_is_a_time_and_changes_nothing_of_the_learner() -> None:
    recipe = Recipe(batch_size=4, channels_last="on", precision="bfloat16", momentum=0.9)
    learner = Pixels(recipe).eval()
    before, position = state_of(learner), learner.generator.get_state()
    seconds = speed.seconds_per_step(learner, images(4), recipe)
    assert 0 < seconds < 5
    assert same(before, state_of(learner))
    assert torch.equal(learner.generator.get_state(), position)
    assert not learner.training
    assert learner.types == []
    assert all(p.grad is None for p in learner.parameters())


def test_a_run_that_measured_and_one_that_remembered_learn_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws from the global generator, and so do the measured steps."""
    recipe, weights = Recipe(epochs=2, batch_size=4, channels_last="auto"), []
    monkeypatch.setattr(speed, "_WORTHWHILE", 1.0)  # so that the decision is the same: off
    for chosen in (recipe, recipe, Recipe(epochs=2, batch_size=4)):
        learner = Pixels(chosen)
        learner.learn(Experience(0, images()))
        weights.append(torch.cat([p.detach().flatten() for p in learner.parameters()]))
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[0], weights[1])


def test_measuring_costs_the_run_no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_WORTHWHILE", 1.0)
    counted = []
    for recipe in (Recipe(batch_size=4, channels_last="auto"), Recipe(batch_size=4)):
        with metered() as meter:
            Pixels(recipe).learn(Experience(0, images()))
        counted.append(meter.flops)
    assert counted[0] == counted[1] > 0


# Devices


def test_a_device_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigurationError, match=f"Device '{name}' was asked for, but torch finds none on this machine"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["tpu", "", "gpu", "cpu:one", "Cuda"])
def test_a_device_that_does_not_exist_is_told_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"There is no device '{name}'; choose auto, cpu, cuda or mps"):
        resolve_device(name)


def test_a_graphics_card_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match="Device 'cuda:7'"):
        resolve_device("cuda:7")


def test_the_loop_counts_steps_through_the_step_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[object] = []
    step = StepCounter.step

    def noted(self: StepCounter, shape: object) -> Any:
        shapes.append(shape)
        return step(self, shape)

    monkeypatch.setattr(StepCounter, "step", noted)
    fit(Line(Recipe(batch_size=4, lr=0.001)), line(10))
    assert shapes == [((4, 1), (4, 1)), ((4, 1), (4, 1)), ((2, 1), (2, 1))]
