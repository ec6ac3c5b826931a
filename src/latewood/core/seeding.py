"""Randomness with a name: seeds derived from what they are for, and scopes that leave the global state as it was."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: object) -> int:
    """A 63-bit seed that depends on every part of ``key`` and on nothing else.

    >>> derive_seed(0, "learn", 3) == derive_seed(0, "learn", 3)
    True
    >>> derive_seed(0, "learn", 3) == derive_seed(0, "learn", 4)
    False
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`. Indices are always drawn on the CPU, so every device sees the same."""
    return torch.Generator().manual_seed(derive_seed(*key))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block; restore them after it.

    For code that draws from global state and takes no generator (layer initialisation, dropout, augmentation
    libraries): inside the block it is repeatable, and outside nobody notices that it ran.
    """
    seed = derive_seed(*key)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for its deterministic algorithms inside the block (a warning where an operation has none)."""
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Otherwise cuBLAS may split a sum differently from call to call; it reads this when its handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
