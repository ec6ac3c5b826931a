"""The pull towards the anchor: what it leaves alone, what it optimises, and that an interruption does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.checkpoint import tensors_of
from latewood.core.errors import ConfigurationError
from latewood.parts.growing import Growing
from latewood.parts.reptile import Anchor

Step = Callable[[int], None]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(number: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(number)
    return torch.randn(6, 4, generator=chance), torch.randint(3, (6,), generator=chance)


def stepping(net: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(number: int) -> None:
        inputs, labels = batch(number)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("every", [1, 3, 5])
def test_keeping_the_whole_way_is_training_without_an_anchor_bit_by_bit(every: int) -> None:
    plain, pulled = network(), network()
    plain_step, pulled_step, anchor = stepping(plain, adam(plain)), stepping(pulled, adam(pulled)), Anchor(pulled)
    for number in range(12):
        plain_step(number)
        pulled_step(number)
        anchor.step(every, eps=1.0)
        assert same(weights(plain), weights(pulled))


def test_keeping_none_of_the_way_leaves_the_weights_at_the_anchor_after_every_kth_step() -> None:
    net = network()
    step, anchor, start = stepping(net, adam(net)), Anchor(net), weights(net)
    for number in range(1, 13):
        step(number)
        assert anchor.step(4, eps=0.0) is (number % 4 == 0)
        assert same(weights(net), start) is (number % 4 == 0)


@pytest.mark.parametrize("eps", [0.1, 0.5, 0.8])
def test_with_sgd_and_a_pull_after_every_step_it_is_sgd_with_the_rate_times_eps(eps: float) -> None:
    plain, pulled = network(), network()
    plain_step = stepping(plain, torch.optim.SGD(plain.parameters(), lr=0.1 * eps))
    pulled_step = stepping(pulled, torch.optim.SGD(pulled.parameters(), lr=0.1))
    anchor = Anchor(pulled)
    for number in range(30):
        plain_step(number)
        pulled_step(number)
        anchor.step(1, eps)
    for expected, found in zip(weights(plain), weights(pulled), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", [1.0, 0.3])
def test_over_both_orders_of_two_batches_it_goes_down_the_losses_less_the_product_of_their_gradients(eps: float) -> None:
    """On quadratic losses the terms of higher order in beta vanish, so this holds exactly."""
    beta, size = 0.05, 5
    chance = torch.Generator().manual_seed(0)
    roots = torch.randn(2, size, size, generator=chance, dtype=torch.float64)
    hessians, centres = roots @ roots.mT, torch.randn(2, size, generator=chance, dtype=torch.float64)
    start = torch.randn(size, generator=chance, dtype=torch.float64)

    def loss(weight: Tensor, number: int) -> Tensor:
        return 0.5 * (weight - centres[number]) @ hessians[number] @ (weight - centres[number])

    moves = []
    for order in ((0, 1), (1, 0)):
        module = nn.ParameterList([nn.Parameter(start.clone())])
        optimizer, anchor = torch.optim.SGD(module.parameters(), lr=beta), Anchor(module)
        for number in order:
            optimizer.zero_grad()
            loss(module[0], number).backward()
            optimizer.step()
            anchor.step(2, eps)
        moves.append((start - module[0].detach()) / (beta * eps))
    weight = start.clone().requires_grad_()
    first, second = (torch.autograd.grad(loss(weight, number), weight, create_graph=True)[0] for number in (0, 1))
    objective = loss(weight, 0) + loss(weight, 1) - beta / 2 * (first @ second)
    (expected,) = torch.autograd.grad(objective, weight)
    torch.testing.assert_close((moves[0] + moves[1]) / 2, expected, rtol=1e-9, atol=1e-9)
    by_hand = first + second - beta / 2 * (hessians[1] @ first + hessians[0] @ second)
    torch.testing.assert_close(expected, by_hand.detach())
    without = torch.autograd.grad(loss(weight, 0) + loss(weight, 1), weight)[0]
    assert (expected - without).norm() > 0.05 * without.norm()  # the product of the gradients is what was looked at


def test_the_anchor_is_the_weights_after_a_pull_and_does_not_move_between_pulls() -> None:
    net = network()
    step, anchor = stepping(net, adam(net)), Anchor(net)
    held = weights(net)
    for number in range(1, 11):
        step(number)
        pulled = anchor.step(5, eps=0.3)
        held = weights(net) if pulled else held
        assert same(list(anchor.buffers()), held)
        assert same(list(anchor.buffers()), weights(net)) is pulled


def test_a_pull_goes_exactly_eps_of_the_way_and_leaves_the_optimizer_and_gradients_alone() -> None:
    net = network()
    optimizer = adam(net)
    step, anchor, start = stepping(net, optimizer), Anchor(net), weights(net)
    for number in range(3):
        step(number)
    live, gradients = weights(net), [p.grad.clone() for p in net.parameters() if p.grad is not None]
    moments = {i: {k: v.clone() for k, v in held.items()} for i, held in enumerate(optimizer.state.values())}
    anchor.pull(0.25)
    for a, b, now in zip(start, live, weights(net), strict=True):
        torch.testing.assert_close(now, a + 0.25 * (b - a), rtol=0, atol=1e-7)
    for i, held in enumerate(optimizer.state.values()):
        assert same(list(held.values()), list(moments[i].values()))
    assert same([p.grad for p in net.parameters() if p.grad is not None], gradients)


def mastered(eps: float | None) -> tuple[nn.Module, list[Tensor], Callable[[int], None], Anchor]:
    """A network in bfloat16, trained through float32 masters."""
    net = network().bfloat16()
    masters = [p.detach().float().requires_grad_() for p in net.parameters()]
    optimizer, anchor = torch.optim.AdamW(masters, lr=1e-3), Anchor(net, masters)

    def step(number: int) -> None:
        inputs, labels = batch(number)
        net.zero_grad()
        F.cross_entropy(net(inputs.bfloat16()).float(), labels).backward()
        for master, parameter in zip(masters, net.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, net.parameters(), strict=True):
                parameter.copy_(master)
        if eps is not None:
            anchor.step(2, eps)

    return net, masters, step, anchor


def test_with_masters_the_pull_acts_on_them_and_the_next_step_starts_from_there() -> None:
    net, masters, step, anchor = mastered(eps=0.5)
    start = [m.detach().clone() for m in masters]
    step(0)
    step(1)
    pulled = [m.detach().clone() for m in masters]
    assert same(list(anchor.buffers()), pulled)
    assert all(a.dtype == torch.float32 for a in anchor.buffers())
    assert same(weights(net), [m.bfloat16() for m in pulled])
    _, free_masters, free_step, _ = mastered(eps=None)
    free_step(0)
    free_step(1)
    for a, b, now in zip(start, free_masters, pulled, strict=True):
        torch.testing.assert_close(now, a + 0.5 * (b.detach() - a), rtol=0, atol=1e-7)
    step(2)
    for before, after in zip(pulled, masters, strict=True):
        # A step of Adam moves at most about lr: it did not start from where the pull came from.
        assert (after.detach() - before).abs().max() < 1.7e-3
    assert not same(pulled, [m.detach() for m in free_masters])


def test_half_precision_without_masters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="bfloat16, in which the pull would be rounded away"):
        Anchor(network().bfloat16())
    with pytest.raises(ConfigurationError, match="one master for each trainable parameter"):
        Anchor(network().bfloat16(), [torch.zeros(3)])


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 7, 11])
def test_an_interruption_within_a_window_does_not_show(stop: int) -> None:
    def whole() -> tuple[nn.Module, torch.optim.Optimizer, Anchor]:
        net = network()
        return net, adam(net), Anchor(net)

    net, optimizer, anchor = whole()
    for number in range(12):
        stepping(net, optimizer)(number)
        anchor.step(5, eps=0.4)
    first_net, first_optimizer, first_anchor = whole()
    for number in range(stop):
        stepping(first_net, first_optimizer)(number)
        first_anchor.step(5, eps=0.4)
    saved: tuple[Any, ...] = (
        {k: v.clone() for k, v in tensors_of(first_net).items()},
        first_optimizer.state_dict(),
        {k: v.clone() for k, v in tensors_of(first_anchor).items()},
    )
    resumed, resumed_optimizer, resumed_anchor = whole()
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    resumed_anchor.load_state_dict(saved[2])
    assert resumed_anchor.steps == stop % 5
    for number in range(stop, 12):
        stepping(resumed, resumed_optimizer)(number)
        resumed_anchor.step(5, eps=0.4)
    assert same(weights(resumed), weights(net))
    assert same(list(resumed_anchor.buffers()), list(anchor.buffers()))


def test_only_trainable_weights_are_anchored_and_frozen_ones_never_move() -> None:
    net = network()
    for parameter in list(net.parameters())[:2]:
        parameter.requires_grad_(False)
    anchor = Anchor(net)
    assert [b.shape for b in anchor.buffers()] == [p.shape for p in list(net.parameters())[2:]]
    assert not list(anchor.parameters())


class Head(Growing):
    """A head that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))


