"""Pretraining: it learns, goes on where it was stopped, reads nothing but its classes, and writes what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from latewood.cli.pretrain import app
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError, LatewoodError, StorageError
from latewood.core.files import lock, unlock
from latewood.core.progress import Progress
from latewood.images.classes import choose
from latewood.images.datasets import ImageData, load_images
from latewood.images.nets.vit import vit
from latewood.images.pretraining import RECIPES, Pretrainer, cut_mixed, pretrain, recipe_for, side_in, zoomed
from latewood.parts.backbone import Backbone, Seen, build_backbone

SMALL = {"name": "vit", "width": 12, "depth": 1}
TINY_RESNET = {"name": "resnet32", "width": 2}
TWO_EPOCHS = {"epochs": 2, "precision": "float32"}


class StopsAfter(Progress):
    """Kills the training after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def experience_done(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def tell(self, sentence: str) -> None:
        pass


class Silent(Progress):
    def tell(self, sentence: str) -> None:
        pass


def small(to: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"backbone": SMALL, "classes": "0-4", "settings": TWO_EPOCHS, "flip": False, "progress": Silent()}
    given |= options
    return pretrain(given.pop("backbone"), given.pop("data", "digits"), to, **given)


def load(folder: Path, example: Data) -> Backbone:
    return build_backbone(str(folder), "images", example, lambda: "pixels")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def left_behind(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_it_learns(tmp_path: Path) -> None:
    settings = {"epochs": 10, "batch_size": 16, "lr": 3e-3}
    done = small(tmp_path / "net", backbone={"name": "vit", "width": 24, "depth": 2}, settings=settings)
    assert done.accuracy > 0.75, "chance is 0.2"


@pytest.mark.parametrize("net", [SMALL, TINY_RESNET], ids=["vit", "resnet32"])
def test_a_training_that_was_killed_goes_on_and_ends_with_the_same_bits(tmp_path: Path, net: dict[str, Any]) -> None:
    settings = TWO_EPOCHS | {"epochs": 3}
    whole = small(tmp_path / "whole", backbone=net, settings=settings)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / "killed", backbone=net, settings=settings, progress=StopsAfter(1))
        assert left_behind(tmp_path) == [".killed.unfinished", "whole"]
    resumed = small(tmp_path / "killed", backbone=net, settings=settings)
    assert resumed.accuracy == whole.accuracy
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert left_behind(tmp_path) == ["killed", "whole"]


def test_a_training_that_was_killed_behind_its_last_epoch_is_only_written(tmp_path: Path) -> None:
    whole = small(tmp_path / "whole", size=16)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "killed", size=16, progress=StopsAfter(2))
    resumed = small(tmp_path / "killed", size=16)
    assert resumed.accuracy == whole.accuracy
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_two_processes_never_work_on_one_network(tmp_path: Path) -> None:
    (tmp_path / ".net.unfinished").mkdir()
    (tmp_path / ".net.unfinished" / "lock").touch()
    handle = lock(tmp_path / ".net.unfinished" / "lock")
    with pytest.raises(StorageError, match="Another process is working"):
        small(tmp_path / "net")
    unlock(handle)
    small(tmp_path / "net")
    assert left_behind(tmp_path) == ["net"]


def test_what_another_command_left_unfinished_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "net", progress=StopsAfter(1))
    with pytest.raises(CheckpointError, match=r"another pretraining \(recipe.lr is 0.001 there and 0.5 here\)"):
        small(tmp_path / "net", settings=TWO_EPOCHS | {"lr": 0.5})


def test_images_of_the_other_classes_do_not_matter(tmp_path: Path) -> None:
    images = load_images("digits")
    labels = images.train.tensor("label")
    spoilt = images.train.with_columns(image=torch.where((labels > 4)[:, None, None, None], 0, images.train["image"]))
    small(tmp_path / "a", data=images)
    small(tmp_path / "b", data=replace(images, train=spoilt))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    half = torch.where((labels == 3)[:, None, None, None], 0, images.train["image"])
    small(tmp_path / "c", data=replace(images, train=images.train.with_columns(image=half)))
    assert weights(tmp_path / "c") != weights(tmp_path / "a"), "this comparison can't fail"


