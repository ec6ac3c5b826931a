"""Record: every continual metric against numbers worked out by hand, and a record on disk that anyone can read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood import Record
from latewood.core.cost import Cost
from latewood.core.errors import CheckpointError, ConfigurationError, StorageError
from latewood.core.record import SUMMARY, ProbeInfo, Row, mean_and_interval

NAN = math.nan
Table = Sequence[Sequence[float | None]]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """What is not defined is NaN, without a word from numpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def record_of(
    table: Table,
    *,
    since: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    samples: Sequence[int] | None = None,
    higher: bool = True,
    baseline: Sequence[float | None] | None = None,
) -> Record:
    """A record with the score matrix ``table``; probe ``j`` is seen from experience ``since[j]`` on, by default ``j``."""
    columns = len(table[0])
    infos = [ProbeInfo(f"probe {j}", since[j] if since else j, weights[j] if weights else 1.0) for j in range(columns)]
    record = Record({}, {"score": higher}, infos, len(table), baseline={"score": list(baseline)} if baseline else None)
    for index, row in enumerate(table):
        record.add(Row(index, samples[index] if samples else 100, {"score": list(row)}, Cost()))
    return record


#: Three experiences, three probes. The best of probe 0 is neither its first score nor its last.
HAND: Table = [
    [0.80, None, None],
    [0.90, 0.70, None],
    [0.50, 0.60, 0.95],
]


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-12)


# Metrics on a matrix worked out by hand


def test_the_matrix_has_experiences_as_rows_and_nan_where_a_probe_is_not_yet_seen() -> None:
    matrix = record_of(HAND).matrix()
    assert matrix.shape == (3, 3)
    assert np.isnan(matrix[np.triu_indices(3, 1)]).all()
    assert matrix[2].tolist() == [0.5, 0.6, 0.95]


def test_the_curve_is_the_mean_over_the_probes_seen() -> None:
    assert record_of(HAND).curve().tolist() == pytest.approx([0.80, (0.90 + 0.70) / 2, (0.50 + 0.60 + 0.95) / 3])


def test_last_is_the_mean_of_the_last_row() -> None:
    assert record_of(HAND).last == near((0.50 + 0.60 + 0.95) / 3)


def test_average_is_the_mean_of_the_curve() -> None:
    assert record_of(HAND).average == near((0.80 + 0.80 + 2.05 / 3) / 3)


def test_anytime_weighs_each_experience_by_its_samples() -> None:
    record = record_of(HAND, samples=[10, 30, 60])
    assert record.anytime == near(0.1 * 0.80 + 0.3 * 0.80 + 0.6 * 2.05 / 3)
    assert record_of(HAND, samples=[7, 7, 7]).anytime == near(record.average)


def test_forgetting_falls_from_the_best_ever_and_not_from_the_first() -> None:
    assert record_of(HAND).forgetting == near(((0.90 - 0.50) + (0.70 - 0.60)) / 2)


def test_forgetting_is_negative_where_the_last_score_is_the_best() -> None:
    assert record_of([[0.5, None], [0.7, 0.9]]).forgetting == near(-0.2)


def test_backward_transfer_starts_at_the_diagonal() -> None:
    assert record_of(HAND).backward_transfer == near(((0.50 - 0.80) + (0.60 - 0.70)) / 2)


FULL = [
    [0.80, 0.20, 0.15],
    [0.90, 0.70, 0.30],
    [0.50, 0.60, 0.95],
]


def test_forward_transfer_compares_the_score_just_before_a_probe_is_seen_with_that_before_any_learning() -> None:
    record = record_of(FULL, baseline=[0.11, 0.10, 0.05])
    assert record.forward_transfer == near(((0.20 - 0.10) + (0.30 - 0.05)) / 2)


def test_scores_of_unseen_probes_are_kept_but_count_only_for_forward_transfer() -> None:
    seen, full = record_of(HAND), record_of(FULL, baseline=[0.1, 0.1, 0.1])
    assert np.array_equal(seen.matrix(), full.matrix(), equal_nan=True)
    assert full.matrix(unseen=True).tolist() == FULL
    for name in ("last", "average", "anytime", "forgetting", "backward_transfer"):
        assert getattr(full, name) == getattr(seen, name)


def test_forward_transfer_is_undefined_without_a_score_before_learning() -> None:
    assert math.isnan(record_of(FULL).forward_transfer)


