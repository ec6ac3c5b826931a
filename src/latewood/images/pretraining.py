"""Pretraining: a backbone trained on base classes, written as a model folder that says what it has seen."""

from __future__ import annotations

import copy
import json
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import configure
from latewood.core.checkpoint import Checkpoints, tensors_of, write_tensors
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, LatewoodError, StorageError
from latewood.core.files import lock, unlock, write_folder_atomically
from latewood.core.learner import GradientLearner
from latewood.core.loop import resolve_device
from latewood.core.progress import Progress, current_progress, default_progress, showing
from latewood.core.recipe import Recipe
from latewood.core.registry import nearest
from latewood.core.run import describe_difference
from latewood.core.seeding import deterministic, generator, seeded
from latewood.core.step import train_step
from latewood.images.card import Facts, card
from latewood.images.classes import choose
from latewood.images.datasets import ImageData, load_images
from latewood.images.nets._image import ImageBackbone
from latewood.images.nets._sizing import Sizing
from latewood.images.nets.hub import _processor
from latewood.images.nets.trained import trained_files
from latewood.images.nets.vit import VisionTransformer
from latewood.images.streams._common import contents
from latewood.parts.backbone import SEEN, build_backbone
from latewood.parts.optimizer_state import OptimizerState
from latewood.parts.pretrained import quiet

#: Until which share of the epochs images are trained on at which share of their side: small ones cost a quarter, and what
#: is learned on them holds for large ones.
SIDES = ((0.6, 0.5), (0.85, 0.75), (1.0, 1.0))
#: A side is a multiple of this, so that patches of 4 or 8 pixels fit.
_GRAIN = 8
_SMALLEST_AREA, _LONGEST = 0.35, 4 / 3
_CUT_MIX, _SMOOTHING = 0.5, 0.1
#: About so many times in a training the accuracy is measured.
_LOOKS = 16

#: The nets that can be trained here, and how each is by default.
RECIPES = {
    "vit": Recipe(
        epochs=50,
        batch_size=128,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup=0.05,
        clip=1.0,
        precision="bfloat16",
    ),
    "resnet32": Recipe(
        epochs=50, batch_size=128, lr=0.1, weight_decay=5e-4, schedule="cosine", warmup=0.05, precision="bfloat16"
    ),
}


class Pretrained(NamedTuple):
    """What came out: the folder, top-1 accuracy on the test images of its classes in [0, 1], and the seconds it took."""

    folder: Path
    accuracy: float
    #: Of the processor, all threads together.
    seconds: float