def test_test_images_do_not_matter_for_the_weights(tmp_path: Path) -> None:
    images = load_images("digits")
    small(tmp_path / "a", data=images)
    small(tmp_path / "b", data=replace(images, test=images.test.with_columns(image=images.test["image"] // 3)))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        small(tmp_path / name, seed=seed)
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


@pytest.mark.parametrize("net", [SMALL, TINY_RESNET], ids=["vit", "resnet32"])
def test_the_folder_is_a_backbone_with_the_features_of_the_training(
    tmp_path: Path, net: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Pretrainer] = []
    plain = Pretrainer.__init__

    def remember(self: Pretrainer, *arguments: Any) -> None:
        plain(self, *arguments)
        kept.append(self)

    monkeypatch.setattr(Pretrainer, "__init__", remember)
    small(tmp_path / "net", backbone=net)
    images = load_images("digits").test[:20]
    backbone = load(tmp_path / "net", images[:1])
    learner = kept[0].eval()
    assert not backbone.training
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    with torch.no_grad():
        expected = learner.backbone(learner.backbone.prepare(images))
        features = backbone(backbone.prepare(images))
    assert features.shape == (20, learner.backbone.width)
    assert torch.allclose(features, expected, atol=1e-5), "statistics are written with six digits"
    assert backbone.seen == Seen("digits", ("0", "1", "2", "3", "4"))
    larger = Data(image=torch.zeros(2, 1, 20, 12, dtype=torch.uint8))
    other = load(tmp_path / "net", larger)
    assert other(other.prepare(larger)).shape == features[:2].shape


def test_weights_are_float16_on_disk_but_statistics_of_batches_are_not(tmp_path: Path) -> None:
    small(tmp_path / "vit")
    assert {value.dtype for value in load_file(tmp_path / "vit" / "model.safetensors").values()} == {torch.float16}
    small(tmp_path / "resnet", backbone=TINY_RESNET)
    found = load_file(tmp_path / "resnet" / "model.safetensors")
    assert found["stem.0.weight"].dtype == torch.float16
    assert found["stem.1.running_var"].dtype == torch.float32


def test_a_trained_net_of_ours_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    small(tmp_path / "net", backbone=TINY_RESNET)
    images = load_images("digits").test[:20]
    backbone: Any = load(tmp_path / "net", images[:1])
    backbone.save(tmp_path / "copy")
    again = load(tmp_path / "copy", images[:1])
    with torch.no_grad():
        assert torch.equal(again(again.prepare(images)), backbone(backbone.prepare(images)))
    with pytest.raises(StorageError, match="exists already"):
        backbone.save(tmp_path / "copy")
    assert backbone.config() == {"name": str(tmp_path / "net"), "augment": "none"}


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_damaged_folder_is_told_in_one_sentence(tmp_path: Path, damage: str) -> None:
    small(tmp_path / "net", backbone=TINY_RESNET)
    if damage == "config.json":
        told = json.loads((tmp_path / "net" / damage).read_text())
        (tmp_path / "net" / damage).write_text(json.dumps(told | {"shape": [1]}))
    elif damage == "model.safetensors":
        (tmp_path / "net" / damage).write_bytes(weights(tmp_path / "net")[:200])
    else:
        (tmp_path / "net" / damage).unlink()
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path / "net", load_images("digits").test[:1])
    assert str(error.value).count("\n") == 0
    assert str(tmp_path / "net") in str(error.value)


def test_a_net_trained_on_grey_images_refuses_colour(tmp_path: Path) -> None:
    small(tmp_path / "net", backbone=TINY_RESNET)
    with pytest.raises(DataError, match="trained on grey images, but these have 3 channels"):
        load(tmp_path / "net", Data(image=torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))


def test_the_card_and_the_list_of_classes_say_what_was_done(tmp_path: Path) -> None:
    done = small(tmp_path / "net", seed=3)
    told = json.loads((tmp_path / "net" / "classes.json").read_text())
    assert told == {"data": "digits", "classes": ["0", "1", "2", "3", "4"]}
    text = (tmp_path / "net" / "README.md").read_text()
    for expected in (
        "latewood pretrain vit --data digits --classes 0-4 --seed 3 --to net --set backbone.width=12 --set backbone.depth=1",
        "--set epochs=2 --set precision=float32 --no-flip",
        f"**{done.accuracy:.1%}** (chance: 20.0%)",
        "719 training images",
        "5 of the 10 classes of `digits`",
        "| epochs | 2 |",
    ):
        assert expected in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "resnet33"}, r"no net 'resnet33' that can be pretrained \(did you mean 'resnet32'\?\)"),
        ({"backbone": "mlp"}, "no net 'mlp' that can be pretrained"),
        ({"settings": {"epoch": 2}}, r"pretrain has no parameter 'epoch' \(did you mean 'epochs'\?\)"),
        ({"settings": {"epochs": 0}}, "recipe.epochs must be at least 1"),
        ({"classes": "3"}, "needs two classes at least, but '3' leaves 1"),
        ({"classes": "5-12"}, "the data set has the classes 0 to 9, but not 5-12"),
        ({"backbone": {"name": "vit", "patch": 3}}, "patches of 3x3 pixels, which images of 8x8 are not made of"),
        ({"data": "digitz"}, "digitz"),
    ],
)
def test_what_can_not_be_done_is_told_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ConfigurationError, DataError), match=sentence):
        small(tmp_path / "net", **options)
    assert left_behind(tmp_path) == []


