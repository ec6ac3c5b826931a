"""The page in a real browser, on a phone and on a desktop, in light and in dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latewood.core.record import Record
from latewood.report.page import write_page
from latewood.report.palette import THEME

MakeRecord = Callable[..., Record]

CHROMIUM = shutil.which("chromium")
WIDTHS = (360, 390, 768, 1280)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"),
)
# Reports to the page around it what went wrong, how wide everything is, and what the highlighting does.
CHECK = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => wrong.push("blocked: " + event.blockedURI));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const root = document.documentElement, body = getComputedStyle(document.body);
  const visible = (part) => part.getClientRects().length > 0;
  const texts = [...document.querySelectorAll("svg.chart text")].filter(visible);
  const cut = texts.filter((text) => {
    const box = text.getBBox(), frame = text.closest("svg").viewBox.baseVal;
    return box.x < -2 || box.x + box.width > frame.width + 2 || box.y + box.height > frame.height + 2;
  });
  const names = [...document.querySelectorAll("text.haloed")].filter(visible).map((text) => text.getBoundingClientRect());
  const apart = (a, b) => a.right < b.left + 1 || b.right < a.left + 1 || a.bottom < b.top + 4 || b.bottom < a.top + 4;
  const covered = names.some((a, i) => names.slice(i + 1).some((b) => !apart(a, b)));
  const chip = document.querySelector("[data-pick='1']");
  const lit = () => [document.querySelectorAll(".on").length, root.classList.contains("picking")];
  chip.click();
  const held = lit();
  chip.click();
  const found = { width: innerWidth, content: root.scrollWidth, ground: body.backgroundColor, held, freed: lit() };
  const charts = [...document.querySelectorAll("svg.chart")].filter(visible).length;
  const smallest = Math.min(...texts.map((text) => text.getBoundingClientRect().height));
  document.querySelector(".toggle").click();
  const other = getComputedStyle(document.body).backgroundColor;
  const cuts = cut.map((text) => text.textContent);
  parent.postMessage({ ...found, wrong, charts, smallest, cuts, covered, other }, "*");
});
</script>"""


def look(page: Path, dark: bool, folder: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """What the check finds in frames of all widths, by width, and what the browser logged.

    Frames, because a headless window is never narrower than 500 pixels.
    """
    copy = folder / "copy.html"
    copy.write_text(page.read_text("utf-8").replace('<meta charset="utf-8">', f'<meta charset="utf-8">{CHECK}', 1), "utf-8")
    frames = "".join(f'<iframe src="copy.html" style="width:{width}px;height:800px;border:0"></iframe>' for width in WIDTHS)
    collect = "onmessage = (event) => { found.push(event.data); out.textContent = JSON.stringify(found); };"
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><pre id=out></pre><script>const found = []; {collect}</script>{frames}")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *FLAGS, theme, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    written = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert written is not None
    assert written[1], done.stderr
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {found["width"]: found for found in json.loads(written[1].replace("&amp;", "&"))}, messages


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


@pytest.fixture(params=["ordinary", "hard"])
def page(request: pytest.FixtureRequest, tmp_path: Path, records: list[Record], make_record: MakeRecord) -> Path:
    """An ordinary page, and one with long names, gaps, many experiences and a single seed."""
    path = tmp_path / "page.html"
    if request.param == "hard":
        long = {"length": 20, "done": 20}
        records = [make_record("slca", seed, label="W" * 60, **long) for seed in (0, 1)]
        records += [make_record("lwf", 0, label="a rather long name of a method, with words", **long)]
        records += [make_record("ewc", 0, length=20, done=0), make_record("replay", 0, label="r", length=20, done=7)]
        records[2].config["learner"]["a_very_long_hyper_parameter" * 3] = "x" * 300
    write_page(records, path)
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="needs a 'chromium' binary on PATH to render the page")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_every_screen_and_makes_no_errors(page: Path, dark: bool, tmp_path: Path) -> None:
    seen, messages = look(page, dark, tmp_path)
    assert messages == []
    assert sorted(seen) == list(WIDTHS)
    for width, found in seen.items():
        assert found["wrong"] == []
        assert found["content"] <= width
        assert found["ground"] == rgb(THEME["paper"][dark])
        assert found["other"] == rgb(THEME["paper"][not dark])
        assert found["cuts"] == []
        assert not found["covered"]
        assert found["charts"] >= 3 + 3
        assert found["smallest"] >= 10
        assert found["held"][1]
        assert found["held"][0] >= 1 + 3 * 2
        assert found["freed"] == [0, False]
