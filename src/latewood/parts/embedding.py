"""A frozen backbone, and the cache that lets it see each sample once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import CheckpointError
from latewood.core.files import cache_folder, write_atomically
from latewood.core.progress import current_progress
from latewood.parts.backbone import Backbone

#: Rows are always embedded in whole blocks of this many neighbours of their table. The last bits of a matrix product
#: depend on the batch it is part of; with fixed blocks an embedding is the same whoever asks for it, and in what order.
_BLOCK = 256
#: The embeddings of so many tables stay in memory, those used last.
_TABLES = 8


class Encoder(nn.Module):
    """A backbone that never changes: evaluation mode for good, no gradient, each sample embedded once.

    Embeddings are kept on disk by block of rows, under a key made of the backbone's weights and settings, the contents
    of the column, the device and the version of torch: another backbone, preprocessing or data set never hits. A block
    is written under a temporary name and renamed, so any number of processes may fill the cache at once.

    The weights are not part of ``state_dict()``, which holds only their fingerprint: a checkpoint of a learner on a
    frozen backbone stays small, and loading it onto another backbone is refused.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # Not registered as a child: its weights belong to no checkpoint, no optimiser and no mode switch.
        object.__setattr__(self, "backbone", backbone.freeze())
        self._fingerprint = ""
        self._versions: tuple[tuple[int, int], ...] = ((0, 0),)
        self._tables: dict[str, dict[int, tuple[Tensor, int]]] = {}

    backbone: Backbone

    @property
    def width(self) -> int:
        """The number of features."""
        return self.backbone.width

    @property
    def fingerprint(self) -> str:
        """A hash of the backbone's class, settings, weights and buffers (computed again only where one was written to)."""
        tensors = dict((*self.backbone.named_parameters(), *self.backbone.named_buffers()))
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors.values())
        if versions != self._versions:
            kind = type(self.backbone)
            facts = (kind.__module__, kind.__qualname__, sorted(self.backbone.settings.items()))
            digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
            for name, value in tensors.items():
                digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._fingerprint, self._versions = digest.hexdigest(), versions
        return self._fingerprint

    @torch.no_grad()
    def forward(self, data: Data) -> Tensor:
        """Features of shape ``(len(data), width)``, float32, on the backbone's device. Charged to the meter at full price."""
        if self.backbone.cheap:
            return self.backbone(self.backbone.prepare(data)).float()  # type: ignore[no-any-return]
        rows = data.rows
        features = torch.empty(len(rows), self.width)
        meter, progress = current_meter(), current_progress()
        numbers = torch.div(rows, _BLOCK, rounding_mode="floor")
        wanted = numbers.unique().tolist()
        progress.phase("embedding", len(wanted))
        with meter.uncounted():
            flops = 0
            for number in wanted:
                mine = (numbers == number).nonzero().flatten()
                block, price = self._block(data.base, number)
                features[mine] = block[rows[mine] - number * _BLOCK]
                flops += price * len(mine)
                progress.step()
        meter.charge(flops)
        return features.to(self._device)

    def named_modules(self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        """Shows the backbone to whoever lists modules or parameters, though it is no child."""
        memo = set() if memo is None else memo
        yield from super().named_modules(memo, prefix, remove_duplicate)
        yield from self.backbone.named_modules(memo, f"{prefix}.backbone" if prefix else "backbone", remove_duplicate)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.backbone._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def _device(self) -> torch.device:
        return next((t.device for t in (*self.backbone.parameters(), *self.backbone.buffers())), torch.device("cpu"))

    def _block(self, base: Data, number: int) -> tuple[Tensor, int]:
        """The embeddings of one block of a table, and the FLOPs that each of its rows costs."""
        key = self._key(base)
        blocks = self._tables.pop(key, {})
        self._tables[key] = blocks  # the last is the newest
        while len(self._tables) > _TABLES:
            del self._tables[next(iter(self._tables))]
        if number in blocks:
            return blocks[number]
        # A table of less than a block, such as a photo to predict, is not worth a file.
        folder = cache_folder("embeddings") if len(base) >= _BLOCK else None
        path = folder / key / f"{number:07d}.safetensors" if folder else None
        found = _read(path) if path else None
        if found is None:
            found = self._embed(base[number * _BLOCK : (number + 1) * _BLOCK])
            if path:
                facts = {"flops_per_row": str(found[1]), "blake2b": _checksum(found[0])}
                write_atomically(path, save({"features": found[0]}, facts))
        blocks[number] = found
        return found

    def _embed(self, rows: Data) -> tuple[Tensor, int]:
        with FlopCounterMode(display=False) as counter:
            features = self.backbone(self.backbone.prepare(rows)).float().cpu().contiguous()
        return features, counter.get_total_flops() // len(rows)

    def _key(self, base: Data) -> str:
        contents = base.fingerprint(self.backbone.column)
        facts = (self.fingerprint, contents, self._device.type, torch.__version__, torch.get_num_threads())
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    def get_extra_state(self) -> Tensor:
        """The fingerprint as a tensor, so that a checkpoint knows which backbone it belongs to."""
        return torch.frombuffer(bytearray(bytes.fromhex(self.fingerprint)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Errors: :class:`~latewood.core.errors.CheckpointError` if the state was saved with another backbone."""
        if bytes(state.tolist()).hex() != self.fingerprint:
            raise CheckpointError("This state was saved with another frozen backbone; give the learner the same one again.")


def _read(path: Path) -> tuple[Tensor, int] | None:
    try:
        with safe_open(path, framework="pt") as file:
            features, facts = file.get_tensor("features"), file.metadata()
        whole = facts["blake2b"] == _checksum(features)
        return (features, int(facts["flops_per_row"])) if whole else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # not there yet, or damaged: it is computed again


def _checksum(features: Tensor) -> str:
    return hashlib.blake2b(features.contiguous().numpy().data, digest_size=16).hexdigest()
