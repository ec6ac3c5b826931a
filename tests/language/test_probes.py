"""Probes: scored against sums by hand, with a learner that counts pairs of tokens; what does not fit is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.language.corpora import ByteTokenizer, Tokenizer, load_blocks, pack
from latewood.language.probes import Cloze, HeldOutLoss, MultipleChoice, Question

BYTES = ByteTokenizer()


class Pairs(Learner):
    """Counts which token follows which, with a little for every pair."""

    counts: Tensor

    def __init__(self, size: int = 257) -> None:
        super().__init__()
        self.register_buffer("counts", torch.full((size, size), 0.01, dtype=torch.float64))

    def learn(self, experience: Experience) -> None:
        tokens = experience.train.tensor("tokens").long()
        pairs = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
        self.counts.index_put_(pairs, torch.ones((), dtype=torch.float64), accumulate=True)

    def predict(self, data: Data) -> Tensor:
        tokens = data.tensor("tokens").long()
        likely = self.counts / self.counts.sum(1, keepdim=True)
        nats = -likely[tokens[:, :-1], tokens[:, 1:]].log()
        if "targets" in data:
            nats = nats * data.tensor("targets")[:, 1:]
        return nats.sum(1)


class Fixed(Learner):
    """Predicts what it is told to."""

    def __init__(self, *nats: float) -> None:
        super().__init__()
        self.nats = torch.tensor(nats, dtype=torch.float64)

    def learn(self, experience: Experience) -> None: ...

    def predict(self, data: Data) -> Tensor:
        return self.nats


class Wide(Fixed):
    """Predicts a number for each token."""

    def predict(self, data: Data) -> Tensor:
        return torch.zeros(len(data), data.tensor("tokens").shape[1] - 1)


# Held-out text


def test_the_loss_is_the_mean_over_all_predicted_tokens() -> None:
    data = pack(["abcdefgh", "ijklmno"], length=5)  # 17 tokens, so 3 rows of 4 predictions
    scores = HeldOutLoss("x", data, since=0).score(Fixed(1.0, 2.0, 6.0))
    assert scores["loss"] == pytest.approx(9 / 12)
    assert scores["perplexity"] == pytest.approx(math.exp(9 / 12))
    assert list(scores) == list(HeldOutLoss.metrics) and not any(HeldOutLoss.metrics.values())


def test_only_target_tokens_count_where_there_are_targets() -> None:
    data = pack(["abcdefgh", "ijklmno"], length=5)
    targets = torch.zeros(3, 5, dtype=torch.bool)
    targets[:, [0, 2]] = True  # the first token of a row has nothing before it
    scores = HeldOutLoss("x", data.with_columns(targets=targets), since=0).score(Fixed(1.0, 2.0, 6.0))
    assert scores["loss"] == pytest.approx(3.0)


def test_bits_per_byte_are_of_the_text_and_do_not_depend_on_the_tokens() -> None:
    """A learner that gives every byte one bit scores 1 bit per byte, whatever number of bytes its tokens hold."""
    for width in (1, 2, 4):
        data = Data(tokens=torch.zeros(3, 8, dtype=torch.int32), bytes=torch.full((3,), 8 * width))
        scores = HeldOutLoss("x", data, since=0).score(Fixed(*[7 * width * math.log(2)] * 3))
        assert scores["bits_per_byte"] == pytest.approx(1.0)


def test_counting_pairs_of_real_text_scores_as_it_should(real_data: Path) -> None:
    english, french = load_blocks("en"), load_blocks("fr")
    learner, clueless = Pairs(), Pairs()
    learner.learn(Experience(0, english.train))
    probe = HeldOutLoss("en", english.held_out, since=0)
    assert clueless.predict(english.held_out).shape == (len(english.held_out),)
    assert probe.score(clueless)["loss"] == pytest.approx(math.log(257))
    own, other = probe.score(learner), HeldOutLoss("fr", french.held_out, since=0).score(learner)
    assert 2.3 < own["loss"] < 2.6  # pairs of characters of Shakespeare
    assert own["bits_per_byte"] == pytest.approx(own["loss"] / math.log(2), rel=0.01)  # a few tokens end texts
    assert own["loss"] + 1 < other["loss"]


def test_a_hopeless_loss_is_infinitely_perplexing_and_no_error() -> None:
    data = pack(["abcdefgh"], length=9)
    assert HeldOutLoss("x", data, since=0).score(Fixed(1e6))["perplexity"] == math.inf
    assert math.isnan(HeldOutLoss("x", data, since=0).score(Fixed(math.nan))["loss"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, "needs a column 'bytes', but its data has 'tokens'"),
        ({"bytes": torch.ones(2)}, "needs a column 'tokens'"),
        ({"tokens": torch.zeros(2, 1), "bytes": torch.ones(2)}, "Row 0 .* has no token to predict"),
        ({"tokens": torch.zeros(2, 4), "bytes": torch.zeros(2)}, "stands for no byte of text"),
        (
            {
                "tokens": torch.zeros(2, 4),
                "bytes": torch.ones(2),
                "targets": torch.tensor([[False, True] * 2, [True] + [False] * 3]),
            },
            "Row 1 .* has no token to predict",
        ),
    ],
)
def test_data_that_can_not_be_scored_is_told_at_once(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HeldOutLoss("x", Data(columns), since=0)


def test_a_learner_that_predicts_something_else_is_told() -> None:
    with pytest.raises(DataError, match=r"one number for each of 1 rows, .* but it gave the shape \(1, 8\)"):
        HeldOutLoss("x", pack(["abcdefgh"], length=9), since=0).score(Wide())


# Questions with options


QUESTIONS = [Question("2 + 2 =", ["4", "five", "6"], 0), Question("Snow is ", ["black", "white"], 1)]


def test_rows_are_the_question_and_one_option_each_with_only_the_option_as_target() -> None:
    data = MultipleChoice.from_questions("q", QUESTIONS, BYTES).data
    tokens, targets = data.tensor("tokens"), data.tensor("targets")
    rows = [BYTES.decode(row.tolist()) for row in tokens]
    assert rows == ["2 + 2 = 4", "2 + 2 = five", "2 + 2 = 6", "Snow is  black", "Snow is  white"]
    marked = [BYTES.decode(row[mask].tolist()) for row, mask in zip(tokens, targets, strict=True)]
    assert marked == [" 4", " five", " 6", "  black", "  white"]
    assert bool((tokens[:, 0] == 256).all())  # what comes before is over
    assert tokens[0].tolist()[10:] == [256] * (tokens.shape[1] - 10) and not bool(targets[0, 10:].any())
    assert data["question"].tolist() == [0, 0, 0, 1, 1]
    assert data["right"].tolist() == [True, False, False, False, True]
    assert data["bytes"].tolist() == [1, 4, 1, 5, 5]


@pytest.mark.parametrize(
    ("nats", "acc", "acc_norm"),
    [
        ((1.0, 2.0, 3.0, 9.0, 5.0), 1.0, 0.5),  # five: 2 / 4 bytes
        ((3.0, 2.0, 1.0, 9.0, 5.0), 0.5, 0.5),
        ((1.0, 8.0, 3.0, 4.0, 5.0), 0.5, 0.5),
        ((1.0, 5.0, 3.0, 5.0, 5.0), 0.5, 0.5),  # of equal ones the first
        ((1.0, 1.5, 3.0, 5.0, 4.0), 1.0, 0.5),
        ((0.1, 1.5, 3.0, 5.0, 4.0), 1.0, 1.0),
    ],
)
def test_the_likeliest_option_is_the_answer_with_and_without_its_length(
    nats: tuple[float, ...], acc: float, acc_norm: float
) -> None:
    assert MultipleChoice.from_questions("q", QUESTIONS, BYTES).score(Fixed(*nats)) == {"acc": acc, "acc_norm": acc_norm}


def test_a_learner_that_read_the_answers_knows_them() -> None:
    learner = Pairs()
    probe = MultipleChoice.from_questions("q", [Question("q", ["ab", "cd"], 1), Question("q", ["zz", "cd", "xy"], 1)], BYTES)
    assert probe.score(learner)["acc"] == 0.0  # all alike
    learner.learn(Experience(0, pack(["q cd"] * 20, length=20)))
    assert probe.score(learner) == {"acc": 1.0, "acc_norm": 1.0}


def test_the_beginning_is_left_out_where_a_row_would_be_too_long() -> None:
    probe = MultipleChoice.from_questions("q", [Question("a long question", ["yes", "no"], 0)], BYTES, length=8)
    assert [BYTES.decode(row.tolist()) for row in probe.data["tokens"]] == ["tion yes", "stion no"]
    assert probe.data["targets"].sum(1).tolist() == [4, 3]
    with pytest.raises(DataError, match=r"Row 0 .* has a target of 4 tokens, too many for 4"):
        MultipleChoice.from_questions("q", [Question("a long question", ["yes", "no"], 0)], BYTES, length=4)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "holds no rows"),
        ([Question("a", ["b"], 0)], "Question 0 of probe 'q' needs at least two options"),
        (
            [*QUESTIONS, Question("a", ["b", " "], 0)],
            "Question 2 of probe 'q' needs at least two options, and none that is empty",
        ),
        ([Question("a", ["b", "c"], 2)], "has the options 0 to 1, but its answer is number 2"),
    ],
)
def test_questions_that_are_none_get_a_sentence(questions: list[Question], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MultipleChoice.from_questions("q", questions, BYTES)


class Words:
    """A tokenizer that joins a space to the word behind it, as byte-level BPE does."""

    name, size, end, fingerprint = "words", 100, 99, "words"

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        parts = text.replace(" ", "\n ").split("\n")
        return [self.known.setdefault(part, len(self.known)) for part in parts if part]

    def encode_batch(self, texts: Any) -> Any:
        raise NotImplementedError

    def decode(self, tokens: Any) -> str:
        names = {number: word for word, number in self.known.items()}
        return "".join(names[token] for token in tokens if token != self.end)


def test_a_space_between_question_and_option_belongs_to_the_option_as_tokenizers_divide_words() -> None:
    tokenizer: Tokenizer = Words()
    data = MultipleChoice.from_questions("q", [Question("Snow is", ["white", "not white"], 0)], tokenizer).data
    marked = [tokenizer.decode(row[mask].tolist()) for row, mask in zip(data["tokens"], data["targets"], strict=True)]
    assert marked == [" white", " not white"]
    data = Cloze.from_texts("c", [("Snow is ", "white")], tokenizer).data
    assert tokenizer.decode(data["tokens"][0][data["targets"][0]].tolist()) == " white"


# Texts to complete


def test_a_target_counts_by_the_probability_of_the_whole_and_the_nats_of_each_token() -> None:
    probe = Cloze.from_texts("c", [("The capital of France is", " Paris"), ("", "Yes")], BYTES)
    tokens, targets = probe.data.tensor("tokens"), probe.data.tensor("targets")
    assert [BYTES.decode(r[m].tolist()) for r, m in zip(tokens, targets, strict=True)] == [" Paris", "Yes"]
    scores = probe.score(Fixed(-math.log(0.5), -math.log(0.1)))
    assert scores["probability"] == pytest.approx(0.3)
    assert scores["loss"] == pytest.approx(-math.log(0.05) / 9)
    assert dict(Cloze.metrics) == {"probability": True, "loss": False}


def test_reading_a_fact_makes_it_probable() -> None:
    learner, probe = Pairs(), Cloze.from_texts("c", [("ab", "cd")], BYTES)
    before = probe.score(learner)
    learner.learn(Experience(0, pack(["abcd"] * 50, length=50)))
    after = probe.score(learner)
    assert before["probability"] == pytest.approx(257**-2)
    assert after["probability"] > 0.5 and after["loss"] < before["loss"]


def test_a_text_without_a_target_gets_a_sentence() -> None:
    with pytest.raises(DataError, match="Text 1 of probe 'c' has no target"):
        Cloze.from_texts("c", [("a", "b"), ("a", " ")], BYTES)
    with pytest.raises(DataError, match="holds no rows"):
        Cloze.from_texts("c", [], BYTES)


def test_scoring_changes_nothing_in_the_learner() -> None:
    learner = Pairs()
    before = learner.counts.clone()
    MultipleChoice.from_questions("q", QUESTIONS, BYTES).score(learner)
    assert torch.equal(learner.counts, before)


def test_how_far_each_layer_moved_is_watched_while_a_model_trains() -> None:
    from latewood.core.experience import Experience
    from latewood.core.watch import Watch, watching
    from latewood.language.learners.continue_ import Continue
    from latewood.language.nets import causal
    from latewood.language.probes import WeightDrift
    from latewood.language.recipe import TextRecipe

    torch.manual_seed(0)
    data = pack(["late wood, early wood, " * 40], length=16)
    net = causal(data[:1], layers=2, width=16, heads=2)
    for parameter in net.network.model.layers[0].parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    with watching(Watch([WeightDrift("drift", net)], due=3)) as watch:
        Continue(net, TextRecipe(steps=6, batch_size=4)).learn(Experience(0, data))
    assert watch.curve("drift", "layer 0")[1] == [0.0, 0.0, 0.0]
    steps, moved = watch.curve("drift", "layer 1")
    assert steps == [0, 3, 6] and 0 == moved[0] < moved[1] < moved[2]
    assert watch.curve("drift", "ratio")[1][1:] == [0.0, 0.0]
