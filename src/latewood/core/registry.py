"""Names of learners, streams and nets: found by the floor plan, imported only when used, open to other packages.

Every wing has the folders ``learners/``, ``streams/`` and ``nets/``, and every file in them is one entry, named after the
file (``g_acil.py`` is ``g-acil``, ``derpp.py`` is ``der++``): adding a method is adding a file, and removing the file
removes it without a trace. Another package adds its own
through an entry point in the group ``latewood.learners``, ``latewood.streams`` or ``latewood.nets``, named
``wing/name`` or just ``name`` (open to every wing).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from latewood.core.errors import ConfigurationError

Kind = Literal["learners", "streams", "nets"]


@dataclass(frozen=True)
class Entry:
    """One thing that can be named: its name, its wing (empty: any), and where it is defined."""

    kind: Kind
    name: str
    wing: str
    module: str
    attribute: str = ""

    def load(self) -> Any:
        """Import it: the class or function that the file is for, which is the public one named like the file."""
        module = importlib.import_module(self.module)
        if self.attribute:
            return getattr(module, self.attribute)
        wanted = module.__name__.rsplit(".", 1)[1].replace("_", "")
        for name, value in vars(module).items():
            if name.replace("_", "").lower() == wanted and getattr(value, "__module__", None) == module.__name__:
                return value
        raise ConfigurationError(f"{self.module} must define a class or function with the name of its file.")

    @property
    def summary(self) -> str:
        """The first line of its module's docstring, read without importing anything."""
        try:
            spec = importlib.util.find_spec(self.module)
            text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) if spec and spec.origin else None
        except (ImportError, OSError, ValueError, SyntaxError):
            return ""  # another package's entry that is broken or has no source: the listing goes on
        return (text or "").split("\n")[0]


def entries(kind: Kind, wing: str | None = None) -> list[Entry]:
    """All entries of a kind, those of one wing if it is named, sorted by name."""
    found = [e for e in _all(kind) if wing is None or e.wing in ("", wing)]
    return sorted(found, key=lambda e: (e.wing, e.name))


def find(kind: Kind, name: str, wing: str | None = None) -> Entry:
    """The entry called ``name``, in any spelling of upper and lower case, ``-`` and ``_``, ``+`` and ``p``.

    Errors: :class:`ConfigurationError` with the nearest names if there is none, or with the wings if there are several.

    >>> find("learners", "der++").module
    'latewood.images.learners.derpp'
    """
    candidates = entries(kind, wing)
    matches = [e for e in candidates if same(e.name, name)]
    if not matches:
        hint = nearest(name.lower(), (e.name for e in candidates))
        raise ConfigurationError(f"There is no {kind[:-1]} {name!r}{f' for {wing}' if wing else ''}{hint}.")
    if len(matches) > 1:
        if len({e.wing for e in matches}) < len(matches):
            modules = " and ".join(e.module for e in matches)
            raise ConfigurationError(f"The {kind[:-1]} {name!r} is defined by {modules}; only one of them can stay.")
        wings = " and ".join(e.wing for e in matches)
        raise ConfigurationError(f"The {kind[:-1]} {name!r} exists for {wings}; the stream decides which is meant.")
    return matches[0]


def same(name: str, other: str) -> bool:
    """Whether two spellings name one thing.

    >>> same("der++", "DERpp")
    True
    """
    return _normal(name) == _normal(other)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to put behind "there is no …": the nearest known name, or all of them if none is near."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (there are: {', '.join(names)})" if names else ""


@cache
def _all(kind: Kind) -> tuple[Entry, ...]:
    root = Path(__file__).parents[1]
    package = __package__.split(".")[0]
    own = [
        Entry(kind, _name(file.stem), folder.parent.name, f"{package}.{folder.parent.name}.{kind}.{file.stem}")
        for folder in sorted(root.glob(f"*/{kind}"))
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_")
    ]
    others = []
    for point in entry_points(group=f"{package}.{kind}"):
        wing, _, name = point.name.rpartition("/")
        others.append(Entry(kind, name, wing, point.module, point.attr))
    return (*own, *others)


def _name(stem: str) -> str:
    # A name that Python keeps for itself has an underscore behind it as a file.
    return re.sub("pp$", "++", stem.rstrip("_").replace("_", "-"))


def _normal(name: str) -> str:
    return name.lower().replace("+", "p").rstrip("_").replace("_", "-")
