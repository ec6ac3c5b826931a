"""The encoder: each sample is embedded once, with the same bits whoever asks, and never by another network's cache."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latewood.core.cost import metered
from latewood.core.data import Data
from latewood.core.errors import CheckpointError
from latewood.core.learner import GradientLearner
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.embedding import Encoder

MakeBackbone = Callable[..., Backbone]
ROWS = 600  # two full blocks and a part of one


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LATEWOOD_CACHE", str(folder))
    return folder


@pytest.fixture
def no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", "off")


def rows(count: int = ROWS, inputs: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))


def table(count: int = ROWS, inputs: int = 40, seed: int = 0) -> Data:
    return Data(x=rows(count, inputs, seed))


@pytest.fixture
def wide(linear: MakeBackbone) -> MakeBackbone:
    """Builds a backbone wide enough that the size of a batch decides the last bits of a product."""
    return lambda **settings: linear(**{"inputs": 40, "width": 30} | settings)


def counted(backbone: Backbone) -> list[int]:
    """A list that fills with the number of rows of each batch that the backbone sees."""
    seen: list[int] = []
    backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


# Once


def test_each_row_is_embedded_once_for_all_learners_orders_views_and_repetitions(wide: MakeBackbone) -> None:
    data, total = table(), 0
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    for _ in range(3):  # three learners, each with its own copy of one network
        backbone = wide()
        seen, encoder = counted(backbone), Encoder(backbone)
        for view in (data, data, data[order], data[200:300], data[[3, 3, 599]], table()[::2], data[order][:10][[1, 0]]):
            encoder(view)
        total += sum(seen)
    assert total == ROWS


def test_parts_of_a_table_are_embedded_when_they_are_first_asked_for(wide: MakeBackbone) -> None:
    backbone, data = wide(), table()
    seen, encoder = counted(backbone), Encoder(backbone)
    encoder(data[:10])
    assert sum(seen) < ROWS
    encoder(data[10:])
    assert sum(seen) == ROWS


def test_other_columns_do_not_matter(wide: MakeBackbone) -> None:
    first, second = wide(), wide()
    whole = Encoder(first)(Data(x=rows(), label=torch.zeros(ROWS)))
    seen = counted(second)
    assert torch.equal(Encoder(second)(Data(y=torch.ones(ROWS), x=rows())), whole)
    assert not seen


# The same bits


def test_a_row_has_the_same_bits_in_whatever_order_and_company_it_is_asked_for(wide: MakeBackbone, no_cache: None) -> None:
    data = table()
    whole = Encoder(wide())(data)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    questions: list[Tensor | slice | list[int]] = [
        order,
        order[:17],
        slice(599, 600),
        slice(250, 260),
        [7, 7, 300, 0],
    ]
    for question in questions:
        assert torch.equal(Encoder(wide())(data[question]), whole[question])
    single = torch.cat([Encoder(wide())(data[row : row + 1]) for row in (0, 255, 256, 599)])
    assert torch.equal(single, whole[[0, 255, 256, 599]])


def test_a_view_of_every_second_row_gets_those_rows_and_no_others(wide: MakeBackbone) -> None:
    data, encoder = table(), Encoder(wide())
    whole = encoder(data)
    assert torch.equal(encoder(data[1::2]), whole[1::2])
    assert torch.equal(encoder(data[599:0:-3]), whole[list(range(599, 0, -3))])


def test_the_features_are_the_backbones_as_float32(wide: MakeBackbone) -> None:
    backbone, data = wide(), table()
    features = Encoder(backbone)(data)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, backbone(data["x"]))
    assert Encoder(wide())(data[:0]).shape == (0, 30)


def test_what_comes_from_the_cache_has_the_bits_that_were_computed(wide: MakeBackbone, cache: Path) -> None:
    computed = Encoder(wide())(table())
    assert len(files(cache)) == 3
    assert torch.equal(Encoder(wide())(table()), computed)
    assert torch.equal(torch.cat([load_file(path)["features"] for path in files(cache)]), computed)


def test_without_a_cache_nothing_is_written_and_the_features_are_the_same(
    wide: MakeBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Encoder(wide())(table())
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    backbone = wide()
    seen, encoder = counted(backbone), Encoder(backbone)
    assert torch.equal(encoder(table()), computed)
    assert torch.equal(encoder(table()), computed)
    assert sum(seen) == ROWS  # it still remembers within the process
    assert not (tmp_path / "home").exists()


# Never another's


class Shifted(Backbone):
    """Subtracts a mean that follows from no setting and is part of no state, and may double."""

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__("x", None, {})
        self.width = 40
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        shifted: Tensor = inputs - self.get_buffer("mean")
        return shifted


class Doubled(Shifted):
    def forward(self, inputs: Tensor) -> Tensor:
        doubled: Tensor = 2 * super().forward(inputs)
        return doubled


def fresh_features(backbone: Backbone, data: Data, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as context:
        context.setenv("LATEWOOD_CACHE", "off")
        features: Tensor = Encoder(backbone)(data)
        return features


def test_other_weights_and_settings_never_hit(wide: MakeBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for backbone in (wide(), wide(seed=1), wide(scale=2.0), wide(width=31)):
        features = Encoder(backbone)(table())
        assert torch.equal(features, fresh_features(backbone, table(), monkeypatch))
        seen.append(features)
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[2], 2 * seen[0])


def test_other_contents_of_the_column_never_hit(wide: MakeBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = wide()
    encoder, original = Encoder(backbone), table()
    whole = encoder(original)
    one, integers = rows(), rows().round().to(torch.int8)
    one[300, 7] += 1
    for other in (
        Data(x=one),
        Data(x=rows()[:-1]),
        Data(x=rows().flip(0)),
        Data(x=integers),
        Data(x=integers.view(torch.uint8)),
    ):
        assert torch.equal(encoder(other), fresh_features(backbone, other, monkeypatch))
    assert torch.equal(encoder(original), whole)


@pytest.mark.parametrize("other", [Doubled(), Shifted(1.0)], ids=["another class", "another buffer outside the state"])
def test_another_network_with_the_same_settings_and_state_never_hits(other: Backbone) -> None:
    plain = Encoder(Shifted())(table())
    wanted = 2 * plain if isinstance(other, Doubled) else plain - 1
    assert torch.equal(Encoder(other)(table()), wanted)


def test_weights_that_are_loaded_after_the_first_embedding_never_hit(wide: MakeBackbone) -> None:
    backbone, data = wide(), table()
    encoder = Encoder(backbone)
    before, fingerprint = encoder(data), encoder.fingerprint
    backbone.load_state_dict(wide(seed=1).state_dict())
    after = encoder(data)
    assert not torch.equal(after, before)
    assert torch.equal(after, Encoder(wide(seed=1))(data))
    assert encoder.fingerprint != fingerprint


# Frozen


def test_the_backbone_is_frozen_in_evaluation_mode_and_keeps_every_bit(moody: MakeBackbone) -> None:
    backbone = moody().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    learner = nn.ModuleDict({"encoder": Encoder(backbone)})
    wanted = learner["encoder"](Data(x=table(60, 4)["x"][:50]))
    learner.train()
    assert not any(module.training for module in backbone.modules())
    found = learner["encoder"](table(60, 4))
    assert not found.requires_grad
    torch.testing.assert_close(found[:50], wanted)  # no dropout, no augmentation, no statistics of the batch
    assert not any(p.requires_grad for p in learner.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_features_carry_no_graph_even_of_rows_that_ask_for_a_gradient(linear: MakeBackbone) -> None:
    raw = rows(10, 4).requires_grad_()
    assert not Encoder(linear())(Data(x=raw)).requires_grad


def test_training_mode_that_is_forced_on_the_backbone_is_taken_back(moody: MakeBackbone) -> None:
    backbone = moody()
    encoder = Encoder(backbone)
    backbone.train()
    found = encoder(table(50, 4))
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, backbone(table(50, 4)["x"]))


class Probing(GradientLearner):
    """A linear layer on frozen features."""

    def __init__(self, backbone: Backbone, recipe: Recipe = Recipe()) -> None:
        super().__init__(recipe)
        self.encoder, self.layer = Encoder(backbone), nn.Linear(backbone.width, 1)

    def loss(self, batch: Data) -> Tensor:
        loss: Tensor = self.layer(self.encoder(batch)).square().mean()
        return loss

    def predict(self, data: Data) -> Tensor:
        predicted: Tensor = self.layer(self.encoder(data))
        return predicted


def test_the_weights_are_among_the_parameters_but_not_in_the_state_and_not_trained(wide: MakeBackbone) -> None:
    learner = Probing(wide())
    assert set(dict(learner.named_parameters())) == {"encoder.backbone.weight", "layer.weight", "layer.bias"}
    assert sum(p.numel() for p in learner.parameters()) == 40 * 30 + 31
    assert set(learner.state_dict()) == {"encoder._extra_state", "layer.weight", "layer.bias"}
    assert learner.state_dict()["encoder._extra_state"].numel() == 16
    (group,) = learner.parameter_groups()
    assert {p.shape for p in group["params"]} == {(1, 30), (1,)}
    assert any(module is learner.encoder.backbone for module in learner.modules())


def test_the_buffers_are_listed_too_each_once(moody: MakeBackbone) -> None:
    encoder = Encoder(moody())
    names = [name for name, _ in encoder.named_buffers()]
    assert sorted(names) == [f"backbone.layers.1.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")]


def test_a_state_of_the_same_backbone_loads_and_that_of_another_is_refused_with_a_sentence(wide: MakeBackbone) -> None:
    state = Probing(wide()).state_dict()
    same = Probing(wide())
    same.load_state_dict(state)
    assert torch.equal(same.layer.weight, state["layer.weight"])
    for other in (wide(seed=1), wide(scale=2.0)):
        learner = Probing(other)
        before = learner.layer.weight.clone()
        with pytest.raises(CheckpointError, match="saved with another frozen backbone; give the learner the same one again"):
            learner.load_state_dict(state)
        assert torch.equal(learner.layer.weight, before)


def test_moving_a_learner_moves_its_backbone(wide: MakeBackbone) -> None:
    learner = Probing(wide())
    learner.to("meta")
    assert learner.encoder.backbone.get_parameter("weight").device.type == "meta"
    assert learner.device.type == "meta"
    again = Probing(wide()).to("cpu")
    assert again.encoder(table()).device.type == "cpu"


# Damage and company


def damages(good: bytes) -> list[bytes]:
    """A file that was cut short, emptied, overwritten, or in which one bit of a feature turned."""
    flipped = bytearray(good)
    flipped[-3] ^= 64
    return [good[: len(good) // 2], good[:-1], b"", b"\0" * len(good), b"not a tensor", bytes(flipped)]


@pytest.mark.parametrize("kind", range(6), ids=["half", "short", "empty", "zeros", "text", "bit"])
def test_a_damaged_file_is_computed_again_and_repaired(wide: MakeBackbone, cache: Path, kind: int) -> None:
    wanted = Encoder(wide())(table())
    path = files(cache)[1]
    good = path.read_bytes()
    path.write_bytes(damages(good)[kind])
    backbone = wide()
    seen = counted(backbone)
    assert torch.equal(Encoder(backbone)(table()), wanted)
    assert seen == [256]
    encoder = Encoder(backbone)
    assert torch.equal(encoder(table()), wanted)
    assert seen == [256]  # and not a second time


def test_nothing_but_whole_blocks_is_left_in_the_cache(wide: MakeBackbone, cache: Path) -> None:
    Encoder(wide())(table())
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == files(cache)


def fill(backbone: Backbone, backwards: bool, gate: Barrier, answers: Queue[str]) -> None:
    """What one process does: wait for the other, embed a table block by block, and tell what came out."""
    data, features = table(256 * 20), torch.empty(256 * 20, 30)
    order = torch.arange(len(data)).flip(0) if backwards else torch.arange(len(data))
    encoder = Encoder(backbone)
    gate.wait(30)
    for part in order.split(256):
        features[part] = encoder(data[part])
    answers.put(hashlib.sha256(features.numpy().tobytes()).hexdigest())


@pytest.mark.skipif(sys.platform != "linux", reason="forks, to spare two processes the seconds of importing torch")
def test_processes_that_fill_one_cache_at_once_get_identical_features(wide: MakeBackbone, cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    gate, answers = fork.Barrier(3), fork.Queue()
    running = [fork.Process(target=fill, args=(wide(), way, gate, answers), daemon=True) for way in (False, False, True)]
    for process in running:
        process.start()
    found = {answers.get(timeout=60) for _ in running}
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(found) == 1
    assert len(files(cache)) == 20
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == files(cache)
    assert Encoder(wide())(table(256 * 20)).numpy().tobytes() == b"".join(
        load_file(path)["features"].numpy().tobytes() for path in files(cache)
    )


# The price


def price(encoder: Encoder, data: Data, counting: bool = False) -> int:
    with metered() as meter:
        if counting:
            with meter.counting():
                encoder(data)
        else:
            encoder(data)
    return meter.flops


@pytest.mark.parametrize("counting", [False, True])
def test_embedding_costs_the_same_flops_whether_it_hits_or_misses(
    wide: MakeBackbone, monkeypatch: pytest.MonkeyPatch, counting: bool
) -> None:
    encoder, data, each = Encoder(wide()), table(), 2 * 40 * 30
    assert price(encoder, data, counting) == ROWS * each  # computed
    assert price(encoder, data, counting) == ROWS * each  # remembered
    assert price(Encoder(wide()), data, counting) == ROWS * each  # read
    assert price(encoder, data[[1, 599, 1]], counting) == 3 * each
    assert price(Encoder(wide()), data[255:257], counting) == 2 * each
    assert price(encoder, data[:0], counting) == 0
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    assert price(Encoder(wide()), data[:5], counting) == 5 * each  # though a whole block is computed


def test_every_table_has_its_own_price(wide: MakeBackbone) -> None:
    short, long = (Data(x=rows(300 * length).view(300, length, 40)) for length in (2, 8))
    encoder, each = Encoder(wide(shape=False)), 300 * 2 * 40 * 30
    assert [price(encoder, data) for data in (short, long)] == [2 * each, 8 * each]
    assert [price(encoder, data) for data in (short, long)] == [2 * each, 8 * each]
    assert [price(Encoder(wide(shape=False)), data) for data in (short, long)] == [2 * each, 8 * each]


def test_what_is_counted_around_an_embedding_stays_counted(wide: MakeBackbone) -> None:
    encoder, data, left = Encoder(wide()), table(10), torch.ones(5, 40)
    with metered() as meter, meter.counting():
        left @ left.T
        encoder(data)
        left @ left.T
    assert meter.flops == 10 * 2 * 40 * 30 + 2 * (2 * 5 * 5 * 40)
