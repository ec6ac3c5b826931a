"""The documentation is true: its Python runs and prints what it says, its commands exist, its tables are complete."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer

from latewood import Recipe
from latewood.cli.main import app
from latewood.core import configure, registry
from latewood.studies.assemble import stream_entry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

_FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "console")

_NUMBER = re.compile(r"-?\d+(?:\.\d*)?")


class Block(NamedTuple):
    """A fenced block: its language, whether it shows what the block before it printed, its title, its text."""

    language: str
    output: bool
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = []
    for fence in _FENCE.finditer(page.read_text(encoding="utf-8")):
        info = fence["info"].strip("{} ")
        title = re.search(r'title="([^"]+)"', info)
        found.append(Block(info.split()[0].lstrip("."), ".output" in info, title[1] if title else "", fence["text"]))
    return found


def _name(page: Path) -> str:
    return str(page.relative_to(DOCS))


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, from which modules can be imported; what was imported from it is forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    random_state = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(random_state)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _write_titled(block: Block, folder: Path) -> None:
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=_name)
def test_python_runs_and_prints_what_the_page_shows(page: Path, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block, following in pairwise([*blocks(page), Block("", False, "", "")]):
        if block.language != "python":
            continue
        _write_titled(block, workshop)
        capsys.readouterr()
        exec(compile(block.text, f"{_name(page)}: {block.text.splitlines()[0]}", "exec"), names)
        if following.output:
            _assert_alike(capsys.readouterr().out, following.text)


def _assert_alike(printed: str, shown: str) -> None:
    """Equal but for decimals, which other processors round otherwise and trainings amplify."""

    def words(text: str) -> str:
        return " ".join(_NUMBER.sub("0", re.sub(r"(?<=[\[\d.])\s+(?=[\]])", "", text)).split())

    assert words(printed) == words(shown), f"printed:\n{printed}\nshown:\n{shown}"
    for here, there in zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=True):
        if "." in here or "." in there:
            assert float(here) == pytest.approx(float(there), rel=0.1, abs=0.15), f"printed:\n{printed}\nshown:\n{shown}"


# Commands -------------------------------------------------------------------------------------------------------------


def command_lines(block: Block) -> list[list[str]]:
    """The commands of a shell block, as lists of words; redirections and comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    parsed = [shlex.split(line.split(" > ")[0], comments=True) for line in lines]
    return [words for words in parsed if words]


