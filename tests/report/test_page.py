"""The page as text: what is in it, what is escaped, and that it needs nothing from outside."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from latewood.core.errors import ConfigurationError, StorageError
from latewood.core.record import Record
from latewood.report.page import render, write_page
from latewood.report.summary import summarise

MakeRecord = Callable[..., Record]

EVIL = "</title></style><script>alert(1)</script><img src=x onerror='alert(2)'>\" & $style"


class Reader(HTMLParser):
    """Collects the tags of a page and checks that they are nested as they should be."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(records: list[Record], title: str | None = None) -> str:
    return render(summarise(records), title)


def drawings(page: str) -> list[ET.Element]:
    """The charts of a page, which must be well-formed by themselves."""
    return [ET.fromstring(svg) for svg in re.findall(r'<svg class="chart.*?</svg>', page, flags=re.DOTALL)]


def test_a_page_is_written_whole_and_the_same_each_time(tmp_path: Path, records: list[Record]) -> None:
    write_page(records, tmp_path / "deep/page.html")
    write_page(records, tmp_path / "again.html")
    first, second = (tmp_path / "deep/page.html").read_bytes(), (tmp_path / "again.html").read_bytes()
    assert first == second
    assert first.decode().endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    with pytest.raises(StorageError):
        write_page(records, tmp_path / "deep")


def test_it_needs_nothing_from_outside(records: list[Record]) -> None:
    page = page_of(records)
    reader = Reader(page)
    links = [value for name, value in reader.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert [link for link in links if not str(link).startswith("data:")] == []
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_it_shows_every_method_everywhere(records: list[Record]) -> None:
    page = page_of(records)
    # Three line charts, two of bars, two of costs, a heat map for each method and their scale.
    assert len(drawings(page)) == 3 + 2 + 2 + 7 + 1
    assert "<title>Seven methods on split-digits</title>" in page
    for label in {summary.label for summary in summarise(records)}:
        assert page.count(f">{label}<") >= 8
    for text in ("93.8", "± 0.7", "2.17 GiB", "seeds 0–2", "14,000 samples", "net.name", "2.6.0", "21, format 1", "loss"):
        assert text in page


def test_every_chart_says_what_it_is_and_every_point_what_it_shows(records: list[Record]) -> None:
    for svg in drawings(page_of(records)):
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label", "")) > 20
        assert svg.get("class") != "chart" or svg.find(".//title") is not None
    assert "<title>SLCA after experience 5: 93.8 ± 0.7</title>" in page_of(records)


def test_whatever_a_record_says_is_shown_and_not_obeyed(make_record: MakeRecord) -> None:
    record, other = make_record("replay", 0, label=EVIL), make_record("slca", 0)
    record.config["learner"][EVIL] = EVIL
    record.environment[EVIL] = EVIL
    record.probes[0] = dataclasses.replace(record.probes[0], name=EVIL)
    for each in (record, other):
        each.config["stream"] |= {"name": EVIL, EVIL: EVIL}
        each.rows[0] = dataclasses.replace(each.rows[0], cost=dataclasses.replace(each.rows[0].cost, state={EVIL: 1}))
        each.higher_is_better = {f"{EVIL}": True}
        each.rows[:] = [dataclasses.replace(row, scores={EVIL: row.scores["accuracy"]}) for row in each.rows]
    page = page_of([record, other], title=EVIL)
    reader = Reader(page)
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert drawings(page)


def test_a_metric_where_lower_is_better(records: list[Record]) -> None:
    for record in records:
        record.higher_is_better = {"loss": False}
    page = page_of(records)
    assert "lower is better" in page
    assert "bottom left" in page
    assert "last loss" in page
    # The colour scale runs from the worst, which is the largest, to the best.
    scale = re.search(r'class="scale"><span>(.*?)</span>.*?<span>([^<]*)</span></span>', page, flags=re.DOTALL)
    assert scale is not None
    assert float(scale[1]) > float(scale[2])


def test_a_single_run(make_record: MakeRecord) -> None:
    page = page_of([make_record("replay", 0, label="er")])
    assert "<title>er on split-digits</title>" in page
    assert "±" not in page
    assert 'class="band"' not in page
    assert 'class="best"' not in page
    assert "<nav" not in page


def test_one_experience_has_no_forgetting(make_record: MakeRecord) -> None:
    records = [make_record(name, seed, length=1, done=1) for name in ("replay", "lwf") for seed in (0, 1)]
    page = page_of(records)
    assert "in one experience" in page
    assert len(drawings(page)) == 10


def test_gaps_in_the_scores_are_left_out(make_record: MakeRecord) -> None:
    gap, begun, broken = make_record("replay", 0), make_record("slca", 0, done=2), make_record("ewc", 0, done=0)
    nothing = {name: [None] * 5 for name in gap.rows[2].scores}
    gap.rows[2] = dataclasses.replace(gap.rows[2], scores=nothing)
    page = page_of([gap, begun, broken])
    assert "nan" not in page.lower().replace("finan", "")
    assert "Not finished: SLCA (seed 0, 2 of 5), EWC (seed 0, 0 of 5)." in page
    assert "Not shown, without a score: EWC." in page
    line = next(svg for svg in drawings(page) if svg.get("aria-label", "").startswith("Line"))
    series = [group for group in line.findall("g") if group.get("class", "").startswith("series")]
    # Nothing, one piece, and two pieces around the gap.
    assert sorted(len(group.findall("path[@class='stroke']")) for group in series) == [0, 1, 2]
    assert len(line.findall(".//g/circle[@class='target']")) == 4 + 2


def test_no_run_has_begun(make_record: MakeRecord) -> None:
    page = page_of([make_record("replay", 0, done=0), make_record("slca", 0, done=0)])
    assert "Not shown, without a score: ExperienceReplay and SLCA." in page
    assert "nan" not in page.lower()


def test_large_matrices_stay_small(make_record: MakeRecord) -> None:
    page = page_of([make_record("replay", 0, length=50, done=50)])
    assert len(page) < 500_000
    heat = next(svg for svg in drawings(page) if svg.get("class") == "chart heat")
    assert len(heat.findall("rect")) == 50 * 51 // 2
    assert heat.find("g") is None


def test_records_of_two_streams_are_refused_and_nothing_is_written(tmp_path: Path, make_record: MakeRecord) -> None:
    with pytest.raises(ConfigurationError, match="one stream"):
        write_page([make_record("replay"), make_record("slca", length=4, done=4)], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
