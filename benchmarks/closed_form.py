"""What an analytic update costs: G-ACIL's recursion against the bare matrix products that it cannot avoid.

An update of n rows at width D cannot do without X R (2 n D^2 FLOPs) and the rank-n change of R (2 n D^2). The ratio is of
the whole update (with Cholesky factor, triangular solve, weights) to these two, in one process, in turn. Then the time of
an arrival is followed over many arrivals: it must not grow.

    python benchmarks/closed_form.py [--width 2000] [--arrivals 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.parts.statistics import RecursiveRidge

CLASSES = 100


def bare_products(rows: Tensor, inverse: Tensor) -> None:
    """The two products with a matrix of the inverse's size."""
    projected = rows @ inverse
    inverse.addmm_(projected.T, projected, alpha=-1e-12)


def update_against_products(width: int, batch: int, rounds: int) -> dict[str, float]:
    chance = torch.Generator().manual_seed(0)
    ridge = RecursiveRidge(width, gamma=1.0)
    inverse = torch.eye(width, dtype=torch.float64)
    ratios = []
    for number in range(rounds + 1):
        rows = F.relu(torch.randn(batch, width, generator=chance, dtype=torch.float64))
        targets = F.one_hot(torch.randint(0, CLASSES, (batch,), generator=chance), CLASSES).double()
        start = time.perf_counter()
        ridge.update(rows, targets)
        middle = time.perf_counter()
        bare_products(rows, inverse)
        end = time.perf_counter()
        if number:
            ratios.append((middle - start) / (end - middle))
    return {"batch": batch, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def growth(width: int, arrivals: int, samples: int) -> dict[str, float]:
    """Seconds of an arrival early and late: medians of the first and the last quarter."""
    chance = torch.Generator().manual_seed(0)
    ridge = RecursiveRidge(width, gamma=1.0)
    seconds = []
    for _ in range(arrivals + 1):
        rows = F.relu(torch.randn(samples, width, generator=chance, dtype=torch.float64))
        targets = F.one_hot(torch.randint(0, CLASSES, (samples,), generator=chance), CLASSES).double()
        start = time.perf_counter()
        ridge.update(rows, targets)
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]
    quarter = max(1, arrivals // 4)
    early, late = statistics.median(seconds[:quarter]), statistics.median(seconds[-quarter:])
    return {"arrivals": arrivals, "early seconds": early, "late seconds": late, "late/early": late / early}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--arrivals", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = {
        "width": arguments.width,
        "update against products": [update_against_products(arguments.width, batch, 7) for batch in (64, 256, 512, 1024)],
        "growth": growth(arguments.width, arguments.arrivals, 256),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
