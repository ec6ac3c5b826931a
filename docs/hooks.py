"""What the site needs beyond Markdown: the table of papers, and docstrings in the house's style as pages.

MkDocs loads this file as a hook (the functions called ``on_...``), mkdocstrings as an extension of its reader
(:class:`HouseStyle`). Nothing here knows a single paper, module or method: all of it is read at build time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import griffe

from latewood.papers.ledger import Paper, papers

_SOURCES = Path(__file__).parents[1] / "src"
_PAPERS = "<!-- table of papers -->"
_MODULES = re.compile(r"<!-- modules of ([\w.]+)(?:, first: ([\w ]+))? -->")
_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc):`(~?)([\w.]+)`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of papers, and the reference of a whole package, where a page asks for them."""
    if _PAPERS in markdown:
        markdown = markdown.replace(_PAPERS, paper_table(papers()))
    return _MODULES.sub(lambda marker: _references(marker[1], (marker[2] or "").split()), markdown)


def _references(package: str, first: Sequence[str]) -> str:
    """A reference entry for each public module of a package, so that a new file needs no line on a page."""
    names = sorted(file.stem for file in (_SOURCES / package.replace(".", "/")).glob("[!_]*.py"))
    ordered = [*(name for name in first if name in names), *(name for name in names if name not in first)]
    level = 2 + package.count(".", len("latewood."))
    return "\n".join(f"::: {package}.{name}\n    options:\n      heading_level: {level}" for name in ordered)


def paper_table(everything: Sequence[Paper]) -> str:
    """All papers as a Markdown table, in the order of the ledger, under a sentence that counts them."""
    built = sum(paper.built for paper in everything)
    lines = [f"{built} of {len(everything)} are built.", "", "| no. | name | paper | kind | built |", "|--:|---|---|---|---|"]
    for paper in everything:
        title = _cell(paper.title)
        link = f"[{title}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else title
        code = "".join(f"<br>{_reference(path.replace(':', '.'), path.split(':')[-1])}" for path in paper.code)
        about = f"{link}<br><small>{_cell(paper.summary)}{code}</small>"
        lines.append(
            f"| {paper.number} | `{paper.name}` | {about} | {_cell(paper.kind)} | {'yes' if paper.built else 'not yet'} |"
        )
    return "\n".join(lines)


class HouseStyle(griffe.Extension):
    """Turns what the docstrings of this project contain into Markdown.

    Roles become links where the site shows their target, else code; examples become code blocks; "Errors:" opens a
    paragraph; and a comment ``#:`` above an attribute is its docstring.
    """

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is None and (comment := _comment_above(attr)):
            attr.docstring = griffe.Docstring(comment, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._walk(pkg)

    def _walk(self, thing: griffe.Object) -> None:
        if thing.docstring is not None:
            thing.docstring.value = as_markdown(thing.docstring.value, thing)
        for member in thing.members.values():
            if not member.is_alias:
                self._walk(member)  # type: ignore[arg-type]


def as_markdown(text: str, thing: griffe.Object) -> str:
    """A docstring of ``thing`` as Markdown."""
    blocks: list[str] = []
    for block in text.split("\n\n"):
        if not block.lstrip().startswith(">>>"):
            prose = _ROLE.sub(lambda role: _link(role[2], thing, short=role[1] == "~"), block)
            blocks.append(re.sub(r"(?:^|\s+)Errors: ", "\n\n**Errors:** ", prose).strip("\n"))
        elif blocks and blocks[-1].startswith("```pycon"):  # an example that holds an empty line
            blocks[-1] = f"{blocks[-1].removesuffix('```')}\n{block}\n```"
        else:
            blocks.append(f"```pycon\n{block}\n```")
    return "\n\n".join(blocks)


def _link(target: str, thing: griffe.Object, *, short: bool) -> str:
    """What a role shows: a link to the target, or plain code if no page of the site documents it."""
    path = target
    if not target.startswith("latewood."):
        first, dot, rest = target.partition(".")
        with suppress(griffe.NameResolutionError):
            path = thing.resolve(first) + dot + rest
    label = target.rpartition(".")[2] if short or path == target else target
    return _reference(_home(path), label)


def _home(path: str) -> str:
    """Where a name of the package's front door is defined and documented: ``latewood.run`` is ``latewood.core.run.run``."""
    import latewood

    name = path.removeprefix("latewood.")
    return f"latewood.core.{latewood._HOMES[name]}.{name}" if name in latewood._HOMES else path


def _reference(path: str, label: str) -> str:
    return f'<autoref optional identifier="{escape(path)}"><code>{escape(label)}</code></autoref>'


def _comment_above(attr: griffe.Attribute) -> str:
    if attr.lineno is None or not isinstance(attr.filepath, Path):
        return ""
    lines = attr.lines_collection[attr.filepath][: attr.lineno - 1]
    found: list[str] = []
    while lines and lines[-1].strip().startswith("#:"):
        found.insert(0, lines.pop().strip().removeprefix("#:").strip())
    return "\n".join(found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