def test_a_folder_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        small(tmp_path / "net")


def test_a_loss_that_explodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(LatewoodError, match=r"became NaN or infinite in epoch \d of 2; lower recipe.lr \(now 1e\+30\)"):
        small(tmp_path / "net", backbone=TINY_RESNET, settings=TWO_EPOCHS | {"lr": 1e30, "warmup": 0.0})


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50])
def test_images_grow_and_the_last_epoch_has_them_whole(side: int, epochs: int) -> None:
    sides = [side_in(epoch, epochs, side) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[-1] == side
    assert all(size == side or size % 8 == 0 for size in sides)


def test_crops_hold_what_the_image_holds_and_are_mirrored_only_if_asked() -> None:
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, mirrored = zoomed(ramp, 16, flip=False), zoomed(ramp, 16, flip=True)
    assert plain.shape == mirrored.shape == (64, 1, 16, 16)
    assert 0 <= plain.min() <= plain.max() <= 1
    rising = plain[:, 0, 0, -1] > plain[:, 0, 0, 0]
    assert bool(rising.all())
    falling = (mirrored[:, 0, 0, -1] < mirrored[:, 0, 0, 0]).float().mean()
    assert 0.2 < falling < 0.8
    # A crop of 35 to 100 % of the area is at least half as wide as the image.
    assert (plain.amax((1, 2, 3)) - plain.amin((1, 2, 3))).min() > 0.4


def test_cut_mix_takes_a_box_of_another_image_and_tells_how_much_stayed() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 10, 12)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(20):
            mixed, order, share = cut_mixed(images)
            for own, other, image in zip(range(6), order.tolist(), mixed, strict=True):
                assert set(image.unique().tolist()) <= {float(own), float(other)}
                if own != other:
                    assert (image == own).float().mean().item() == pytest.approx(share, abs=1e-6)


def test_mixed_labels_count_by_their_share() -> None:
    rows = load_images("digits").train[:32]
    learner = Pretrainer(vit(rows[:1], width=12, depth=1), 10, False, recipe_for("vit", {"epochs": 1}))
    losses = set()
    with torch.random.fork_rng():
        for seed in range(6):
            torch.manual_seed(seed)
            losses.add(round(float(learner.loss(rows).detach()), 6))
    assert len(losses) == 6, "crops and mixtures are drawn anew"


def test_every_recipe_is_of_a_net_of_this_wing() -> None:
    for name in RECIPES:
        example = Data(image=torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        assert build_backbone({"name": name}, "images", example, lambda: "mlp").settings["name"] == name


def test_the_command_trains_a_net_and_tells_how_good_it_is(tmp_path: Path) -> None:
    small_net = ["--set", "backbone.width=12", "--set", "backbone.depth=1", "--set", "batch_size=256"]
    some = ["--data", "digits", "--to", str(tmp_path / "net"), "--classes", "0-2", "--epochs", "1"]
    result = CliRunner().invoke(app, ["pretrain", "vit", *some, "--json", *small_net])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["folder"] == str(tmp_path / "net")
    assert 0 <= told["accuracy"] <= 1
    assert (tmp_path / "net" / "README.md").exists()


def test_images_that_are_loaded_can_be_given(tmp_path: Path) -> None:
    images = load_images("digits")
    assert isinstance(images, ImageData)
    drawn = choose("random:3:5", images.classes)
    small(tmp_path / "net", data=images, classes="random:3:5")
    told = json.loads((tmp_path / "net" / "classes.json").read_text())
    assert told["classes"] == [images.classes[number] for number in drawn]