COMMANDS = [
    pytest.param(words, id=f"{_name(page)}: {' '.join(words)[:70]}")
    for page in PAGES
    for block, following in pairwise([*blocks(page), Block("", False, "", "")])
    if block.language in SHELLS and not following.text.startswith("Error: ")  # those are shown because they are wrong
    for words in command_lines(block)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words: list[str], own_package: None) -> None:
    program, *arguments = words
    if program == "latewood":
        _check_latewood(arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
        options = re.findall(r'"(--[a-z-]+)"', (ROOT / arguments[0]).read_text())
        assert {word for word in arguments if word.startswith("--")} <= set(options)
    elif program == "pip":
        assert arguments[0] == "install"
        assert all((ROOT / path).is_file() for flag, path in pairwise(arguments) if flag == "-c")
    else:
        assert program in ("python3", "source"), f"Nobody checks {program!r}."


def _check_latewood(arguments: list[str]) -> None:
    """Parse a command line as the program does, without running it; then look up what its words name."""
    group: Any = typer.main.get_command(app)
    if arguments[0].startswith("-"):  # options such as --install-completion act as soon as they are parsed
        assert arguments[0] in {option for parameter in group.params for option in parameter.opts}
        return
    context = group.make_context("latewood", ["methods"])
    command = group.get_command(context, arguments[0])
    assert command is not None, f"There is no command {arguments[0]!r}."
    rest = arguments[1:]
    if hasattr(command, "commands"):
        context = command.make_context(arguments[0], rest, parent=context)
        command, rest = command.commands[rest[0]], rest[1:]
    given = command.make_context(arguments[0], rest, parent=context).params
    if arguments[0] in ("run", "compare"):
        _check_names(given)
    elif arguments[0] == "streams" and given["name"]:
        settings = configure.parse_assignments(given["set"] or [])
        _check_settings(stream_entry(given["name"])[0], settings.get("stream", settings))
    elif arguments[0] == "check" and given["paper"]:
        from latewood.papers.ledger import find

        assert find(given["paper"])


def _check_names(given: dict[str, Any]) -> None:
    """The methods, the scenario, the network and every parameter of a command exist."""
    methods = given.get("methods") or [given["method"]]
    if given["preset"] is not None:
        from latewood.studies.presets import find_preset

        given["stream"] = given["stream"] or find_preset(given["preset"], methods)[0]
    stream, _ = stream_entry(given["stream"])
    entries = [registry.find("learners", method, stream.wing) for method in methods]
    settings = configure.parse_assignments(given["set"] or [])
    if given["config"] is not None:
        settings = configure.merged(_configuration(given["config"]), settings)
    _check_settings(stream, settings.pop("stream", {}))
    backbone = settings.pop("backbone", {})
    backbone = {"name": backbone} if isinstance(backbone, str) else backbone
    if backbone:
        on_hub = "/" in backbone["name"]
        hub = "hub" if stream.wing == "images" else "causal"
        net = registry.find("nets", hub if on_hub else backbone.get("name", hub), stream.wing)
        assert set(backbone) - {"name"} <= configure.settable(net.load())
    for entry in entries:
        own = settings.pop(entry.name, {})
        assert set(own) <= configure.settable(entry.load())
    for name in settings:
        assert any(name in configure.settable(entry.load()) for entry in entries), f"No method has {name!r}."


def _check_settings(entry: registry.Entry, settings: dict[str, Any]) -> None:
    assert set(settings) <= configure.settable(entry.load())


def _configuration(path: Path) -> dict[str, Any]:
    """A TOML file of the repository, or the block of a page that has its name as a title."""
    if (ROOT / path).is_file():
        return configure.read_toml(ROOT / path)
    titled = {block.title: block.text for page in PAGES for block in blocks(page) if block.language == "toml"}
    return tomllib.loads(titled[str(path)])


SHOWN = [
    pytest.param(block, shown, id=" ".join(block.text.split()))
    for page in PAGES
    for block, shown in pairwise(blocks(page))
    if block.language in SHELLS and shown.output
]


@pytest.mark.parametrize(("block", "shown"), SHOWN)
def test_commands_print_what_the_page_shows(block: Block, shown: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in command_lines(block):
        try:
            app(words[1:], standalone_mode=False)
        except Exception as error:
            print(f"Error: {error}")
    assert capsys.readouterr().out.rstrip() == shown.text.rstrip()


# Another package ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_package(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package that the page on extending builds, as if it were installed."""
    points: dict[str, dict[str, str]] = {}
    for block in blocks(DOCS / "extend.md"):
        _write_titled(block, workshop)
        if block.title == "pyproject.toml":
            points = tomllib.loads(block.text)["project"]["entry-points"]
    information = workshop / "my_methods-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 0.1\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{name} = {path}" for name, path in of_it.items())]) for group, of_it in points.items()
    ]
    (information / "entry_points.txt").write_text("\n".join(sections))
    importlib.invalidate_caches()
    registry._all.cache_clear()
    yield
    monkeypatch.undo()
    registry._all.cache_clear()


def test_the_package_of_the_page_is_found_by_its_entry_points(own_package: None) -> None:
    from latewood.studies.compare import compare

    records = compare(["er-ace", "naive-bayes"], "fading-digits", settings={"memory": "50", "epochs": "1", "smoothing": "0.1"})
    assert [record.config["method"] for record in records] == ["er-ace", "naive-bayes"]
    assert all(record.complete for record in records)
    assert {"er-ace", "naive-bayes"} <= {entry.name for entry in registry.entries("learners", "images")}


# Tables and files -----------------------------------------------------------------------------------------------------


def section(page: Path, title: str, level: int) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^{'#' * level} {re.escape(title)}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{_name(page)} has no section {title!r}."
    return found[1]


def _rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without head and without the marks of code."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row, below in pairwise([*rows, [""]]) if not _is_rule(row) and not _is_rule(below)]


def _is_rule(row: list[str]) -> bool:
    return bool(row[0]) and set("".join(row)) <= {"-", ":"}


def _shown(default: object) -> str:
    """A default value as the tables write it."""
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or isinstance(default, bool):
        return str(default).lower()
    return f"{default:.10f}".rstrip("0") if isinstance(default, float) and 0 < default < 1e-3 else str(default)


