"""Arithmetic with colours: contrast, and steps that look equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Triple = npt.NDArray[np.float64]

# From linear RGB to the response of the eye's cones, and from its cube root to OKLab (Ottosson, 2020).
_TO_CONE = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.21190350, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]]
)
_TO_LAB = np.array(
    [[0.21045426, 0.79361779, -0.00407205], [1.97799850, -2.42859221, 0.45059371], [0.02590404, 0.78277177, -0.80867577]]
)


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours after WCAG 2, from 1 to 21.

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    low, high = sorted(float(_linear(colour) @ (0.2126, 0.7152, 0.0722)) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


def blend(first: str, second: str, share: float) -> str:
    """The colour at ``share`` of the way between two, in OKLab, where equal steps look equal.

    >>> blend("#000000", "#ffffff", 1.0)
    '#ffffff'
    """
    start, end = _to_oklab(first), _to_oklab(second)
    return _from_oklab(start + (end - start) * share)


def _linear(colour: str) -> Triple:
    """The linear RGB values of ``#rrggbb``."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.asarray(np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4))


def _to_oklab(colour: str) -> Triple:
    return np.asarray(_TO_LAB @ np.cbrt(_TO_CONE @ _linear(colour)))


def _from_oklab(lab: Triple) -> str:
    linear = np.clip(np.linalg.inv(_TO_CONE) @ (np.linalg.inv(_TO_LAB) @ lab) ** 3, 0, 1)
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(v * 255):02x}" for v in values)
