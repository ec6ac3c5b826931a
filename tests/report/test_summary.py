"""Finding, grouping and summarising records."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.record import SUMMARY, Record, mean_and_interval
from latewood.report.summary import COSTS, group, load_records, sort, summarise

MakeRecord = Callable[..., Record]


def test_records_are_found_below_the_folders_once_and_not_in_checkpoints(tmp_path: Path, make_record: MakeRecord) -> None:
    for seed in range(3):
        make_record("replay", seed).save(tmp_path / f"replay/seed-{seed}/record.json")
    shutil.copytree(tmp_path / "replay/seed-0", tmp_path / "replay/seed-0/checkpoints/00005")
    found = load_records([tmp_path, tmp_path / "replay", str(tmp_path / "replay/seed-1")])
    assert [record.config["seed"] for record in found] == [0, 1, 2]


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No record\.json was found in .*empty or below it there"):
        (tmp_path / "empty").mkdir()
        load_records([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="because it does not exist"):
        load_records([tmp_path / "nowhere"])
    with pytest.raises(CheckpointError, match="No folder was named"):
        load_records([])


def test_groups_are_named_by_method_or_else_by_class(make_record: MakeRecord) -> None:
    records = [make_record("replay", 1), make_record("replay", 0), make_record("slca", 0, label="slca, tuned")]
    groups = group(records)
    assert list(groups) == ["ExperienceReplay", "slca, tuned"]
    assert [record.config["seed"] for record in groups["ExperienceReplay"]] == [0, 1]


def test_the_seed_of_the_stream_may_differ_and_nothing_else(make_record: MakeRecord) -> None:
    first, second = make_record("replay", 0), make_record("slca", 1)
    assert first.config["stream"] != second.config["stream"]
    assert len(group([first, second])) == 2
    second.config["stream"]["dataset"] = "cifar{100}"
    with pytest.raises(ConfigurationError, match=r"its dataset is 'digits' in .*\(seed 0\) and 'cifar\{100\}' in SLCA"):
        group([first, second])
    with pytest.raises(ConfigurationError, match=r"its steps is 5 in .* and 6 in"):
        group([first, make_record("slca", 1, length=6, done=6)])


def test_other_metrics_are_refused(make_record: MakeRecord) -> None:
    first, second = make_record("replay", 0), make_record("slca", 0)
    second.higher_is_better = {"accuracy": True}
    with pytest.raises(ConfigurationError, match="its list of metrics is accuracy"):
        group([first, second])


def test_no_records_and_records_without_scores_are_refused(make_record: MakeRecord) -> None:
    with pytest.raises(ConfigurationError, match="There are no records"):
        summarise([])
    with pytest.raises(ConfigurationError, match="hold no scores"):
        group([Record({"method": "er"}, {}, [], 1)])
    with pytest.raises(ConfigurationError, match="neither a method nor a learner"):
        group([dataclasses.replace(make_record("replay"), config={})])


def test_two_runs_with_one_seed_are_refused_with_the_reason(make_record: MakeRecord) -> None:
    first, second = make_record("replay", 0), make_record("replay", 0)
    with pytest.raises(ConfigurationError, match="have seed 0: name only one of them"):
        group([first, second])
    second.config["learner"]["memory"] = 500
    with pytest.raises(ConfigurationError, match=r"differ in learner\.memory, so give each its own 'method'"):
        group([first, second])


def test_a_summary_holds_what_the_records_say(records: list[Record]) -> None:
    summaries = summarise(records)
    assert len(summaries) == 7
    summary = next(summary for summary in summaries if summary.label == "LwF")
    assert summary.seeds == [0, 1, 2]
    for metric in ("accuracy", "loss"):
        for name in SUMMARY:
            values = [getattr(record, f"{name}_of")(metric) for record in summary.records]
            estimate = summary.scores[metric][name]
            np.testing.assert_equal((estimate.mean, estimate.half), mean_and_interval(values))
    assert summary.costs["seconds"].mean == pytest.approx(np.mean([record.cost.seconds for record in summary.records]))
    assert set(summary.costs) == set(COSTS)


def test_the_best_comes_first_whatever_better_means(records: list[Record]) -> None:
    by_accuracy, by_loss = summarise(records), summarise(records, "loss")
    accuracies = [summary.scores["accuracy"]["last"].mean for summary in by_accuracy]
    losses = [summary.scores["loss"]["last"].mean for summary in by_loss]
    assert accuracies == sorted(accuracies, reverse=True)
    assert losses == sorted(losses)
    with pytest.raises(ConfigurationError, match="no metric 'f1'; they have accuracy, loss"):
        sort(by_accuracy, "f1")


def test_methods_without_a_score_come_last_and_have_no_cost(make_record: MakeRecord) -> None:
    summaries = summarise([make_record("slca", 0, done=0), make_record("finetuning", 0)])
    assert [summary.label for summary in summaries] == ["Finetuning", "SLCA"]
    assert math.isnan(summaries[1].costs["seconds"].mean)
    assert len(summaries[1].unfinished) == 1


def test_matrix_and_curve_are_means_over_the_seeds_that_know(make_record: MakeRecord) -> None:
    short, full = make_record("replay", 0, done=2), make_record("replay", 1)
    summary = summarise([short, full])[0]
    matrix, curve = summary.matrix("accuracy"), summary.curve("accuracy")
    assert matrix.shape == (5, 5)
    assert matrix[1, 0] == pytest.approx((short.matrix()[1, 0] + full.matrix()[1, 0]) / 2)
    assert matrix[4, 0] == pytest.approx(full.matrix()[4, 0])
    assert np.isnan(matrix[0, 1:]).all()
    assert curve[4].mean == pytest.approx(full.last)
    assert math.isnan(curve[4].half)
    assert curve[1].half > 0


def test_a_label_is_one_printable_line(make_record: MakeRecord) -> None:
    (label,) = group([make_record("replay", label="a\nb\x1b[31m\u202ec\ud800")])
    assert label == "a b\ufffd[31m\ufffdc\ufffd"