def test_weights_make_the_average_the_score_on_the_union() -> None:
    record = record_of(HAND, weights=[1, 2, 5])
    assert record.curve().tolist() == pytest.approx([0.8, (0.9 + 1.4) / 3, (0.5 + 1.2 + 4.75) / 8])
    assert record.last == near(6.45 / 8)
    assert record.forgetting == near(0.25)  # a mean over probes, whatever their size


def test_a_probe_without_weight_counts_for_no_average_and_alone_gives_none() -> None:
    assert record_of(HAND, weights=[1, 0, 1]).last == near((0.50 + 0.95) / 2)
    assert math.isnan(record_of([[0.5]], weights=[0]).last)


# Lower is better


def test_where_lower_is_better_averages_are_plain_and_signs_keep_their_meaning() -> None:
    perplexity = [[10.0, 40.0], [16.0, 8.0]]
    record = record_of(perplexity, higher=False, baseline=[50.0, 50.0])
    assert record.last == near(12)
    assert record.average == near((10 + 12) / 2)
    assert record.forgetting == near(6)  # it rose by 6: bad, so positive
    assert record.backward_transfer == near(-6)
    assert record.forward_transfer == near(10)  # 40 instead of 50 before learning it: good, so positive


def test_forgetting_of_what_should_be_low_counts_from_the_lowest() -> None:
    record = record_of([[5.0, None, None], [3.0, 9.0, None], [4.0, 8.0, 1.0]], higher=False)
    assert record.forgetting == near(((4 - 3) + (8 - 9)) / 2)
    assert record.backward_transfer == near(((5 - 4) + (9 - 8)) / 2)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)))
def test_negated_scores_with_the_other_sign_give_the_same_forgetting_and_transfer(table: list[list[float]]) -> None:
    base = [0.5] * len(table)
    up = record_of(table, baseline=base)
    down = record_of([[-v for v in row] for row in table], higher=False, baseline=[-v for v in base])
    assert down.forgetting == near(up.forgetting)
    assert down.backward_transfer == near(up.backward_transfer)
    assert down.forward_transfer == near(up.forward_transfer)
    assert down.last == near(-up.last)


# Laws


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)))
def test_forgetting_is_at_least_the_backward_transfer_lost(table: list[list[float]]) -> None:
    record = record_of(table)
    assert record.forgetting >= -record.backward_transfer - 1e-12


@settings(deadline=None, max_examples=50)
@given(value=st.floats(-5, 5), experiences=st.integers(2, 6), higher=st.booleans())
def test_a_constant_matrix_has_no_forgetting_and_no_transfer(value: float, experiences: int, higher: bool) -> None:
    record = record_of([[value] * experiences] * experiences, higher=higher, baseline=[value] * experiences)
    assert record.forgetting == record.backward_transfer == record.forward_transfer == 0
    assert record.last == pytest.approx(value)
    assert record.average == pytest.approx(value)
    assert record.anytime == pytest.approx(value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=4, max_size=4))
def test_the_metrics_equal_their_definitions(a: list[list[float]]) -> None:
    record, last = record_of(a, baseline=[0.0] * 4), 3
    aa = [sum(a[k][: k + 1]) / (k + 1) for k in range(4)]
    assert record.average == near(sum(aa) / 4)
    assert record.forgetting == near(sum(max(a[i][j] for i in range(j, last)) - a[last][j] for j in range(last)) / last)
    assert record.backward_transfer == near(sum(a[last][j] - a[j][j] for j in range(last)) / last)
    assert record.forward_transfer == near(sum(a[j - 1][j] for j in range(1, 4)) / 3)


# Where metrics are not defined


def test_one_experience_has_scores_but_neither_forgetting_nor_transfer() -> None:
    record = record_of([[0.7]], baseline=[0.1])
    assert record.last == record.average == record.anytime == 0.7
    assert math.isnan(record.forgetting)
    assert math.isnan(record.backward_transfer)
    assert math.isnan(record.forward_transfer)


def test_a_record_without_rows_has_no_scores() -> None:
    record = Record({}, {"score": True}, [ProbeInfo("a", 0)], length=3)
    assert record.matrix().shape == (0, 1)
    assert all(math.isnan(getattr(record, name)) for name in SUMMARY)
    assert record.cost == Cost()
    assert not record.complete


