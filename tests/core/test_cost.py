"""Costs: FLOPs that are exact, memory that is seen, bytes that are counted."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, GradientLearner, Learner, Probe, Recipe, Stream, run
from latewood.core.cost import Cost, Meter, PeakMemory, StepCounter, current_meter, metered, state_bytes
from latewood.core.loop import fit


def product(m: int, k: int, n: int) -> int:
    """Multiply matrices of these sizes; returns the FLOPs that this takes."""
    torch.ones(m, k) @ torch.ones(k, n)
    return 2 * m * k * n


# The meter


def test_a_matrix_product_counts_two_for_each_multiply_add() -> None:
    meter = Meter()
    with meter.counting():
        expected = product(3, 5, 7)
    assert meter.flops == expected == 210


def test_only_what_is_inside_counts_and_blocks_add_up() -> None:
    meter = Meter()
    product(9, 9, 9)
    with meter.counting():
        expected = product(2, 3, 4)
    product(9, 9, 9)
    with meter.counting():
        expected += product(4, 3, 2)
    assert meter.flops == expected


def test_a_block_within_a_block_counts_once() -> None:
    """A learner that counts everything may call a part that counts itself."""
    meter = Meter()
    with meter.counting():
        expected = product(2, 3, 4)
        with meter.counting():
            expected += product(5, 6, 7)
        expected += product(1, 2, 3)
    assert meter.flops == expected


def test_uncounted_takes_a_block_off_and_charge_adds() -> None:
    meter = Meter()
    with meter.counting():
        expected = product(2, 3, 4)
        with meter.uncounted():
            product(50, 60, 70)
        expected += product(3, 3, 3)
        meter.charge(1000)
    with meter.uncounted():
        product(8, 8, 8)
    meter.charge(10)
    assert meter.flops == expected + 1010


def test_uncounted_within_nested_blocks_takes_off_once() -> None:
    meter = Meter()
    with meter.counting(), meter.counting():
        with meter.uncounted():
            product(50, 60, 70)
        expected = product(2, 2, 2)
    assert meter.flops == expected


def test_uncounted_within_uncounted_takes_off_once() -> None:
    meter = Meter()
    with meter.counting():
        with meter.uncounted():
            product(5, 5, 5)
            with meter.uncounted():
                product(6, 6, 6)
        expected = product(2, 2, 2)
    assert meter.flops == expected


def test_an_error_inside_leaves_the_meter_usable() -> None:
    meter = Meter()
    for block in (meter.counting, meter.uncounted, meter.timing):
        with pytest.raises(RuntimeError, match="stop"), block():
            raise RuntimeError("stop")
    before = meter.flops
    with meter.counting():
        expected = product(2, 3, 4)
    assert meter.flops - before == expected


class Clock:
    """A clock that stands still unless someone moves it, so that no other work on the machine matters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def test_timing_adds_the_seconds_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, meter = Clock(monkeypatch), Meter()
    for seconds in (2.0, 3.0):
        with meter.timing():
            clock.now += seconds
        clock.now += 100
    assert meter.seconds == 5


def test_the_meter_of_the_run_around_is_found_and_gone_after_it() -> None:
    with metered() as outer:
        assert current_meter() is outer
        with metered() as inner:
            assert current_meter() is inner
        assert current_meter() is outer
    assert current_meter() is not outer


def test_outside_of_a_run_nothing_is_measured() -> None:
    meter = current_meter()
    with meter.counting(), meter.uncounted(), meter.timing():
        product(2, 3, 4)
    assert meter.flops == 0
    with StepCounter(meter).step("shape") as measured:
        assert not measured


# Steps


def test_steps_are_measured_at_powers_of_sixty_four_and_the_second_and_charged_between() -> None:
    meter = Meter()
    counter, measured, expected, last = StepCounter(meter), [], 0, 0
    for number in range(1, 4200):
        with counter.step("shape") as now:
            size = number if now else 3  # what the others cost is not looked at
            cost = product(size, 2, 2)
        last = cost if now else last
        expected += last
        if now:
            measured.append(number)
    assert measured == [1, 2, 64, 4096]
    assert meter.flops == expected


