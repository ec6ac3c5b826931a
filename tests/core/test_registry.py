"""The registry: every file of the floor plan is an entry, and so is what other packages bring."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import latewood
from latewood.core import registry
from latewood.core.errors import ConfigurationError
from latewood.core.registry import Entry, Kind, entries, find, nearest

ROOT = Path(latewood.__file__).parent
KINDS: tuple[Kind, ...] = ("learners", "streams", "nets")
FILES = [(kind, file) for kind in KINDS for file in sorted(ROOT.glob(f"*/{kind}/*.py")) if not file.name.startswith("_")]


@dataclass(frozen=True)
class Point:
    """What an installed package declares."""

    name: str
    module: str
    attr: str


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Point]]]:
    """What other packages bring, by the group of their entry points; fill it before asking."""
    points: dict[str, list[Point]] = {}

    def entry_points(*, group: str) -> Sequence[Point]:
        return points.get(group, [])

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry._all.cache_clear()
    yield points
    registry._all.cache_clear()


# What is in the house


def test_there_are_files_to_find() -> None:
    assert {kind for kind, _ in FILES} == set(KINDS)
    assert len(FILES) >= 15


@pytest.mark.parametrize(("kind", "file"), FILES, ids=[f"{file.parents[1].name}-{kind}-{file.stem}" for kind, file in FILES])
def test_every_file_is_an_entry_with_the_first_line_of_its_docstring(kind: Kind, file: Path) -> None:
    wing = file.parents[1].name
    entry = find(kind, file.stem, wing)
    assert (entry.kind, entry.wing) == (kind, wing)
    assert entry.name.replace("-", "_").replace("+", "p") == file.stem.rstrip("_")
    assert entry.module == f"latewood.{wing}.{kind}.{file.stem}"
    first = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
    assert entry.summary == first
    assert len(first) > 10
    assert first.endswith(".")


@pytest.mark.parametrize(("kind", "file"), FILES, ids=[f"{file.parents[1].name}-{kind}-{file.stem}" for kind, file in FILES])
def test_every_file_defines_the_public_thing_that_it_is_named_after(kind: Kind, file: Path) -> None:
    """Read, not imported: networks take seconds."""
    names = [n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    assert file.stem.replace("_", "") in [name.replace("_", "").lower() for name in names]


def test_nothing_else_is_an_entry(installed: dict[str, list[Point]]) -> None:
    assert sum(len(entries(kind)) for kind in KINDS) == len(FILES)
    assert not any(entry.name.startswith(("_", "-")) for kind in KINDS for entry in entries(kind))


def test_entries_are_sorted_by_wing_and_name() -> None:
    names = [(e.wing, e.name) for e in entries("learners")]
    assert names == sorted(names)
    assert {e.wing for e in entries("learners", "images")} == {"images"}
    assert entries("learners", "cooking") == [e for e in entries("learners") if not e.wing]


def test_loading_gives_the_class_that_the_file_is_named_after() -> None:
    from latewood.images.learners.finetune import Finetune
    from latewood.images.learners.g_acil import GACIL

    assert find("learners", "finetune").load() is Finetune
    assert find("learners", "g-acil").load() is GACIL


def test_listing_imports_no_method() -> None:
    modules = {e.module for e in entries("learners")}
    before = modules & set(sys.modules)
    assert all(e.summary for e in entries("learners"))
    assert modules & set(sys.modules) == before


# Names


@pytest.mark.parametrize("name", ["derpp", "der++", "DER++", "DerPP"])
def test_a_plus_stands_for_p_and_capitals_do_not_matter(name: str) -> None:
    assert find("learners", name).module == "latewood.images.learners.derpp"


@pytest.mark.parametrize("name", ["g-acil", "g_acil", "G-ACIL"])
def test_underlines_and_hyphens_are_one(name: str) -> None:
    assert find("learners", name, "images").name == "g-acil"


@pytest.mark.parametrize(
    ("wrong", "right"), [("repla", "replay"), ("finetun", "finetune"), ("gacil", "g-acil"), ("FineTuning", "finetune")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"There is no learner '{wrong}' \(did you mean '{right}'\?\)"):
        find("learners", wrong)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(ConfigurationError, match=r"There is no learner 'xyzzyx' for images \(there are: .*finetune, .*replay"):
        find("learners", "xyzzyx", "images")
    with pytest.raises(ConfigurationError, match="There is no stream 'qqq'"):
        find("streams", "qqq")


def test_hints_for_names() -> None:
    assert nearest("lrr", ["lr", "momentum"]) == " (did you mean 'lr'?)"
    assert nearest("zzz", ["b", "a", "a"]) == " (there are: a, b)"
    assert nearest("zzz", []) == ""


# What other packages bring


def test_another_package_adds_to_a_wing_or_to_all(installed: dict[str, list[Point]]) -> None:
    installed["latewood.learners"] = [
        Point("images/Prompt_Pool", "collections", "OrderedDict"),
        Point("anywhere", "collections", "Counter"),
    ]
    import collections

    assert find("learners", "prompt-pool", "images").load() is collections.OrderedDict
    assert find("learners", "anywhere", "images").load() is collections.Counter
    assert find("learners", "anywhere", "speech").wing == ""
    with pytest.raises(ConfigurationError, match="There is no learner 'prompt-pool' for speech"):
        find("learners", "prompt-pool", "speech")
    assert find("learners", "prompt-pool").summary.startswith("This module implements specialized container datatypes")


def test_nothing_of_another_package_is_imported_until_it_is_used(installed: dict[str, list[Point]]) -> None:
    installed["latewood.nets"] = [Point("images/broken", "a_package_that_is_not_there", "net")]
    entry = find("nets", "broken")
    assert entry.module == "a_package_that_is_not_there"
    assert entry.summary == ""
    with pytest.raises(ModuleNotFoundError):
        entry.load()


@pytest.mark.parametrize("module", ["no_such_package.learners.method", "math", "sys"])
def test_a_listing_survives_what_can_not_be_read(installed: dict[str, list[Point]], module: str) -> None:
    """A broken package, a module written in C, a built-in one."""
    installed["latewood.learners"] = [Point("images/odd", module, "x")]
    assert find("learners", "odd").summary == ""


def test_a_name_in_two_wings_needs_the_wing(installed: dict[str, list[Point]]) -> None:
    installed["latewood.learners"] = [Point("speech/replay", "collections", "Counter")]
    with pytest.raises(
        ConfigurationError, match="The learner 'replay' exists for images and language and speech; the stream decides which"
    ):
        find("learners", "replay")
    assert find("learners", "replay", "speech").module == "collections"
    assert find("learners", "replay", "images").module == "latewood.images.learners.replay"


def test_a_name_that_another_package_takes_twice_is_told_with_where(installed: dict[str, list[Point]]) -> None:
    """The wing can't tell them apart, so the sentence must name the modules."""
    installed["latewood.learners"] = [Point("images/replay", "collections", "Counter")]
    with pytest.raises(ConfigurationError, match=r"latewood\.images\.learners\.replay and collections"):
        find("learners", "replay", "images")


def test_a_file_without_the_thing_it_is_named_after_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"json\.decoder must define a class or function with the name of its file"):
        Entry("learners", "decoder", "", "json.decoder").load()
