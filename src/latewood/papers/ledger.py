"""The ledger of papers: what each one is, where it lives, and its claims as checks that can be run.

Every paper has one module in this package, ``p<number>_<name>.py``, that defines ``PAPER``. Listing them imports nothing
heavy; what a claim needs is imported when it is checked.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest

DATA = "LATEWOOD_DATA"
"""The environment variable that names the folder with the data sets that claims need."""


@dataclass(frozen=True)
class Verdict:
    """What checking a claim gave: whether it holds here, the measured numbers by name, and one sentence that says so.

    >>> Verdict(False, {"replay": 0.71, "fine-tuning": 0.74}, "Replay is 3 points below fine-tuning.").holds
    False
    """

    holds: bool
    numbers: Mapping[str, float]
    sentence: str


@dataclass(frozen=True)
class Claim:
    """One claim of a paper as an executable check.

    ``name`` is a short slug and ``statement`` says in one sentence what the paper claims. ``check`` runs the comparison at
    a small scale and imports what it needs itself. ``needs`` names the data it reads beyond the embedded digits, as a
    folder under ``LATEWOOD_DATA`` (empty: none).

    >>> Claim("order", "The order of arrivals changes nothing.", lambda: Verdict(True, {"gap": 0.0}, "Equal.")).check().holds
    True
    """

    name: str
    statement: str
    check: Callable[[], Verdict]
    needs: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper and its place in Latewood.

    ``name`` is its slug, unique like its ``number``. ``kind`` is ``learner``, ``scenario``, ``protocol`` or ``system``, or
    several of them joined by " + ", the main one first. ``arxiv`` is the identifier there. ``summary`` is one sentence
    on what Latewood does with the paper once it is built. ``code`` lists what implements it as dotted paths, such as
    ``latewood.images.learners.g_acil:GACIL``.

    >>> find("g-acil").number
    23
    """

    number: int
    name: str
    title: str
    kind: str
    arxiv: str
    summary: str
    code: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def built(self) -> bool:
        """Whether there is code for it and at least one claim that checks it."""
        return bool(self.code and self.claims)


@dataclass(frozen=True)
class Result:
    """One claim after :func:`run_claims`: its verdict, or no verdict and the ``reason`` why it was skipped.

    ``seconds`` is the wall-clock time of the check, 0 where it was skipped.

    >>> claim = Claim("speed", "It is fast.", lambda: Verdict(True, {}, "It is."), needs="omniglot-small")
    >>> Result(claim, None, "The data is not here.").verdict is None
    True
    """

    claim: Claim
    verdict: Verdict | None
    reason: str = ""
    seconds: float = 0.0


def papers() -> list[Paper]:
    """All papers, by number.

    >>> [paper.name for paper in papers()][:2]
    ['neus2', 'pscodec']
    """
    files = Path(__file__).parent.glob("p[0-9][0-9]_*.py")
    found: list[Paper] = [importlib.import_module(f"{__package__}.{file.stem}").PAPER for file in files]
    return sorted(found, key=lambda paper: paper.number)


def find(name: str) -> Paper:
    """The paper with this slug or number; upper case and ``_`` for ``-`` do not matter.

    Errors: :class:`ConfigurationError` with the nearest names if there is none.

    >>> find("25") == find("FeTrIL")
    True
    """
    wanted, known = name.strip().lower().replace("_", "-"), papers()
    for paper in known:
        if wanted == paper.name or (wanted.isdecimal() and int(wanted) == paper.number):
            return paper
    if wanted.isdecimal():
        raise ConfigurationError(f"There is no paper {name!r} (their numbers go from {known[0].number} to {known[-1].number}).")
    raise ConfigurationError(f"There is no paper {name!r}{nearest(wanted, (paper.name for paper in known))}.")


def run_claims(paper: Paper) -> list[Result]:
    """Check a paper's claims one after the other, in its own order; a claim whose data is not here is skipped.

    An error inside a check is a defect, not a verdict: it is raised.
    """
    return [_run(claim) for claim in paper.claims]


def _run(claim: Claim) -> Result:
    reason = _missing(claim.needs)
    if reason:
        return Result(claim, None, reason)
    start = time.perf_counter()
    verdict = claim.check()
    return Result(claim, verdict, seconds=time.perf_counter() - start)


def _missing(needs: str) -> str:
    """Why the data of a claim cannot be read, in one sentence; empty if it can."""
    if not needs:
        return ""
    root = os.environ.get(DATA)
    if not root:
        return f"It needs the data set {needs!r}; set {DATA} to the folder that holds it."
    if not Path(root, needs).is_dir():
        return f"It needs the data set {needs!r}, which is not in {root} ({DATA})."
    return ""