def test_each_shape_is_measured_for_itself() -> None:
    meter = Meter()
    counter, measured = StepCounter(meter), []
    for number, shape in enumerate([4, 4, 4, 2, 4, 2, 2]):
        with counter.step(shape) as now:
            product(shape, 3, 5)
        if now:
            measured.append(number)
    assert measured == [0, 1, 3, 5]
    assert meter.flops == 30 * (4 * 4 + 3 * 2)


# Learning


class Net(GradientLearner):
    """Two linear layers."""

    def __init__(self, recipe: Recipe, sizes: tuple[int, int, int] = (6, 5, 3)) -> None:
        super().__init__(recipe)
        self.sizes = sizes
        self.net = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))

    def loss(self, batch: Data) -> Tensor:
        return F.cross_entropy(self.net(batch.tensor("x")), batch.tensor("label"))

    def predict(self, data: Data) -> Tensor:
        logits: Tensor = self.net(data.tensor("x"))
        return logits.argmax(1)

    def flops_of_a_row(self) -> int:
        """Forward; backward by the weights; backward by the hidden layer, which the first layer does not need."""
        a, b, c = self.sizes
        return 2 * (a * b + b * c) * 2 + 2 * b * c


def arrival(rows: int, width: int = 6) -> Experience:
    return Experience(0, Data(x=torch.randn(rows, width), label=torch.arange(rows) % 3))


class Accuracy(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

    def score(self, learner: Learner) -> dict[str, float]:
        learner.predict(self.data)
        return {"accuracy": 0.0}


def cost_of(learner: Learner, rows: int, **more: Any) -> Cost:
    experience = arrival(rows, **more)
    stream = Stream("one", 1, lambda i: experience, [Accuracy("p", experience.train, 0)])
    return run(learner, stream, device="cpu").cost


@pytest.mark.parametrize("rows", [8, 32, 37, 300])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_flops_of_training_a_linear_network_are_exact(rows: int, epochs: int) -> None:
    """Forward and backward, each batch of each epoch with the partial ones; probing does not count."""
    learner = Net(Recipe(epochs=epochs, batch_size=8))
    assert cost_of(learner, rows).flops == learner.flops_of_a_row() * rows * epochs


def test_momentum_clipping_and_weight_decay_cost_no_matrix_product() -> None:
    learner = Net(Recipe(batch_size=8, momentum=0.9, weight_decay=0.1, clip=1.0, optimizer="adamw"))
    assert cost_of(learner, 40).flops == learner.flops_of_a_row() * 40


def test_what_prepare_training_data_and_conclude_do_counts_too() -> None:
    class Busy(Net):
        def prepare(self, experience: Experience) -> None:
            product(10, 10, 10)

        def training_data(self, experience: Experience) -> Data:
            product(20, 20, 20)
            return experience.train

        def conclude(self, experience: Experience) -> None:
            product(30, 30, 30)

    learner = Busy(Recipe(batch_size=8))
    assert cost_of(learner, 16).flops == learner.flops_of_a_row() * 16 + 2 * (10**3 + 20**3 + 30**3)


def test_training_once_more_in_conclude_counts_once() -> None:
    class Twice(Net):
        def conclude(self, experience: Experience) -> None:
            self.train()
            fit(self, experience.train)

    learner = Twice(Recipe(batch_size=8, epochs=2))
    assert cost_of(learner, 80).flops == 2 * learner.flops_of_a_row() * 80 * 2


class ClosedForm(Learner):
    """Least squares; nothing in it knows of counting."""

    gram: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("gram", torch.zeros(width, width))

    def learn(self, experience: Experience) -> None:
        x = experience.train.tensor("x")
        self.gram += x.T @ x

    def predict(self, data: Data) -> Tensor:
        return data.tensor("x") @ self.gram


def test_trained_are_the_parameters_that_the_optimiser_steps_and_none_in_a_closed_form() -> None:
    learner = Net(Recipe(batch_size=8))
    every = sum(p.numel() for p in learner.parameters())
    assert cost_of(learner, 16).trained == every
    bias = next(p for name, p in learner.named_parameters() if name.endswith("bias"))
    bias.requires_grad_(False)
    assert cost_of(learner, 16).trained == every - bias.numel()
    assert cost_of(ClosedForm(), 16).trained == 0


def test_everything_that_a_closed_form_learner_does_is_counted() -> None:
    assert cost_of(ClosedForm(), 50).flops == 2 * 6 * 50 * 6


def test_a_learner_that_counts_itself_is_not_counted_again() -> None:
    class Own(ClosedForm):
        counts_flops: ClassVar[bool] = True

        def learn(self, experience: Experience) -> None:
            super().learn(experience)
            current_meter().charge(7)

    assert cost_of(Own(), 50).flops == 7


def test_learning_by_hand_gives_the_same_learner_as_within_a_run() -> None:
    torch.manual_seed(0)
    first, second = Net(Recipe(batch_size=4)), Net(Recipe(batch_size=4))
    second.load_state_dict(first.state_dict())
    experience = arrival(20)
    first.learn(experience)
    with metered():
        second.learn(experience)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# Memory


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system can't reset the mark of a process"
)