def test_weights_that_have_grown_are_told_until_the_anchor_is_reset_and_its_state_loads_into_a_smaller_one() -> None:
    head = Head()
    anchor = Anchor(head)
    head.resize_parameter("weight", torch.ones(5, 3))
    with pytest.raises(ConfigurationError, match="reset the anchor"):
        anchor.pull(0.5)
    assert torch.equal(head.weight, torch.ones(5, 3))
    anchor.reset()
    with torch.no_grad():
        head.weight += 2
    anchor.pull(0.5)
    assert torch.equal(head.weight, torch.full((5, 3), 2.0))
    smaller = Anchor(Head())
    smaller.load_state_dict(anchor.state_dict())
    assert torch.equal(smaller.get_buffer("anchor_0"), head.weight)


@pytest.mark.parametrize(("every", "eps"), [(0, 0.5), (1, -0.1), (1, 1.1)])
def test_numbers_that_make_no_sense_are_refused_before_anything_moves(every: int, eps: float) -> None:
    net = network()
    anchor, start = Anchor(net), weights(net)
    stepping(net, adam(net))(0)
    moved = weights(net)
    with pytest.raises(ConfigurationError, match=r"from 0 to 1|at least 1"):
        anchor.step(every, eps)
    assert same(weights(net), moved)
    assert same(list(anchor.buffers()), start)
