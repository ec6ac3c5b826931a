"""Tags of HTML and SVG that escape what is put into them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from latewood.report.comparable import printable

_EMPTY = frozenset({"br", "link", "meta"})
_LEAVES = frozenset({"circle", "line", "path", "rect"})


class Markup(str):
    """Text that is HTML already; any other text is escaped when it is put into a tag."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """What is shown of a value: its text with every character that HTML gives a meaning made harmless.

    >>> escape("<b>"), escape(Markup("<b>"))
    ('&lt;b&gt;', '<b>')
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        value = number(value)
    return Markup(html.escape(printable(str(value))))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. ``None`` among children and attributes is left out, lists of children are joined, ``class_`` is ``class``
    and ``data_method`` is ``data-method``.

    >>> tag("td", "5 > 4", class_="num", title=None)
    '<td class="num">5 &gt; 4</td>'
    >>> tag("circle", cx=1.50001, r=3)
    '<circle cx="1.5" r="3"/>'
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = name + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    if name in _LEAVES and not children:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>" if name in _EMPTY else f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Children one after the other, escaped where they are not markup."""
    parts = (join(child) if isinstance(child, list | tuple) else escape(child) for child in children if child is not None)
    return Markup("".join(parts))


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0") if abs(value) < 0.005 else _trim(f"{value:.2f}")


def polyline(points: Iterable[tuple[float, float]], closed: bool = False) -> str:
    """The path data of straight lines through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + ("Z" if closed else "")


def drawing(width: float, height: float, label: str, *children: object, class_: str = "") -> Markup:
    """An SVG picture with its description for those who don't see it."""
    return tag(
        "svg",
        *children,
        class_=f"chart {class_}".strip(),
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: object, class_: str = "", anchor: str | None = None) -> Markup:
    """A line of text with its baseline at ``y``; ``anchor`` is ``"middle"`` or ``"end"``."""
    return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def text_width(content: str, size: float = 12.0) -> float:
    """Roughly how wide a line of text is, in pixels; errs on the wide side, as fonts differ."""
    wide = sum(1 for c in content if c in "mwMW@%" or ord(c) > 0x2E80)
    narrow = sum(1 for c in content if c in "iljtfI.,:;|!'() ")
    return size * (0.64 * len(content) + 0.38 * wide - 0.27 * narrow)


def shorten(content: str, width: float, size: float = 12.0) -> str:
    """The text, cut with an ellipsis so that it is about ``width`` pixels wide at the most."""
    if text_width(content, size) <= width:
        return content
    while len(content) > 1 and text_width(content + "…", size) > width:
        content = content[:-1]
    return content.rstrip() + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, within ``[low, high]`` if they fit, as near as can be to the wanted ones.

    The sum of squared moves is the least: pool adjacent violators on the positions less their share of gaps.

    >>> spread([10, 11, 40], gap=10, low=0, high=100)
    [5.5, 15.5, 40.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = float(wanted[i] - rank * gap), 1
        while blocks and blocks[-1][0] > mean:
            other, n = blocks.pop()
            mean, size = (mean * size + other * n) / (size + n), size + n
        blocks.append((mean, size))
    ceiling = max(low, high - (len(wanted) - 1) * gap)
    shifts = [min(max(mean, low), ceiling) for mean, size in blocks for _ in range(size)]
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = shifts[rank] + rank * gap
    return placed


def _trim(digits: str) -> str:
    return digits.rstrip("0").rstrip(".")