@needs_proc
def test_an_allocation_of_200_megabytes_is_seen_after_it_is_gone() -> None:
    peak = PeakMemory(torch.device("cpu"))
    before = peak.read()
    block = torch.ones(200 * 2**20, dtype=torch.uint8)
    del block
    gc.collect()
    assert peak.read() - before >= 190 * 2**20


@needs_proc
def test_a_peak_from_before_is_forgotten_on_reset() -> None:
    peak = PeakMemory(torch.device("cpu"))
    block = torch.ones(200 * 2**20, dtype=torch.uint8)
    high = peak.read()
    del block
    gc.collect()
    peak.reset()
    assert peak.read() <= high - 150 * 2**20


@needs_proc
def test_the_peak_of_an_experience_is_in_its_cost() -> None:
    class Greedy(ClosedForm):
        def learn(self, experience: Experience) -> None:
            torch.ones(200 * 2**20, dtype=torch.uint8)

    plain = cost_of(ClosedForm(), 10).peak_memory
    assert cost_of(Greedy(), 10).peak_memory - plain >= 150 * 2**20


def test_without_proc_the_peak_is_that_since_the_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def refuse(self: Path, *args: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    peak = PeakMemory(torch.device("cpu"))
    assert peak.read() >= 2**20
    assert peak.read() % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss == 0


def test_state_is_counted_in_bytes_by_the_attribute_that_keeps_it() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
            self.register_buffer("memory", torch.zeros(5, 7, dtype=torch.uint8))
            self.register_buffer("scratch", torch.zeros(99), persistent=False)
            self.scale = nn.Parameter(torch.zeros((), dtype=torch.bfloat16))

        def get_extra_state(self) -> Tensor:
            return torch.zeros(4, dtype=torch.int64)

    assert state_bytes(Keeps()) == {"net": 4 * (6 + 2 + 2 + 2 + 2 + 2) + 8, "memory": 35, "scale": 2, "_extra_state": 32}
    assert state_bytes(nn.ReLU()) == {}


def test_what_is_kept_is_the_state_that_is_not_deployed() -> None:
    class Kept(Net):
        def __init__(self, recipe: Recipe) -> None:
            super().__init__(recipe)
            self.register_buffer("exemplars", torch.zeros(10, 6))
            self.old = nn.Linear(6, 5)

    cost = cost_of(Kept(Recipe()), 8)
    net, old = 4 * (6 * 5 + 5 + 5 * 3 + 3), 4 * (6 * 5 + 5)
    assert cost.state == {"net": net, "exemplars": 240, "old": old}
    assert cost.kept_bytes == 240 + old
    assert cost.parameters == (net + old) // 4


def test_seconds_of_learning_and_of_probing_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Slow(ClosedForm):
        def learn(self, experience: Experience) -> None:
            clock.now += 5

        def predict(self, data: Data) -> Tensor:
            clock.now += 7
            return super().predict(data)

    cost = cost_of(Slow(), 5)
    assert (cost.seconds, cost.probe_seconds) == (5, 7)
