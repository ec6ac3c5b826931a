"""The curves of the mixture ratio: one model, copied for each domain share, trained and watched on the same held-out text."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latewood.core.checkpoint import Shelf, shelving, tensors_of
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.files import is_temporary, lock, sweep_temporaries, write_atomically
from latewood.core.loop import resolve_device
from latewood.core.progress import Progress, default_progress, showing
from latewood.core.run import describe_difference
from latewood.core.seeding import derive_seed, deterministic
from latewood.core.watch import Watch, watching
from latewood.language.corpora import Tokenizer, join, load_blocks, load_tokenizer
from latewood.language.learner import LanguageLearner
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM
from latewood.language.probes import HeldOutLoss
from latewood.language.recipe import TextRecipe
from latewood.studies.cmr.critical import check_ratios, collect
from latewood.studies.cmr.laws import FEWEST_POINTS, Curve

#: The shares that the paper runs; 1 is an end point.
RATIOS = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
#: The paper's rate, a tenth of its pre-training peak; its optimiser and warm-up are not told.
RECIPE = TextRecipe(lr=3e-5, decay="constant", save_every=100)
STEPS = 500
#: Unless told otherwise, so many looks are spread over a run.
_LOOKS = 50
_MARKER, _CURVES = "study.json", "curves"


class Text(NamedTuple):
    """One side of a mixture: rows to train on, and held-out rows that tell its loss; with the columns of ``TokenBlocks``."""

    name: str
    train: Data
    held_out: Data


def load_text(
    corpora: str,
    *,
    tokenizer: str | Tokenizer = "bytes",
    length: int = 256,
    blocks: int | None = None,
    held_out: int | None = None,
    seen: float = 0.0,
) -> Text:
    """One side of a mixture from corpora whose names are joined by ``+``, such as ``en+fr``.

    The other arguments but the last are those of :func:`~latewood.language.corpora.load_blocks`. ``seen`` says how much of
    each corpus, from its beginning, the model was pre-trained on: a share (below 1) or a number of rows; it is left out.
    Errors: what ``load_blocks`` says, and :class:`~latewood.core.errors.DataError` if that leaves nothing.

    >>> text = load_text("python", length=64, blocks=100, held_out=10, seen=0.5)
    >>> text.name, len(text.train), len(text.held_out)
    ('python', 50, 10)
    """
    names = [name.strip() for name in corpora.split("+")]
    if "" in names or len(set(names)) < len(names):
        raise ConfigurationError(f"Corpora that are mixed need different names, joined by +, but they are {corpora!r}.")
    if not 0 <= seen < math.inf:
        raise ConfigurationError(f"What a model has seen is a share of a corpus or a number of rows, but it is {seen:g}.")
    tokens = load_tokenizer(tokenizer)
    loaded = {name: load_blocks(name, tokenizer=tokens, length=length, blocks=blocks, held_out=held_out) for name in names}
    train = join({name: _unseen(name, parts.train, seen) for name, parts in loaded.items()})
    return Text("+".join(names), train, join({name: parts.held_out for name, parts in loaded.items()}))


def measure(
    model: CausalLM,
    general: Text,
    domain: Text,
    ratios: Sequence[float] = RATIOS,
    *,
    steps: int = STEPS,
    every: int | None = None,
    recipe: TextRecipe = RECIPE,
    seed: int = 0,
    to: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Curve]:
    """Train a copy of ``model`` at each domain share, ``steps`` steps long, and watch both held-out losses.

    All copies begin with the same bits, see the same rows of a corpus in the same order and the same held-out text, and
    every batch holds the exact share (carried over where it is no whole number of rows). Losses are looked at before the
    first step and after ``every`` steps (default: fifty times). The learning rate is warmed up and then stays constant, so
    that each point of a curve is the end of a shorter run. ``model`` itself stays as it is.

    ``general`` should be text like that of pre-training, but none that the model was pre-trained on: it has no need to
    learn that again, which would make it look cheaper to keep than it is.

    With ``to`` each curve is kept in that folder as soon as it is measured. The same call takes up those that are there,
    goes on within the one that was interrupted (``recipe.save_every``), and runs what is missing. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for ratios or a recipe that make no sense, before anything is
    written; :class:`~latewood.core.errors.CheckpointError` for a folder of another study.

    >>> from latewood.core.seeding import seeded
    >>> from latewood.language.nets import causal
    >>> text = load_text("python", length=32, blocks=64, held_out=4)
    >>> with seeded("weights"):
    ...     model = causal(text.train[:1], layers=1, width=16, heads=2)
    >>> curves = measure(model, text, text, (0.25, 0.5), steps=12, every=2, recipe=RECIPE, device="cpu")
    >>> [curve.ratio for curve in curves], curves[0].times.round(1).tolist()
    ([0.25, 0.5], [0.0, 16.7, 33.3, 50.0, 66.7, 83.3, 100.0])
    """
    check_ratios(ratios)
    recipe, every = replace(study_recipe(recipe), steps=steps), every or max(1, steps // _LOOKS)
    warmup = math.ceil(recipe.warmup * steps)
    looks = sum(step >= warmup for step in {*range(every, steps, every), steps})
    if looks < FEWEST_POINTS:
        raise ConfigurationError(
            f"Looking after every {every} of {steps} steps gives {looks} points after the warm-up of {warmup} steps; the laws "
            f"need {FEWEST_POINTS}, so look more often."
        )
    where = resolve_device(device)
    begin = copy.deepcopy(model).to(where)
    sides = {"general": general, "domain": domain}
    train = join({side: text.train for side, text in sides.items()})
    probes = [HeldOutLoss(side, text.held_out, since=0) for side, text in sides.items()]
    with showing(progress or default_progress()) as display, deterministic(), ExitStack() as stack:
        place = None
        if to is not None:
            facts = _facts(begin, sides, recipe, every, seed, where)
            place = stack.enter_context(closing(_Place(Path(to), facts)))
        display.start("mixture ratio", len(ratios))

        def run_one(ratio: float) -> Curve:
            curve = place.find(ratio) if place else None
            if curve is None:
                learner = AtShare(copy.deepcopy(begin), ratio, recipe)
                learner.generator.manual_seed(derive_seed(seed, "mixture ratio"))
                with shelving(place.unfinished(ratio) if place else None), watching(Watch(probes, every)) as watch:
                    learner.learn(Experience(0, train))
                curve = _curve(ratio, watch, warmup)
                if place:
                    place.keep(curve)
            display.experience_done()
            return curve

        return collect(run_one, ratios)


def study_recipe(recipe: TextRecipe = RECIPE) -> TextRecipe:
    """The recipe, if every point of a run under it is the end of a shorter run.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if not.

    >>> study_recipe().decay
    'constant'
    """
    if recipe.decay != "constant":
        raise ConfigurationError(
            f"recipe.decay must be constant, but it is {recipe.decay}: under a rate that falls, a point of a long run is not "
            "the end of a short one."
        )
    if recipe.arrivals != 1 or recipe.steps is not None:
        raise ConfigurationError("A run at one share is one arrival, whose steps the study sets, not the recipe.")
    return recipe


def load_curves(folder: str | Path) -> tuple[list[Curve], dict[str, Any]]:
    """The curves that :func:`measure` kept in a folder, by share, and the facts of the study that they belong to.

    Errors: :class:`~latewood.core.errors.CheckpointError` if it holds none.
    """
    folder = Path(folder)
    files = list((folder / _CURVES).glob("*.json"))
    if not files or not (folder / _MARKER).is_file():
        raise CheckpointError(f"{folder} holds no curves; `latewood mix plan --to {folder}` measures them.")
    return sorted(map(_read, files), key=lambda curve: curve.ratio), _marked(folder / _MARKER)


class AtShare(LanguageLearner):
    """Continual pre-training on the sources ``general`` and ``domain`` of an arrival, mixed at a domain share ``ratio``."""

    def __init__(self, backbone: CausalLM, ratio: float, recipe: TextRecipe = RECIPE) -> None:
        super().__init__(backbone, recipe)
        self.ratio = ratio

    def mixture(self, experience: Experience) -> Mixture:
        shares = {"general": 1 - self.ratio, "domain": self.ratio}
        return Mixture(by_source(experience.train), shares, batch_size=self.rows(), seed=self.mixture_seed)


class _Place:
    """The folder of a study: ``study.json`` says what is measured, ``curves/`` holds what is done."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        marker = folder / _MARKER
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; a study needs a folder.")
        if marker.exists():
            if difference := describe_difference(_marked(marker), facts):
                raise CheckpointError(f"{folder} holds another study: {difference}. Choose another folder or remove it.")
        else:
            if folder.exists() and any(p for p in folder.iterdir() if not is_temporary(p)):
                raise CheckpointError(f"{folder} holds files that are not a study's; choose an empty or a new folder.")
            write_atomically(marker, json.dumps(facts, indent=1))
        self._lock = lock(marker)
        sweep_temporaries(folder)

    def close(self) -> None:
        self._lock.close()

    def find(self, ratio: float) -> Curve | None:
        file = self._file(ratio)
        return _read(file) if file.exists() else None

    def keep(self, curve: Curve) -> None:
        write_atomically(self._file(curve.ratio), curve.to_json())
        shutil.rmtree(self.folder / "unfinished", ignore_errors=True)

    def unfinished(self, ratio: float) -> Shelf:
        return Shelf(self.folder / "unfinished" / f"{ratio!r}", self.folder / "files")

    def _file(self, ratio: float) -> Path:
        return self.folder / _CURVES / f"{float(ratio)!r}.json"