def test_a_record_without_probes_has_no_scores() -> None:
    record = Record({}, {}, [], length=1, rows=[Row(0, 5, {}, Cost(flops=3))])
    assert record.matrix().shape == (1, 0)
    assert all(math.isnan(getattr(record, name)) for name in SUMMARY)
    assert record.cost.flops == 3
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_probes_that_are_first_seen_late_enter_late() -> None:
    """Two probes of the same moment, and one that is never reached."""
    table = [[0.9, None, None, None], [0.8, None, None, None], [0.7, 0.6, 0.4, None], [0.6, 0.7, 0.2, None]]
    record = record_of(table, since=[0, 2, 2, 9])
    assert record.curve().tolist() == pytest.approx([0.9, 0.8, 1.7 / 3, 1.5 / 3])
    assert record.forgetting == near((0.3 - 0.1 + 0.2) / 3)
    assert record.backward_transfer == near((-0.3 + 0.1 - 0.2) / 3)


def test_a_row_before_any_probe_is_seen_has_no_score_and_counts_for_no_mean() -> None:
    record = record_of([[None], [0.4], [0.8]], since=[1], samples=[1000, 10, 30])
    assert np.isnan(record.curve()[0])
    assert record.average == near(0.6)
    assert record.anytime == near(0.25 * 0.4 + 0.75 * 0.8)


def test_a_probe_of_the_last_experience_has_nothing_to_forget() -> None:
    assert math.isnan(record_of([[None], [0.4]], since=[1]).forgetting)


def test_a_learner_that_diverged_is_not_averaged_over_what_is_left() -> None:
    record = record_of([[0.9, None, None], [0.8, 0.7, None], [None, 0.5, 0.7]])
    assert record.curve()[:2].tolist() == pytest.approx([0.9, 0.75])
    assert math.isnan(record.last)


def test_a_score_that_was_not_a_number_is_no_best_to_fall_from() -> None:
    record = record_of([[None, None], [0.9, None], [0.6, 0.7]], since=[0, 2])
    assert record.forgetting == near(0.3)
    assert math.isnan(record.curve()[0])


def test_a_probe_that_was_never_a_number_leaves_forgetting_undefined() -> None:
    record = record_of([[None, None], [None, 0.5]])
    assert math.isnan(record.forgetting)
    assert math.isnan(record.backward_transfer)


# Several metrics


def two_metrics() -> Record:
    record = Record({"seed": 3}, {"accuracy": True, "loss": False}, [ProbeInfo("a", 0), ProbeInfo("b", 1)], length=2)
    record.add(Row(0, 5, {"accuracy": [0.9, None], "loss": [0.1, None]}, Cost(seconds=1.5, flops=10, state={"net": 8}), (0, 1)))
    record.add(Row(1, 7, {"accuracy": [0.8, 0.7], "loss": [0.4, 0.2]}, Cost(seconds=2.0, flops=20, peak_memory=5), (2,)))
    return record


def test_the_first_metric_is_meant_unless_another_is_named() -> None:
    record = two_metrics()
    assert record.main == "accuracy"
    assert record.forgetting == record.forgetting_of("accuracy") == near(0.1)
    assert record.forgetting_of("loss") == near(0.3)
    assert record.last_of("loss") == near(0.3)


@pytest.mark.parametrize("name", SUMMARY)
def test_a_metric_that_is_not_there_is_an_error_that_lists_those_that_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no metric 'f1'; it has accuracy, loss"):
        getattr(two_metrics(), f"{name}_of")("f1")


def test_the_cost_of_a_run_adds_times_and_takes_the_largest_of_sizes() -> None:
    record = Record({}, {"m": True}, [], 2)
    small = Cost(1.0, 0.5, 10, peak_memory=9, parameters=3, trained=2, kept_bytes=1, state={"a": 4})
    large = Cost(2.0, 0.25, 30, peak_memory=7, parameters=5, trained=1, kept_bytes=8, state={"a": 4, "b": 8})
    for index, cost in enumerate((small, large)):
        record.add(Row(index, 1, {"m": []}, cost))
    assert record.cost == Cost(3.0, 0.75, 40, peak_memory=9, parameters=5, trained=2, kept_bytes=8, state={"a": 4, "b": 8})


