"""The colours of the page, in light and in dark.

The eight colours of methods were searched for in OKLab: each has a contrast of at least 3 to the background, and they
differ for normal vision as well as under protanopia, deuteranopia and tritanopia (simulated after Machado et al.,
2009). Colour is still never the only cue: each method has a marker and a dash pattern of its own.
"""

from __future__ import annotations

from latewood.report.colour import blend, contrast

#: Name → colour in light, colour in dark.
THEME = {
    "paper": ("#fbfaf7", "#161513"),
    "raised": ("#ffffff", "#1e1d1a"),
    "sunken": ("#f3f1ea", "#211f1c"),
    "ink": ("#1f1d1a", "#edeae3"),
    "soft": ("#5d5850", "#aca598"),
    "faint": ("#756f65", "#928b7f"),
    "line": ("#dedad0", "#37342f"),
    "shade": ("#e2ddd1", "#000000"),
    "grid": ("#e9e6dd", "#2a2824"),
    "accent": ("#8a5a2b", "#d9a66b"),
    "mild": ("#1d6b45", "#7fcf9f"),
    "marked": ("#85610a", "#e0bb5a"),
    "severe": ("#a8321c", "#f29a83"),
    "m0": ("#0b3484", "#4479d7"),
    "m1": ("#a63609", "#e78c1f"),
    "m2": ("#0d784d", "#15b692"),
    "m3": ("#7c4db1", "#bc92fc"),
    "m4": ("#9f900b", "#dfdc54"),
    "m5": ("#3e91e9", "#1bdfff"),
    "m6": ("#d2639a", "#a76977"),
    "m7": ("#453636", "#e4e4d7"),
}
COLOURS = 8
#: Ends and middle of the heat maps' scale, from the worst to the best score: stronger colour is better in both themes.
_HEAT = {"light": ("#f4f0e3", "#86b893", "#0b4a3a"), "dark": ("#23221d", "#2f7a5c", "#c9ecb4")}
HEAT_STEPS = 16


def stylesheet() -> str:
    """The colours as custom properties: light, dark where the reader's system is, either one where the page says so."""
    light = _properties({name: pair[0] for name, pair in THEME.items()}, "light")
    dark = _properties({name: pair[1] for name, pair in THEME.items()}, "dark")
    methods = "".join(f".m{i}{{--c:var(--m{i})}}" for i in range(COLOURS))
    heat = "".join(f".h{i}{{--h:var(--h{i});--t:var(--t{i})}}" for i in range(HEAT_STEPS))
    return (
        f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f':root[data-theme="light"]{{{light}}}\n:root[data-theme="dark"]{{{dark}}}\n{methods}\n{heat}\n'
    )


def heat_colours(theme: str) -> list[tuple[str, str]]:
    """The colour of each step of the heat maps' scale and the colour of text on it."""
    stops = _HEAT[theme]
    colours = []
    for step in range(HEAT_STEPS):
        place = step / (HEAT_STEPS - 1) * (len(stops) - 1)
        below = min(int(place), len(stops) - 2)
        colours.append(blend(stops[below], stops[below + 1], place - below))
    return [(colour, max(("#000000", "#ffffff"), key=lambda ink: contrast(colour, ink))) for colour in colours]


def _properties(colours: dict[str, str], theme: str) -> str:
    pairs = [f"--{name}:{colour}" for name, colour in colours.items()]
    for step, (colour, ink) in enumerate(heat_colours(theme)):
        pairs += [f"--h{step}:{colour}", f"--t{step}:{ink}"]
    return ";".join([f"color-scheme:{theme}", *pairs])
