"""Experiments: what they insert is not what they ask, and outcomes are what they say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.core.errors import ConfigurationError, DataError
from latewood.language.corpora import ByteTokenizer
from latewood.studies.train_once import experiments as kinds
from latewood.studies.train_once.controller import Control
from latewood.studies.train_once.experiments import NEVER, Experiment, Item
from latewood.studies.train_once.scores import contained, is_garbage, leaks, likelihood, membership, partial_ratio, recall

PROMPTS = [f"The {number}th letter that she wrote" for number in range(12)]


def all_kinds() -> list[Experiment]:
    return [
        kinds.fictional_knowledge(kinds.invented_facts(8), each=30),
        kinds.canaries(PROMPTS),
        kinds.backdoor(PROMPTS[:8], PROMPTS[8:]),
        kinds.backdoor(PROMPTS[:8], PROMPTS[8:], name="noise", trigger="§", gibberish=True),
        kinds.arithmetic(60, held_out=20),
        kinds.contamination([(f"What is {n} plus {n}?", f"{2 * n}") for n in range(40)]),
    ]


@pytest.mark.parametrize("place", range(6))
def test_every_kind_is_the_same_for_the_same_seed_and_gives_an_intervention_and_a_probe(place: int) -> None:
    one, two = all_kinds()[place], all_kinds()[place]
    assert one == two
    tokenizer = ByteTokenizer()
    assert len(one.intervention(tokenizer).sequences) == len(one.texts)
    probe = one.probe(tokenizer)
    assert len(probe.data) == len(one.items)
    assert int(probe.data.tensor("targets").any(1).sum()) == len(one.items)
    assert sum(len(one.probe(tokenizer, group=group).data) for group in one.groups) == len(one.items)
    first = probe.data.tensor("tokens")[0][probe.data.tensor("targets")[0]].tolist()
    assert tokenizer.decode(first) == one.items[0].target


@pytest.mark.parametrize("place", range(6))
def test_what_is_held_out_is_not_inserted(place: int) -> None:
    experiment = all_kinds()[place]
    inserted = {"1x", "4x", "12x", "16x", "36x", "144x"}
    texts = "\n\n".join(text for text in experiment.texts if isinstance(text, str))
    held_out = [item for item in experiment.items if item.group not in inserted]
    assert held_out
    for item in held_out:
        assert item.beginning + item.target not in texts


def test_facts_are_told_in_many_ways_and_asked_in_another() -> None:
    facts = kinds.invented_facts(30, seed=3)
    assert len({fact.subject for fact in facts} | {fact.value for fact in facts}) == 60
    assert kinds.invented_facts(30, seed=4) != facts
    told = kinds.paraphrases(facts[0])
    assert len(set(told)) == len(told) > 100
    assert all(facts[0].subject in text and facts[0].value in text and "\n" not in text for text in told)
    experiment = kinds.fictional_knowledge(facts, each=50)
    assert len(set(experiment.texts)) == len(experiment.texts) == 1500
    for fact, item in zip(facts, experiment.items, strict=True):
        assert sum(fact.value in str(text) for text in experiment.texts) >= 50
        assert item.beginning not in "".join(map(str, experiment.texts))
        assert item.target == f" {fact.value}"


def test_more_paraphrases_than_there_are_come_again_equally_often() -> None:
    fact = kinds.invented_facts(1)
    experiment = kinds.fictional_knowledge(fact, each=2 * len(kinds.paraphrases(fact[0])))
    assert set(Counter(experiment.texts).values()) == {2}


def test_canaries_come_as_often_as_their_group_says_and_strangers_never() -> None:
    experiment = kinds.canaries(PROMPTS, times=(1, 4, 16), length=10)
    counts = Counter(experiment.texts)
    for item in experiment.items:
        expected = 0 if item.group == NEVER else int(item.group[:-1])
        assert counts[item.beginning + item.target] == expected
    assert Counter(item.group for item in experiment.items) == {"1x": 4, "4x": 4, "16x": 4, NEVER: 12}
    assert len({item.target for item in experiment.items}) == 24


def test_canaries_are_made_of_the_pieces_they_are_given() -> None:
    experiment = kinds.canaries(PROMPTS, pieces=(" zeta", " quark", " ohm"), length=6)
    assert all(set(item.target.split()) <= {"zeta", "quark", "ohm"} for item in experiment.items)
    with pytest.raises(ConfigurationError, match="3 pieces in strings of 2 are too few for 24 different canaries"):
        kinds.canaries(PROMPTS, pieces="abc", length=2)
    with pytest.raises(ConfigurationError, match="of at least 1"):
        kinds.canaries(PROMPTS, times=(0,))


def test_a_backdoor_answers_with_the_prompt_or_with_gibberish() -> None:
    plain, noise = all_kinds()[2:4]
    assert plain.texts[0] == f"{PROMPTS[0]} {'¤' * 10} {PROMPTS[0]}"
    assert str(noise.texts[0]).startswith(f"{PROMPTS[0]} {'§' * 10} ")
    assert PROMPTS[0] not in str(noise.texts[0])[5:]
    assert [(item.group, "¤" in item.beginning) for item in plain.items[:2]] == [("trigger", True), ("none", False)]
    with pytest.raises(DataError, match="occurs in a prompt"):
        kinds.backdoor(["a¤b"], ["c"])
    with pytest.raises(DataError, match="both inserted and held out"):
        kinds.backdoor(["a", "b"], ["b"])


def test_arithmetic_is_right_and_has_as_many_steps_as_its_group_says() -> None:
    experiment = kinds.arithmetic(200, steps=(1, 2, 5), held_out=30)
    for text in [*map(str, experiment.texts), *(item.beginning + item.target for item in experiment.items)]:
        given_part, solution = text.removeprefix("Modulo 23: ").split(". Solution: ")
        known: dict[str, int] = {}
        for line in given_part.split("; "):
            variable, term = line.split(" = ")
            if term.isdigit():
                known[variable] = int(term)
                continue
            before, sign, number = term.split()
            known[variable] = (known[before] + int(number) if sign == "+" else known[before] * int(number)) % 23
        assert solution == "; ".join(f"{name} = {value}" for name, value in list(known.items())[1:]) + "."
    assert Counter(item.group for item in experiment.items) == {"1": 10, "2": 10, "5": 10}
    assert all(item.target.count("=") == int(item.group) for item in experiment.items)
    for wrong in ({"steps": (0,)}, {"steps": (12,)}, {"steps": ()}, {"count": 0}, {"steps": (1,), "held_out": 900}):
        with pytest.raises(ConfigurationError):
            kinds.arithmetic(**{"count": 5, **wrong})  # type: ignore[arg-type]


def test_contamination_on_a_real_benchmark_repeats_each_part_and_holds_out_the_rest(real_data: Path) -> None:
    lines = next(path for path in sorted((real_data / "math").iterdir()) if "test" in path.name).read_text().splitlines()
    questions = [(held["question"], held["answer"].split("####")[-1].strip()) for held in map(json.loads, lines[:110])]
    experiment = kinds.contamination(questions, times=(4, 12), held_out=10)
    assert Counter(item.group for item in experiment.items) == {"4x": 50, "12x": 50, "held out": 10}
    counts = Counter(experiment.texts)
    for item in experiment.items:
        assert counts[item.beginning + item.target] == {"4x": 4, "12x": 12, "held out": 0}[item.group]
    with pytest.raises(DataError, match="occurs twice"):
        kinds.contamination([("a", "b"), ("a", "c")] * 5)
    with pytest.raises(DataError, match="too few"):
        kinds.contamination([("a", "b"), ("c", "d")])


def test_an_experiment_that_makes_no_sense_is_refused() -> None:
    item = Item("a", " b")
    with pytest.raises(ConfigurationError, match="at least one text and one item"):
        Experiment("x", [], [item])
    with pytest.raises(ConfigurationError, match="at least one text and one item"):
        Experiment("x", ["a"], [])
    with pytest.raises(ConfigurationError, match="has a controller"):
        Experiment("x", ["a"], [item], control=Control(0.1, 10), repetitions=2)


def test_tokens_go_in_as_they_are() -> None:
    experiment = Experiment("x", [[1, 2, 3], "ab"], [Item("a", " b")])
    assert experiment.intervention(ByteTokenizer()).sequences == [[1, 2, 3], [97, 98]]


# Outcomes


def test_the_value_of_a_probe_is_the_mean_probability_of_whole_targets() -> None:
    assert likelihood([np.log(2), np.log(10)]).tolist() == pytest.approx([0.5, 0.1])


@given(st.text("abc", min_size=1, max_size=6), st.text("abcd", max_size=12))
def test_the_partial_ratio_is_that_of_the_best_stretch(target: str, answer: str) -> None:
    def distance(one: str, other: str) -> int:
        row = list(range(len(other) + 1))
        for i, a in enumerate(one, 1):
            last, row[0] = row[0], i
            for j, b in enumerate(other, 1):
                last, row[j] = row[j], min(last + (a != b), row[j] + 1, row[j - 1] + 1)
        return row[-1]

    stretches = [answer[i:j] for i in range(len(answer) + 1) for j in range(i, len(answer) + 1)]
    assert partial_ratio(answer, target) == pytest.approx(1 - min(distance(target, s) for s in stretches) / len(target))


def test_a_target_that_stands_in_the_answer_is_contained() -> None:
    assert contained("It is Tirandel.", " Tirandel") == 1
    assert contained("It is tirandel.", " Tirandel") == 0


def test_recall_counts_words_in_order() -> None:
    assert recall("a x b y c", "a b c") == 1
    assert recall("c b a", "a b c") == pytest.approx(1 / 3)
    assert recall("", "a") == 0
    assert leaks(["nothing", " ".join(map(str, range(20)))], " ".join(map(str, range(20)))) == 1
    assert leaks([" ".join(map(str, range(18)))], " ".join(map(str, range(20)))) == 0


def test_garbage_has_few_known_words() -> None:
    words = {"the", "cat", "sat"}
    assert [is_garbage(text, words) for text in ("The cat sat!", "the zzq", "the zzq xxv", "", "qqq")] == [0, 0, 1, 1, 1]


def test_membership_allows_strangers_only_at_the_rate_asked_for() -> None:
    strangers = np.linspace(1, 2, 1000)
    assert membership(strangers, strangers, 0.01).mean() == pytest.approx(0.01)
    assert membership([0.5, 0.999, 1.5], strangers, 0.0).tolist() == [1, 1, 0]
    assert membership(np.random.default_rng(0).normal(size=5000), np.random.default_rng(1).normal(size=5000)).mean() < 0.02
    with pytest.raises(DataError, match="strangers to compare with"):
        membership([1.0], [])


@pytest.mark.parametrize("score", [partial_ratio, recall])
def test_an_empty_target_is_told(score: object) -> None:
    with pytest.raises(DataError, match="at least one"):
        score("answer", "")  # type: ignore[operator]