def test_complete_means_every_experience() -> None:
    record = two_metrics()
    assert record.complete
    record.length = 3
    assert not record.complete


def test_what_repeats_leaves_out_what_is_measured() -> None:
    first, second = two_metrics(), two_metrics()
    second.rows[0] = Row(
        0, 5, first.rows[0].scores, Cost(seconds=9, probe_seconds=1, flops=10, peak_memory=1, state={"net": 8}), (0, 1)
    )
    second.environment = {"torch": "other"}
    assert first.repeatable() == second.repeatable()
    second.rows[0] = Row(0, 5, first.rows[0].scores, Cost(flops=11, state={"net": 8}), (0, 1))
    assert first.repeatable() != second.repeatable()
    assert two_metrics().repeatable() == Record.from_json(json.loads(json.dumps(first.to_json()))).repeatable()


# On disk


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record = two_metrics()
    record.baseline = {"accuracy": [0.1, 0.2], "loss": [None, 3.0]}
    record.environment = {"python": "3"}
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    assert Record.load(str(tmp_path)) == record


def test_a_record_can_be_read_with_json_alone_and_has_the_summary_of_every_metric(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    two_metrics().save(path)
    program = f"import json; print(json.dumps(json.load(open({str(path)!r}))))"
    plain = json.loads(subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, check=True).stdout)
    assert plain["format"] == 1
    assert set(plain["summary"]) == {"accuracy", "loss"}
    assert plain["summary"]["accuracy"]["last"] == near(0.75)
    assert plain["summary"]["accuracy"]["forgetting"] == near(0.1)
    assert plain["summary"]["loss"]["forward_transfer"] is None
    assert plain["rows"][1]["scores"]["loss"] == [0.4, 0.2]
    assert plain["config"] == {"seed": 3}


def test_nan_is_null_in_the_file_because_json_has_no_nan(tmp_path: Path) -> None:
    record_of([[None, None], [None, 0.5]]).save(tmp_path / "record.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    plain = json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)
    assert plain["summary"]["score"]["forgetting"] is None


def test_saving_over_a_record_keeps_the_old_one_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    two_metrics().save(path)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        StorageError, match=r"Could not write .*record\.json: the disk is full\. What was saved before is untouched"
    ):
        record_of(HAND).save(path)
    assert Record.load(path) == two_metrics()
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no record at .*record\.json"):
        Record.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"format": 1', "\x00\x01", '{"a": NaN', "not json"],
)
def test_a_damaged_file_is_not_json_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"record\.json is not JSON"):
        Record.load(path)


def test_bytes_that_are_no_text_are_not_json(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CheckpointError, match="is not JSON"):
        Record.load(tmp_path)


@pytest.mark.parametrize(
    "plain",
    [
        [],
        "text",
        3,
        None,
        {},
        {"name": "package.json", "version": 1},
        {"format": 1},
        {"format": 1, "rows": 3, "probes": []},
        {"format": 1, "rows": [{"index": 0}], "probes": []},
        {"format": 1, "rows": [], "probes": [{"who": 1}]},
        {"format": 1, "rows": {"a": 1}, "probes": []},
        {"format": 1, "rows": ["text"], "probes": ["text"]},
    ],
)
def test_json_of_something_else_is_not_a_record(tmp_path: Path, plain: object) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="not a record of Latewood"):
        Record.load(path)


def test_a_record_of_a_later_format_is_refused_with_its_number() -> None:
    with pytest.raises(CheckpointError, match="has format 2; this version of Latewood reads format 1"):
        Record.from_json({**two_metrics().to_json(), "format": 2})


# Over seeds


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_over_seeds_is_students(values: list[float], level: float) -> None:
    mean, half = mean_and_interval(values, level)
    error = float(scipy.stats.sem(values))
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    if error > 0:
        low, high = scipy.stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=error)
        assert [mean - half, mean + half] == pytest.approx([low, high])
    else:
        assert half == 0


def test_one_seed_has_a_mean_and_no_interval_and_nan_is_left_out() -> None:
    mean, half = mean_and_interval([0.5])
    assert (mean, math.isnan(half)) == (0.5, True)
    assert mean_and_interval([0.7, NAN, 0.9]) == mean_and_interval([0.7, 0.9])
    assert all(math.isnan(value) for value in mean_and_interval([NAN]))
    assert all(math.isnan(value) for value in mean_and_interval([]))