@pytest.mark.parametrize("wing", ["images", "language"])
def test_every_method_of_a_wing_is_described_with_its_parameters(wing: str) -> None:
    for entry in registry.entries("learners", wing):
        wanted = {
            name: _shown(parameter.default)
            for name, parameter in configure.parameters_of(entry.load()).items()
            if name not in ("backbone", "recipe")
        }
        found = {row[0]: row[1] for row in _rows(section(DOCS / f"{wing}.md", entry.name, 3))}
        assert found == wanted, entry.name


@pytest.mark.parametrize("wing", ["images", "language"])
def test_every_preset_of_a_wing_is_shown_as_a_command(wing: str) -> None:
    text = (DOCS / f"{wing}.md").read_text()
    for entry in registry.entries("learners", wing):
        for name in entry.load().presets:
            assert f"latewood run {entry.name} --preset {name}\n" in text


def test_every_field_of_the_recipe_is_described() -> None:
    usual = Recipe(epochs=5)  # what every gradient learner begins with
    wanted = {field.name: _shown(getattr(usual, field.name)) for field in dataclasses.fields(Recipe)}
    assert {row[0]: row[1] for row in _rows(section(DOCS / "images.md", "recipe", 3))} == wanted


def test_every_scenario_is_described() -> None:
    text = (DOCS / "images.md").read_text()
    titles = {name for line in re.findall(r"^### (.+)$", text, re.MULTILINE) for name in line.split(", ")}
    assert {entry.name for entry in registry.entries("streams", "images")} <= titles


def test_every_network_is_described_with_its_settings() -> None:
    described = {row[0]: row[2] for row in _rows(section(DOCS / "images.md", "Networks", 2)) if len(row) == 3}
    for entry in registry.entries("nets", "images"):
        parameters = configure.parameters_of(entry.load())
        given = (
            name if p.default is inspect.Parameter.empty else f"{name}={_shown(p.default)}"
            for name, p in parameters.items()
            if name != "example"
        )
        assert described[entry.name] == ", ".join(given)


def _commands() -> dict[str, Any]:
    """Every command by its name, those of a group with the group's before it: ``mix plan``."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= {f"{name} {inner}": one for inner, one in getattr(command, "commands", {}).items()} or {name: command}
    return found


@pytest.mark.parametrize("name", sorted(_commands()))
def test_every_option_of_every_command_is_described(name: str) -> None:
    command = _commands()[name]
    options = {o for p in command.params for o in p.opts if p.param_type_name == "option" and o not in ("-h", "--help")}
    arguments = {p.name.upper() for p in command.params if p.param_type_name == "argument"}
    rows = _rows(section(DOCS / "cli.md", name, 2))
    assert {word.strip() for row in rows for word in row[0].split(",")} == options | arguments


def test_every_command_has_a_section() -> None:
    titles = re.findall(r"^## (.+)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert set(_commands()) <= set(titles)


def test_navigation_and_pages_agree() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text()
    navigation = configuration[configuration.index("\nnav:") :]
    named = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    left_out = set(re.findall(r"^  (\S+\.md)$", configuration[: configuration.index("\nnav:")], re.MULTILINE))
    there = {_name(page) for page in PAGES}
    assert named <= there
    assert there - named <= left_out
    for place in re.findall(r"(?:logo|favicon): (\S+)|- (stylesheets/\S+)", configuration):
        assert (DOCS / (place[0] or place[1])).is_file()


def test_pages_name_no_place_of_one_machine() -> None:
    for page in PAGES:
        found = re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt)/\S*", page.read_text())
        assert not found, f"{_name(page)}: {found}"


def test_docstrings_become_markdown() -> None:
    griffe = pytest.importorskip("griffe", reason="the tools that build the site are not installed: make docs")
    sys.path.insert(0, str(DOCS))
    try:
        hooks = importlib.import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))
        sys.modules.pop("hooks", None)
    package = griffe.load("latewood", search_paths=[ROOT / "src"], extensions=griffe.load_extensions(hooks.HouseStyle))
    record = package["core.record.Record"]
    assert 'identifier="latewood.core.record.Record.last_of"' in record["last"].docstring.value
    assert "```pycon\n>>> record = Record(" in record.docstring.value
    assert "**Errors:**" in record["from_json"].docstring.value
    about = package["core.learner.Learner.deployed"].docstring.value
    assert about.startswith("The attributes that are the network and its head")
    table = hooks.paper_table(hooks.papers())
    assert len(re.findall(r"^\| \d+ \|", table, re.MULTILINE)) == len(hooks.papers())
