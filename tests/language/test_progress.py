"""What a person sees while a language model trains: the loss of each domain, and how fast it goes."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.progress import Progress, showing
from latewood.language.learners.replay import Replay
from latewood.language.nets import causal
from latewood.language.recipe import TextRecipe


class Listening(Progress):
    """Asks after every step."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def step(self, loss: Tensor | None = None) -> None:
        assert self.aside is not None
        self.heard.append(self.aside())


def test_the_loss_of_each_domain_and_of_replayed_rows_is_told_with_the_tokens_in_a_second() -> None:
    torch.manual_seed(0)
    tokens = torch.cat([torch.full((30, 8), 65), torch.randint(256, (10, 8))]).int()
    data = Data(tokens=tokens, source=["plain"] * 30 + ["noise"] * 10)
    net = causal(data[:1], layers=1, width=16, heads=2)
    learner = Replay(net, share=0.5, recipe=TextRecipe(steps=30, batch_size=8, lr=0.02))
    with showing(Listening()) as progress:
        learner.learn(Experience(0, data))
    assert isinstance(progress, Listening)
    told = [
        re.fullmatch(r"([\d,]+) tokens/s  loss plain ([\d.]+)  noise ([\d.]+)  replayed ([\d.]+)", t) for t in progress.heard
    ]
    assert all(told)
    plain, noise, replayed = (float(told[-1][i]) for i in (2, 3, 4))  # type: ignore[index]
    assert plain < 1 < noise and plain < replayed < noise


def test_what_is_told_is_the_mean_over_all_steps_since_it_was_told_last() -> None:
    from latewood.language.loop import _Told

    told = _Told(("a", "b"), torch.device("cpu"), every=1, offset=0)
    new = Data(tokens=torch.zeros(2, 4, dtype=torch.int32), domain=torch.tensor([0, 1]))
    for losses in ([1.0, 5.0, 9.0], [2.0, 6.0, 9.0]):
        told.add(new, Data(tokens=torch.zeros(3, 4, dtype=torch.int32)), torch.tensor(losses))
    assert told().endswith("loss a 1.500  b 5.500  replayed 9.000")
    told.add(new, new, torch.tensor([4.0, 4.0]))
    assert told().endswith("loss a 4.000  b 4.000")
