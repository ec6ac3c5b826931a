"""The invariants of LingoCL (paper 18): any host keeps all that it is but its head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import derive_seed, seeded
from latewood.images.learners.finetune import Finetune
from latewood.images.learners.icarl import ICaRL
from latewood.images.learners.lingocl import LingoCL
from latewood.images.nets import mlp
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.heads import ClassifierLearner
from latewood.studies.assemble import make_learner

STREAM = split("digits", steps=5)
ARRIVALS = [Experience(e.index, e.train[:60], e.classes) for e in STREAM]
TEST = STREAM.probes[0].data
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RECIPE = Recipe(epochs=2, lr=0.05, weight_decay=1e-3)
HOSTS: list[dict[str, Any]] = [
    {"name": "finetune"},
    {"name": "replay", "memory": 40},
    {"name": "replay", "memory": 40, "policy": "herding"},
    {"name": "icarl", "memory": 40},
    {"name": "lwf"},
    {"name": "der++", "memory": 40},
    {"name": "ewc"},
    {"name": "joint"},
    {"name": "rehearsal-free", "l2": 0.1},
]
each_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: "-".join(map(str, host.values())))


class Spelled:
    """A vector for each text that depends on it alone."""

    def __init__(self, width: int = 12) -> None:
        self.width, self.asked = width, list[str]()

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        draws = (torch.Generator().manual_seed(derive_seed(text)) for text in texts)
        return torch.stack([torch.randn(self.width, generator=drawn) for drawn in draws])


def made(host: Any = "replay", **settings: Any) -> LingoCL:
    with seeded(0):
        settings = {"targets": Spelled(), "class_names": NAMES, "recipe": RECIPE, **settings}
        return LingoCL(mlp(STREAM.example, width=24), host, **settings)


def learned(*arrivals: int, **settings: Any) -> LingoCL:
    learner = made(**settings)
    for index in arrivals:
        learner.generator.manual_seed(index)
        learner.learn(ARRIVALS[index])
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The head of any host


@each_host
def test_any_host_learns_towards_fixed_rows(host: dict[str, Any]) -> None:
    learner = learned(0, host=host)
    first, encoder = learner.semantic.weight.clone(), state(learner.backbone)
    learner.learn(ARRIVALS[1])
    called = [NAMES[label] for label in learner.classes.labels.tolist()]
    assert torch.equal(learner.semantic.weight, F.normalize(Spelled().encode(called)))
    assert torch.equal(learner.semantic.weight[:2], first)
    assert not equal(encoder, state(learner.backbone))
    held = {id(p) for group in learner.parameter_groups() for p in group["params"]}
    assert id(learner.semantic.weight) not in held and id(learner.semantic.projection) in held
    assert set(learner.predict(TEST).tolist()) <= {*ARRIVALS[0].classes, *ARRIVALS[1].classes}
    assert isinstance(learner, ClassifierLearner) and type(learner).__name__ == "LingoCL"


@each_host
def test_a_saved_learner_goes_on_where_it_was(host: dict[str, Any]) -> None:
    first, second = learned(0, 1, host=host), made(host)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(TEST), second.predict(TEST))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(ARRIVALS[2])
    assert equal(state(first), state(second))


def test_the_host_keeps_its_settings_its_prediction_and_its_kind() -> None:
    learner = learned(0, 1, host={"name": "icarl", "memory": "40", "temperature": 3})
    assert isinstance(learner, ICaRL) and (learner.memory, learner.temperature) == (40, 3.0)
    assert learner.recipe == RECIPE and len(learner.kept) == 40
    nearest = learner.scores(TEST)
    learner.rule = "head"
    assert not torch.allclose(nearest, learner.scores(TEST))
    config = learner.config()
    assert config["host"] == {"name": "icarl", "memory": "40", "temperature": 3} and config["recipe"]["epochs"] == 2


def test_with_rows_that_train_its_loss_is_that_of_the_host() -> None:
    with seeded(0):
        host = Finetune(mlp(STREAM.example, width=24), recipe=RECIPE)
    learner = made("finetune", targets=Spelled(24), head="learned", cosine=False)
    losses = []
    for each in (host, learner):
        each.prepare(ARRIVALS[0])
        each.net.head.weight.data = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
        loss = each.loss(ARRIVALS[0].train)
        losses.append((loss, *torch.autograd.grad(loss, [*each.backbone.parameters(), each.net.head.weight])))
    assert equal(state(host.backbone), state(learner.backbone))
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


def test_teacher_and_student_share_their_rows() -> None:
    learner = learned(0, 1, host="lwf")
    teacher = learner.get_submodule("teacher.snapshot.head")
    assert torch.equal(teacher.get_buffer("weight"), learner.semantic.weight)


def test_without_projection_there_is_less_to_train_than_in_the_host() -> None:
    learner, host = learned(0, host="finetune", targets=Spelled(24)), Finetune(mlp(STREAM.example, width=24), recipe=RECIPE)
    host.learn(ARRIVALS[0])

    def count(of: nn.Module) -> int:
        return sum(p.numel() for p in of.parameters() if p.requires_grad)

    assert count(learner) < count(host)
    assert count(learned(0, host="finetune")) == count(learner) + 12 * 24


# Names


def test_a_row_depends_on_its_name_whatever_arrives_before_it() -> None:
    one, other = learned(0, 1, 2), learned(2, 0, 1)
    for label in one.classes.labels.tolist():
        rows = [of.semantic.weight[of.classes.columns(torch.tensor([label]))] for of in (one, other)]
        assert torch.equal(*rows)


def test_each_class_is_asked_for_once_when_it_arrives() -> None:
    learner = made()
    targets = learner.targets
    assert isinstance(targets, Spelled)
    learner.learn(ARRIVALS[0])
    assert sorted(targets.asked) == sorted(NAMES[label] for label in ARRIVALS[0].classes)
    learner.learn(Experience(1, ARRIVALS[0].train, ARRIVALS[0].classes))
    assert len(targets.asked) == 2


def test_the_language_model_is_not_needed_to_predict() -> None:
    learner = learned(0, 1)
    before = learner.scores(TEST)
    learner.targets = "./nowhere"
    assert torch.equal(learner.scores(TEST), before)
    with pytest.raises(ConfigurationError, match=r"There is no folder '\./nowhere'"):
        learner.learn(ARRIVALS[2])


def test_names_go_into_the_prompt_without_wordnet_numbers_and_underscores() -> None:
    names = {0: "polar_bear (n02134084)", 1: "crane"}
    learner = made(class_names=names, prompt="a photo of a {}.")
    learner.directions([0, 1])
    assert isinstance(learner.targets, Spelled)
    assert learner.targets.asked == ["a photo of a polar bear.", "a photo of a crane."]


def test_two_classes_of_one_name_share_their_target_and_a_warning_says_so() -> None:
    label, other = ARRIVALS[1].classes[0], ARRIVALS[0].classes[0]
    names = {**dict(enumerate(NAMES)), label: NAMES[other]}
    learner = learned(0, class_names=names)
    with pytest.warns(UserWarning, match=f"Two classes are called '{NAMES[other]}'"):
        learner.learn(ARRIVALS[1])
    rows = learner.semantic.weight[learner.classes.columns(torch.tensor([label, other]))]
    assert torch.equal(rows[0], rows[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.learn(ARRIVALS[2])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"class_names": None}, "nobody says how class . is called"),
        ({"class_names": ["n01440764"] * 10}, "is called 'n01440764', which says nothing to a language model"),
        ({"class_names": {0: "zero"}}, "nobody says how class . is called"),
    ],
)
def test_classes_without_a_name_stop_an_arrival_before_anything_changes(settings: dict[str, Any], sentence: str) -> None:
    learner = made(**settings)
    before = state(learner)
    with pytest.raises(ConfigurationError, match=sentence):
        learner.learn(ARRIVALS[1])
    assert equal(before, state(learner))


# Controls


def test_random_rows_are_at_right_angles_and_fixed() -> None:
    learner = learned(0, head="random")
    first = learner.semantic.weight.clone()
    learner.learn(ARRIVALS[1])
    rows = learner.semantic.weight
    assert torch.equal(rows[:2], first) and not rows.requires_grad
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-6, rtol=0)


def test_learned_rows_have_the_same_width_and_train() -> None:
    learner = learned(0, head="learned")
    first = learner.semantic.weight.detach().clone()
    learner.learn(ARRIVALS[1])
    assert learner.semantic.weight.requires_grad and learner.semantic.weight.shape == (4, 12)
    assert not torch.equal(learner.semantic.weight[:2], first)


# As a learner


def test_images_can_be_compared_with_classes_that_have_not_arrived() -> None:
    learner = learned(0)
    found = learner.similarity(TEST, learner.directions([5, 6, 7]))
    assert found.shape == (len(TEST), 3) and bool((found.abs() <= 1 + 1e-6).all())
    known = learner.similarity(TEST, learner.semantic.weight)
    torch.testing.assert_close(learner.scores(TEST), known * learner.semantic.log_scale.exp().detach())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    states = []
    for seed in (0, 0, 1):
        learner = made()
        run(learner, STREAM, seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_a_copy_learns_alone() -> None:
    learner = learned(0)
    before, twin = state(learner), copy.deepcopy(learner)
    twin.learn(ARRIVALS[1])
    assert equal(before, state(learner)) and len(twin.classes) == 4 and type(twin) is type(learner)


def test_a_revealed_task_is_respected() -> None:
    stream, learner = tasks("digits", steps=5), made()
    for index in range(2):
        learner.learn(stream[index])
        assert set(learner.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)


def test_it_is_made_by_its_name_with_the_names_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STREAM, "names", dict(enumerate(NAMES)), raising=False)
    learner = make_learner("lingocl", STREAM, {"host": {"name": "icarl", "memory": "30"}, "lr": "0.5", "logit_scale": "8"})
    assert isinstance(learner, LingoCL) and isinstance(learner, ICaRL)
    assert (learner.memory, learner.recipe.lr, learner.logit_scale) == (30, 0.5, 8.0)
    learner.targets = Spelled()
    learner.learn(STREAM[0])
    assert learner.targets.asked == [NAMES[label] for label in STREAM[0].classes]


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("slca", "SLCA keeps heads of its own"),
        ("nmc", "'nmc' has no head that could be replaced"),
        ("lingocl", "'lingocl' has no head that could be replaced"),
        ("replya", "There is no learner 'replya' for images .did you mean 'replay'"),
        ({"name": "replay", "memroy": 3}, "lingocl.host has no parameter 'memroy' .did you mean 'memory'"),
        ({"name": "replay", "memory": "much"}, "lingocl.host.memory can't be 'much'"),
    ],
)
def test_a_host_that_does_not_fit_gets_a_sentence(host: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        made(host)
    with pytest.raises(ConfigurationError, match=r"prompt must have \{\}"):
        made(prompt="a photo")


def test_rows_without_labels_of_the_stream_are_predicted_as_no_label_before_anything_arrived() -> None:
    assert made().predict(Data(image=TEST["image"][:3])).tolist() == [-1, -1, -1]