def pretrain(
    backbone: str | Mapping[str, Any],
    data: str | ImageData,
    to: str | Path,
    *,
    classes: str | None = None,
    settings: Mapping[str, Any] | None = None,
    flip: bool = True,
    seed: int = 0,
    size: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Pretrained:
    """Train a backbone on labelled images, and write it as the new folder ``to``.

    ``backbone`` is ``vit`` or ``resnet32``, alone or with settings of the net (``{"name": "vit", "width": 64}``). ``data`` is
    a data set as :func:`~latewood.images.datasets.load_images` finds it, at ``size`` if that is given; ``classes`` leaves
    only some of its classes, in the words of :func:`~latewood.images.classes.choose`. ``settings`` change the net's recipe
    (:data:`RECIPES`), such as ``{"epochs": 10}``. ``flip`` mirrors images at random, which is wrong for characters.

    How it is trained says :class:`Pretrainer`. The state after each epoch lies beside ``to`` until the end: the same call
    goes on where it was stopped, and on the same machine ends with the same bits.

    The folder holds ``model.safetensors`` (float16), ``config.json`` and ``preprocessor_config.json`` in the form of the
    Hugging Face hub for ``vit``, ``classes.json`` (the classes that it has seen, which streams then refuse) and
    ``README.md``, a card that says how it was made. As ``backbone`` of a learner the folder is named like one of a hub.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for another net, a setting that does not exist, or classes
    that the data set does not have; :class:`~latewood.core.errors.StorageError` if ``to`` is there already.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "small"
    >>> small = {"name": "vit", "width": 12, "depth": 1}
    >>> done = pretrain(small, "digits", folder, classes="0-4", settings={"epochs": 1}, flip=False)
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'classes.json', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    to = Path(to).expanduser()
    if to.exists():
        raise StorageError(f"{to} exists already; name a new folder for the network.")
    images = load_images(data, size=size)
    chosen = images.subset(choose(classes, images.classes)) if classes is not None else images
    if len(chosen.classes) < 2:
        raise ConfigurationError(f"Pretraining needs two classes at least, but {classes!r} leaves {len(chosen.classes)}.")
    wanted = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    recipe = recipe_for(str(wanted.get("name")), settings or {})
    with seeded(seed, "initial weights"):
        net = build_backbone(wanted, "images", chosen.train[:1], lambda: "vit")
        assert isinstance(net, ImageBackbone)
        learner = Pretrainer(net, len(chosen.classes), flip, recipe).to(resolve_device(device))
    work = Work(learner, chosen, seed, to.with_name(f".{to.name}.unfinished"))
    with work.alone(), showing(progress or default_progress()), deterministic():
        work.run()
        rounded(net)
        accuracy = work.accuracy("float32")
        given = {"data": images.name, "classes": classes, "size": size, "seed": seed or None, "to": to.name}
        command = _command(wanted, given, settings or {}, flip)
        facts = _facts(work, command, len(images.classes), accuracy, to.name)
        write_folder_atomically(to, lambda folder: _write(folder, net, chosen, facts))
    shutil.rmtree(work.folder, ignore_errors=True)
    return Pretrained(to, accuracy, work.seconds)


def recipe_for(net: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a net with these fields changed.

    >>> recipe_for("vit", {"epochs": "3"}).epochs
    3
    """
    if net not in RECIPES:
        raise ConfigurationError(f"There is no net {net!r} that can be pretrained{nearest(net, RECIPES)}.")

    def pretraining(recipe: Recipe = RECIPES[net]) -> Recipe:
        return recipe

    return configure.build(pretraining, settings, "pretrain")


def _command(net: Mapping[str, Any], given: Mapping[str, Any], settings: Mapping[str, Any], flip: bool) -> str:
    """What to say on the command line to make the same network."""
    options = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None]
    own = {f"backbone.{name}": value for name, value in net.items() if name != "name"}
    sets = [f"--set {shlex.quote(f'{name}={value}')}" for name, value in (own | dict(settings)).items()]
    return " ".join(["latewood pretrain", str(net["name"]), *options, *sets, *([] if flip else ["--no-flip"])])


def rounded(net: nn.Module) -> None:
    """Round the parameters to what float16 can hold, as they are written; statistics of batches stay as they are."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())


class Pretrainer(GradientLearner):
    """Cross-entropy over base classes, with smoothed labels, random crops and CutMix (Yun et al., 2019).

    Images are trained on at the side that :func:`side_in` says, crops of 35 to 100 % of the area that are brought to it,
    mirrored at random if ``flip``. Half of the batches are mixed.
    """

    def __init__(self, backbone: ImageBackbone, classes: int, flip: bool, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.backbone, self.flip = backbone, flip
        self.head = nn.Linear(backbone.width, classes)

    @property
    def side(self) -> int:
        """The side of the images in this epoch."""
        return side_in(self.epoch, self.recipe.epochs, self.backbone.shape[-1])

    def loss(self, batch: Data) -> Tensor:
        labels = batch.tensor("label")
        inputs = zoomed(self.backbone.prepare(batch), self.side, self.flip)
        others = labels
        share = 1.0
        if float(torch.rand(())) < _CUT_MIX:
            inputs, order, share = cut_mixed(inputs)
            others = labels[order]
        logits = self.head(self.backbone(inputs)).float()
        first = F.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)
        return share * first + (1 - share) * F.cross_entropy(logits, others, label_smoothing=_SMOOTHING)

    @torch.no_grad()
    def predict(self, data: Data) -> Tensor:
        """The label of each row, seen at the side of this epoch."""
        self.eval()
        return torch.cat([self._logits(batch).argmax(1) for batch in data.batches(500)])

    def _logits(self, batch: Data) -> Tensor:
        inputs = self.backbone.prepare(batch.to(self.device))
        if self.side != inputs.shape[-1]:
            inputs = F.interpolate(inputs, (self.side, self.side), mode="bilinear", antialias=True)
        logits: Tensor = self.head(self.backbone(inputs))
        return logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on norms and biases."""
        trained = list(self.parameters())
        plain = [p for p in trained if p.dim() < 2]
        return [{"params": [p for p in trained if p.dim() >= 2]}, {"params": plain, "weight_decay": 0.0}]


