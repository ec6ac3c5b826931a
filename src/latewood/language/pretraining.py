"""Pre-training: a language model from random weights, or on from a checkpoint, as a folder in the hub's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latewood.core.errors import StorageError
from latewood.core.record import Record
from latewood.core.run import discard, run
from latewood.core.seeding import seeded
from latewood.language.corpora import load_tokenizer
from latewood.language.learners.continue_ import Continue
from latewood.language.nets import default_backbone
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.language.streams.text import text
from latewood.parts.backbone import build_backbone
from latewood.parts.pretrained import save_checkpoint

#: The file of a model folder that tells how it was made.
CARD = "latewood.json"


def pretrain_text(
    corpora: str,
    to: str | Path,
    *,
    tokenizer: str = "bytes",
    length: int = 256,
    blocks: int | None = None,
    held_out: int | None = None,
    backbone: str | Mapping[str, Any] | None = None,
    recipe: TextRecipe = TextRecipe(save_every=500),
    seed: int = 0,
    device: str = "auto",
) -> Record:
    """Train a causal language model on corpora and write it to the new folder ``to``.

    ``corpora`` is the data set of a :func:`~latewood.language.streams.text.text` stream (``en+fr``: both at once;
    ``en,fr``: one after the other), ``backbone`` settings of :func:`~latewood.language.nets.causal.causal` (``name``: a
    checkpoint to go on from). The folder holds the weights, the tokenizer (but for ``bytes``, which needs no file) and
    ``latewood.json``, which tells how it was made. Until it is done the work lies beside it in ``<to>.run``, from which
    the same call continues.

    Errors: :class:`~latewood.core.errors.StorageError` if there is such a folder already; those of the stream, the net and
    the run.
    """
    folder = Path(to)
    if folder.exists():
        raise StorageError(f"{folder} exists already; name a new folder for the model.")
    stream = text(corpora, tokenizer=tokenizer, length=length, blocks=blocks, held_out=held_out, seed=seed)
    words = load_tokenizer(tokenizer)
    wanted: dict[str, Any] = {"name": backbone} if isinstance(backbone, str) else dict(backbone or {})
    if "name" not in wanted:
        wanted = {"vocabulary": words.size, "context": max(length, 4096), **wanted}
    with seeded(seed, "initial weights"):
        net = build_backbone(wanted, "language", stream.example, lambda: default_backbone(Continue, stream.example))
    assert isinstance(net, CausalLM)
    work = folder.with_name(f"{folder.name}.run")
    record = run(Continue(net, recipe), stream, to=work, seed=seed, device=device)
    own = [words] if hasattr(words, "save_pretrained") else []
    save_checkpoint(folder, [net.to("cpu").network, *own], {CARD: record.to_json()})
    discard(work)
    return record