def _unseen(name: str, train: Data, seen: float) -> Data:
    first = math.ceil(seen * len(train)) if seen < 1 else int(seen)
    if first >= len(train):
        raise DataError(f"The corpus {name!r} has {len(train)} rows, of which {first} were seen; there is nothing to mix in.")
    if not first:
        return train
    # A table of its own: a view would have the fingerprint of the whole.
    rest = train[first:]
    return Data(tokens=rest.tensor("tokens"), bytes=rest.tensor("bytes")).named(f"{train.fingerprint()}/from-{first}")


def _curve(ratio: float, watch: Watch, warmup: int) -> Curve:
    steps, losses = watch.curve("domain", "loss")
    return Curve.measured(ratio, steps, losses, watch.curve("general", "loss")[1], warmup=warmup)


def _facts(
    model: CausalLM, sides: Mapping[str, Text], recipe: TextRecipe, every: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """All that decides the bits of the curves."""
    texts = {
        side: {"name": text.name, "train": text.train.fingerprint("tokens"), "held_out": text.held_out.fingerprint("tokens")}
        for side, text in sides.items()
    }
    told = asdict(recipe)
    del told["save_every"]
    length = int(sides["domain"].train[:1].tensor("tokens").shape[1])
    return {
        "model": weights_fingerprint(model),
        **texts,
        "recipe": json.loads(json.dumps(told)),
        "every": every,
        "seed": seed,
        "tokens_per_step": recipe.batch_size * length,
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def weights_fingerprint(model: CausalLM) -> str:
    """A hash of the names and values of all weights, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(f"{name} {Data(values=tensor.detach().cpu().reshape(1, -1)).fingerprint()};".encode())
    return digest.hexdigest()


def _marked(marker: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(marker.read_text())
    except ValueError as error:
        raise CheckpointError(f"{marker} is damaged ({error}); remove the folder or choose another.") from error
    return facts


def _read(file: Path) -> Curve:
    try:
        return Curve.from_json(file.read_text())
    except DataError as error:
        raise CheckpointError(f"{file} is damaged; remove it, and it is measured again.") from error