def side_in(epoch: int, epochs: int, side: int) -> int:
    """The side of the images in ``epoch`` (from 0) of ``epochs``, for images of ``side`` pixels.

    >>> [side_in(epoch, 20, 32) for epoch in (0, 11, 12, 16, 17, 19)]
    [16, 16, 24, 24, 32, 32]
    """
    share = next(share for until, share in SIDES if epoch + 1 <= until * epochs)
    return side if share == 1.0 else min(side, math.ceil(share * side / _GRAIN) * _GRAIN)


def zoomed(images: Tensor, side: int, flip: bool) -> Tensor:
    """Of each image a random crop, brought to ``side`` by ``side`` pixels, and mirrored half of the time if ``flip``."""
    count = len(images)
    area = torch.empty(count).uniform_(_SMALLEST_AREA, 1.0)
    ratio = torch.empty(count).uniform_(-math.log(_LONGEST), math.log(_LONGEST)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    x, y = (1 - width) * torch.empty(count).uniform_(-1, 1), (1 - height) * torch.empty(count).uniform_(-1, 1)
    if flip:
        width = width * (torch.randint(2, (count,)) * 2 - 1)
    none = torch.zeros(count)
    boxes = torch.stack([width, none, x, none, height, y], 1).view(count, 2, 3).to(images)
    grid = F.affine_grid(boxes, [count, images.shape[1], side, side], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def cut_mixed(images: Tensor) -> tuple[Tensor, Tensor, float]:
    """The images with one box of each taken from another; which other, and the share of the area that stayed."""
    height, width = images.shape[2:]
    order = torch.randperm(len(images)).to(images.device)
    scale = math.sqrt(1 - float(torch.rand(())))
    rows, columns = round(scale * height), round(scale * width)
    top, left = int(torch.randint(height - rows + 1, ())), int(torch.randint(width - columns + 1, ()))
    mixed = images.clone()
    box = (..., slice(top, top + rows), slice(left, left + columns))
    mixed[box] = images[order][box]
    return mixed, order, 1 - rows * columns / (height * width)


class Work:
    """The epochs, with a checkpoint after each in ``folder``: killed at any moment, it goes on, and ends with the same bits."""

    def __init__(self, learner: Pretrainer, images: ImageData, seed: int, folder: Path) -> None:
        self.learner, self.images, self.seed, self.folder = learner, images, seed, folder
        facts = {
            "data": {"name": images.name, **contents(images)},
            "classes": images.classes,
            "backbone": learner.backbone.config(),
            "flip": learner.flip,
            "seed": seed,
            "recipe": asdict(learner.recipe),
        }
        # As JSON gives it back, since it is compared with what was kept.
        self.facts = json.loads(json.dumps(facts))
        self.shelf = Checkpoints(folder)
        self.groups = learner.parameter_groups()
        self.optimizer = learner.recipe.make_optimizer(self.groups)
        self.held = OptimizerState()
        #: Top-1 accuracy on the test images after some epochs: (epochs done, side, accuracy).
        self.history: list[tuple[int, int, float]] = []
        self.seconds = 0.0

    def run(self) -> None:
        learner, progress = self.learner, current_progress()
        epochs = learner.recipe.epochs
        done = self._resume()
        progress.start("pretraining", epochs, done)
        for epoch in range(done, epochs):
            start = time.process_time()
            learner.epoch = epoch
            with seeded(self.seed, "pretraining", epoch):
                self._epoch(epoch)
            last = epoch + 1 == epochs
            if last or (epoch + 1) % max(1, epochs // _LOOKS) == 0:
                accuracy = self.accuracy(learner.recipe.precision)
                self.history.append((epoch + 1, learner.side, accuracy))
                progress.tell(f"After epoch {epoch + 1} of {epochs}: top-1 {accuracy:.1%} at {learner.side} pixels a side.")
            self.seconds += time.process_time() - start
            self._save(epoch + 1)
            progress.experience_done()
        learner.epoch = epochs - 1  # which tells the side of images, also where all was done before

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the folder. Errors: :class:`StorageError` if one works there already."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise StorageError(f"{self.folder} can't be made: {error.strerror}.") from error
        handle = lock(self.folder / "lock")
        try:
            yield
        finally:
            unlock(handle)

    def accuracy(self, precision: str) -> float:
        """The share of the test images whose class is predicted."""
        test, device = self.images.test, self.learner.device
        current_progress().phase("testing")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            found = self.learner.predict(test)
        return float((found.cpu() == test.tensor("label").cpu()).float().mean())

    def _epoch(self, epoch: int) -> None:
        learner, progress, data = self.learner, current_progress(), self.images.train
        recipe, device = learner.recipe, learner.device
        per_epoch = math.ceil(len(data) / recipe.batch_size)
        parameters = [p for group in self.groups for p in group["params"]]
        total = torch.zeros((), device=device)
        learner.train()
        progress.phase(f"learning at {learner.side} pixels", per_epoch)
        for number, batch in enumerate(data.batches(recipe.batch_size, generator(self.seed, "order", epoch))):
            rate = recipe.lr * recipe.rate(epoch * per_epoch + number, recipe.epochs * per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = train_step(learner, batch.to(device), self.optimizer, parameters, recipe, device)
            total += loss
            progress.step(loss)
        if not torch.isfinite(total):
            raise LatewoodError(
                f"The loss became NaN or infinite in epoch {epoch + 1} of {recipe.epochs}; "
                f"lower recipe.lr (now {recipe.lr}) or set recipe.clip."
            )

    def _save(self, done: int) -> None:
        self.held.take(self.optimizer)
        state = {f"learner.{name}": value for name, value in tensors_of(self.learner).items()}
        state |= {f"optimizer.{name}": value for name, value in self.held.state_dict().items()}
        self.shelf.add(done, state, {"facts": self.facts, "history": self.history, "seconds": self.seconds})

    def _resume(self) -> int:
        found = self.shelf.newest(current_progress().tell)
        if found is None:
            return 0
        done, state, told = found
        if difference := describe_difference(told["facts"], self.facts):
            raise CheckpointError(
                f"{self.folder} holds the beginning of another pretraining ({difference}); "
                "repeat that command to go on with it, or remove the folder."
            )
        self.learner.load_state_dict(_part(state, "learner."))
        self.held.load_state_dict(_part(state, "optimizer."))
        self.held.give(self.optimizer)
        self.history, self.seconds = [tuple(entry) for entry in told["history"]], told["seconds"]
        return done


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _write(folder: Path, net: ImageBackbone, images: ImageData, facts: Facts) -> None:
    """Everything that the model folder holds."""
    side = net.shape[-1]
    mean, std = (tuple(map(float, values.flatten())) for values in (net.mean, net.std))
    # Rounded, since a float32 such as 0.5071 has digits behind that mean nothing.
    mean, std = (tuple(round(value, 6) for value in values) for values in (mean, std))
    sizing = Sizing(resize=(side, side), interpolation="bilinear", mean=mean, std=std)
    if isinstance(net, VisionTransformer):
        files: dict[str, Any] = {"preprocessor_config.json": _processor(sizing)}
        with quiet():
            copy.deepcopy(net.network).cpu().half().save_pretrained(folder)
    else:
        files = trained_files(net, sizing)
        half = {name: value.half() for name, value in net.named_parameters()}
        write_tensors(folder / "model.safetensors", {**tensors_of(net), **half})
    files[SEEN] = {"data": images.name, "classes": images.classes}
    for name, told in files.items():
        (folder / name).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def _facts(work: Work, command: str, of: int, accuracy: float, name: str) -> Facts:
    """What the card tells: all that decides the weights, and what they can do."""
    learner, images = work.learner, work.images
    return Facts(
        name=name,
        command=command,
        net=learner.backbone.settings,
        weights=sum(p.numel() for p in learner.backbone.parameters()),
        width=learner.backbone.width,
        shape=learner.backbone.shape,
        data=images.name,
        contents=work.facts["data"]["train"],
        classes=len(images.classes),
        classes_of_data=of,
        rows=(len(images.train), len(images.test)),
        recipe=asdict(learner.recipe) | {"seed": work.seed},
        method=_method(learner),
        accuracy=accuracy,
        history=work.history,
        seconds=work.seconds,
        device=learner.device.type,
    )


def _method(learner: Pretrainer) -> str:
    """How a network is trained, in sentences for the card."""
    epochs, side = learner.recipe.epochs, learner.backbone.shape[-1]
    sides = [side_in(epoch, epochs, side) for epoch in range(epochs)]
    stages = ", ".join(f"{sides.count(size)} at {size} pixels a side" for size in sorted(set(sides)))
    mirrored = ", mirrored half of the time" if learner.flip else ""
    return (
        f"Cross-entropy with labels smoothed by {_SMOOTHING}; {epochs} epochs: {stages}. Of each image a random crop of "
        f"{_SMALLEST_AREA:.0%} to 100% of its area{mirrored}; CutMix on {_CUT_MIX:.0%} of the batches."
    )
