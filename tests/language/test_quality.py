"""The quality scorer, the subset it chooses, and the shares of sources beside it."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.language.corpora.tokenizers import ByteTokenizer
from latewood.language.quality import LLAMA_RATES, LLAMA_WEB, QualityScorer, epoch_blocks, keep_rates

Gram = tuple[int, ...]


class Reference:
    """Interpolated modified Kneser-Ney by counting in dictionaries, as the formulas are written."""

    def __init__(self, order: int, documents: list[str], size: int = 257) -> None:
        self.order, self.size = order, size
        windows = [window for text in documents for window in self.windows(text)]
        self.counts: dict[int, Counter[Gram]] = {order: Counter(windows)}
        for length in range(order - 1, 0, -1):
            longer = self.counts[length + 1]
            self.counts[length] = Counter(gram[1:] for gram in longer)  # each distinct longer one counts once
        self.discounts = {length: self.discount(list(counts.values())) for length, counts in self.counts.items()}
        self.followers: dict[Gram, dict[int, int]] = defaultdict(dict)
        for counts in self.counts.values():
            for gram, count in counts.items():
                self.followers[gram[:-1]][gram[-1]] = count

    def windows(self, text: str) -> list[Gram]:
        tokens = [-1] * (self.order - 1) + list(text.encode())
        return [tuple(tokens[i : i + self.order]) for i in range(len(tokens) - self.order + 1)]

    @staticmethod
    def discount(counts: list[int]) -> list[float]:
        n = [sum(count == k for count in counts) for k in range(5)]
        if not all(n[1:]):
            return [0.0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))]
        return found if all(0 < found[k] <= k for k in (1, 2, 3)) else [0.0, 0.5, 1.0, 1.5]

    def probability(self, token: int, context: Gram) -> float:
        lower = self.probability(token, context[1:]) if context else 1 / self.size
        following = self.followers.get(context)
        if not following:
            return lower
        discounts = self.discounts[len(context) + 1]
        total = sum(following.values())
        weight = sum(discounts[min(count, 3)] for count in following.values()) / total
        count = following.get(token, 0)
        return (count - discounts[min(count, 3)]) / total + weight * lower

    def perplexity(self, text: str) -> float:
        windows = self.windows(text)
        return math.exp(-sum(math.log(self.probability(w[-1], w[:-1])) for w in windows) / len(windows))


words = st.text(alphabet="ab c", min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(words, min_size=1, max_size=6), st.lists(words | st.text(min_size=1, max_size=5), min_size=1), st.integers(1, 6)
)
def test_perplexities_are_those_of_the_formulas(reference: list[str], documents: list[str], order: int) -> None:
    scorer, wanted = QualityScorer(order), Reference(order, reference)
    scorer.train(reference)
    assert scorer.perplexities(documents) == pytest.approx([wanted.perplexity(text) for text in documents], rel=1e-9)


def test_perplexities_are_those_of_the_formulas_on_real_text(real_data: Path) -> None:
    verses = speeches(real_data)
    scorer, wanted = QualityScorer(), Reference(5, verses[:300])
    scorer.train(verses[:300])
    assert all(wanted.discounts[length] != [0.0, 0.5, 1.0, 1.5] for length in (3, 4, 5))  # estimated, not the usual ones
    assert scorer.perplexities(verses[300:320]) == pytest.approx([wanted.perplexity(t) for t in verses[300:320]], rel=1e-9)


@pytest.mark.parametrize("context", ["", "a", "ab", "zz", "abcab"])
def test_the_probabilities_after_any_context_sum_to_one(context: str) -> None:
    class Letters(ByteTokenizer):
        size = 128  # all of them can be asked for

    scorer = QualityScorer(3, Letters())
    scorer.train(["abcabc", "abd", "ba"])
    before = scorer.perplexity(context) ** -len(context) if context else 1.0
    after = [scorer.perplexity(context + chr(i)) ** -(len(context) + 1) / before for i in range(128)]
    assert sum(after) == pytest.approx(1)


def speeches(real_data: Path) -> list[str]:
    return [text for text in (real_data / "text" / "tinyshakespeare.txt").read_text().split("\n\n") if text]


@pytest.fixture
def shakespeare(real_data: Path) -> QualityScorer:
    scorer = QualityScorer()
    scorer.train(speeches(real_data)[:2000])
    return scorer


def test_a_sentence_is_likelier_than_its_words_shuffled(shakespeare: QualityScorer, real_data: Path) -> None:
    for sentence in [text for text in speeches(real_data)[:2000] if len(text.split()) > 12][:50]:
        shuffled = sentence.split()
        random.Random(0).shuffle(shuffled)
        assert shakespeare.perplexity(sentence) < shakespeare.perplexity(" ".join(shuffled))


def test_doubling_a_document_leaves_its_score_within_a_hundredth(shakespeare: QualityScorer, real_data: Path) -> None:
    text = speeches(real_data)
    for document in ("\n\n".join(text[i : i + 20]) for i in range(2000, 2200, 20)):
        assert shakespeare.perplexity(document + document) == pytest.approx(shakespeare.perplexity(document), rel=0.01)


def test_text_of_the_reference_ranks_before_another_language(shakespeare: QualityScorer, real_data: Path) -> None:
    english = ["\n\n".join(speeches(real_data)[i : i + 5]) for i in range(3000, 3200, 5)]
    lines = (real_data / "text" / "fr.txt").read_text().splitlines()
    french = ["\n".join(lines[i : i + 3]) for i in range(0, 120, 3)]
    mixed = [text for pair in zip(french, english, strict=True) for text in pair]
    ranked = shakespeare.rank(mixed)
    assert set(ranked[: len(english)] % 2) == {1}


# The subset


documents_of_any_kind = st.lists(st.text(alphabet="abc xyz", min_size=1, max_size=40), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(documents_of_any_kind, st.floats(0.01, 1))
def test_the_subset_holds_the_best_and_as_much_as_asked_for(documents: list[str], share: float) -> None:
    scorer = QualityScorer(3)
    scorer.train(["abc abc cab", "a b c"])
    wanted = max(1, int(share * sum(map(len, documents))))
    chosen = scorer.best(documents, wanted)
    scores = scorer.perplexities(documents)
    left = sorted(set(range(len(documents))) - set(chosen.tolist()))
    assert len(set(chosen.tolist())) == len(chosen)
    assert not left or scores[chosen].max() <= scores[left].min()
    assert wanted <= sum(len(documents[i]) for i in chosen) < wanted + max(map(len, documents))
    assert chosen.tolist() == scorer.best(documents, wanted).tolist() == scorer.rank(documents)[: len(chosen)].tolist()


def test_equal_documents_keep_their_order() -> None:
    scorer = QualityScorer(2)
    scorer.train(["abab"])
    assert scorer.rank(["ab", "zz", "ab", "ab"]).tolist() == [0, 2, 3, 1]


def test_scores_do_not_depend_on_what_is_scored_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = QualityScorer(4)
    scorer.train(["the cat sat on the mat", "a dog"])
    documents = ["the cat", "cat the", "x", "on the mat " * 9, "dog"]
    alone = [scorer.perplexity(document) for document in documents]
    assert scorer.perplexities(documents).tolist() == pytest.approx(alone, rel=1e-12)
    monkeypatch.setattr("latewood.language.quality._TOKENS_AT_ONCE", 5)
    monkeypatch.setattr("latewood.language.quality._DOCUMENTS_AT_ONCE", 2)
    assert scorer.perplexities(documents).tolist() == pytest.approx(alone, rel=1e-12)


def test_no_documents_get_no_scores() -> None:
    scorer = QualityScorer()
    scorer.train(["text"])
    assert scorer.perplexities([]).shape == (0,)
    assert scorer.rank([]).shape == (0,)


def test_training_again_replaces_what_was_learned() -> None:
    once, twice = QualityScorer(), QualityScorer()
    twice.train(["something else entirely"])
    for scorer in (once, twice):
        scorer.train(["the reference"])
    assert once.perplexity("the text") == twice.perplexity("the text")


def test_what_can_not_be_scored_is_told_in_one_sentence() -> None:
    scorer = QualityScorer()
    with pytest.raises(ConfigurationError, match="train it on trusted documents first"):
        scorer.perplexity("text")
    with pytest.raises(DataError, match="reference text is empty"):
        scorer.train(["", ""])
    scorer.train(["text"])
    with pytest.raises(DataError, match="Document 1 is empty"):
        scorer.rank(["text", ""])
    with pytest.raises(DataError, match="100 tokens was asked for, but the documents hold only 8"):
        scorer.best(["text", "text"], 100)
    with pytest.raises(ConfigurationError, match="at least one token"):
        scorer.best(["text"], 0)
    with pytest.raises(ConfigurationError, match="order of at least 1"):
        QualityScorer(0)


# On disk


def test_a_scorer_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    scorer = QualityScorer(4)
    scorer.train(["the cat sat on the mat"])
    scorer.save(tmp_path / "scorer")
    again = QualityScorer.load(tmp_path / "scorer")
    documents = ["the mat", "a cat"]
    assert again.order == 4
    assert again.perplexities(documents).tolist() == scorer.perplexities(documents).tolist()


def test_a_scorer_is_not_loaded_with_another_tokenizer_or_damaged(tmp_path: Path) -> None:
    class Other(ByteTokenizer):
        fingerprint = "other"

    scorer = QualityScorer(2)
    scorer.train(["text"])
    scorer.save(tmp_path / "scorer")
    with pytest.raises(CheckpointError, match="trained with another tokenizer than bytes"):
        QualityScorer.load(tmp_path / "scorer", Other())
    info = tmp_path / "scorer" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "order": 3}))
    with pytest.raises(CheckpointError, match="damaged"):
        QualityScorer.load(tmp_path / "scorer")


def test_another_checkpoint_is_no_scorer(tmp_path: Path) -> None:
    from latewood.core import checkpoint

    checkpoint.save(tmp_path / "other", {}, {"note": "something else"})
    with pytest.raises(CheckpointError, match="does not hold a quality scorer"):
        QualityScorer.load(tmp_path / "other")


# The shares of the sources


AVAILABLE = {"domain": 2000, "github": 400, "wikipedia": 400, "books": 400, "arxiv": 400, "stackexchange": 400}


@pytest.mark.parametrize("blocks", [1, 7, 100, 999])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_epoch_has_the_configured_shares_within_one_block(blocks: int, epoch: int) -> None:
    shares = keep_rates(LLAMA_RATES, LLAMA_WEB)
    assert sum(shares.values()) == pytest.approx(1)
    chosen = epoch_blocks(AVAILABLE, shares, blocks, epoch)
    assert sum(map(len, chosen.values())) == blocks
    for source, share in shares.items():
        assert abs(len(chosen[source]) - share * blocks) < 1


def test_web_sources_give_nothing_and_the_domain_exactly_their_sum() -> None:
    shares = keep_rates(LLAMA_RATES, LLAMA_WEB)
    assert not set(shares) & set(LLAMA_WEB)
    assert shares["domain"] == pytest.approx(LLAMA_RATES["commoncrawl"] + LLAMA_RATES["c4"])
    assert {source: shares[source] for source in shares if source != "domain"} == {
        source: rate for source, rate in LLAMA_RATES.items() if source not in LLAMA_WEB
    }


def test_epochs_share_the_part_of_the_pool_that_chance_gives_unless_the_data_is_fixed() -> None:
    shares = keep_rates(LLAMA_RATES, LLAMA_WEB)
    first, second = (set(epoch_blocks(AVAILABLE, shares, 1000, epoch)["domain"].tolist()) for epoch in (0, 1))
    assert len(first) == 820
    assert len(first & second) / 820 == pytest.approx(820 / 2000, abs=0.06)
    fixed = [epoch_blocks(AVAILABLE, shares, 1000, epoch, dynamic=False) for epoch in (0, 1)]
    assert all(np.array_equal(fixed[0][source], fixed[1][source]) for source in shares)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(0, 5), st.booleans(), st.integers(0, 3))
def test_no_block_comes_twice_in_an_epoch_and_the_same_seed_draws_the_same(
    blocks: int, epoch: int, dynamic: bool, seed: int
) -> None:
    shares = {"domain": 0.82, "books": 0.18}
    how: dict[str, Any] = {"dynamic": dynamic, "seed": seed}
    chosen = epoch_blocks(AVAILABLE, shares, blocks, epoch, **how)
    for source, rows in chosen.items():
        assert len(set(rows.tolist())) == len(rows)
        assert not len(rows) or (rows.min() >= 0 and rows.max() < AVAILABLE[source])
    again = epoch_blocks(AVAILABLE, shares, blocks, epoch, **how)
    assert all(np.array_equal(chosen[source], again[source]) for source in shares)


def test_without_web_sources_it_is_plain_replay() -> None:
    assert keep_rates({"web": 0.0, "books": 0.7, "code": 0.3}, ["web"]) == {"books": 0.7, "code": 0.3}
    assert keep_rates({"books": 0.7, "code": 0.3}, []) == {"books": 0.7, "code": 0.3}


def test_with_nothing_kept_and_all_blocks_it_is_one_pass_over_the_corpus() -> None:
    shares = keep_rates({"web": 1.0}, ["web"])
    assert shares == {"domain": 1.0}
    assert sorted(epoch_blocks({"domain": 50}, shares, 50, 0)["domain"].tolist()) == list(range(50))


def test_a_source_that_would_have_to_repeat_is_refused() -> None:
    with pytest.raises(DataError, match="needs 90 blocks of 'domain', but there are 50; take a smaller subset"):
        epoch_blocks({"domain": 50, "books": 50}, {"domain": 0.9, "books": 0.1}, 100, 0)


def test_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"sum to 1, but they are books 0\.7"):
        keep_rates({"books": 0.7}, [])
    with pytest.raises(ConfigurationError, match="'web' is none of the sources books"):
        keep_rates({"books": 1.0}, ["web"])
    with pytest.raises(ConfigurationError, match="can't be called 'books'"):
        keep_rates({"books": 1.0}, [], domain="books")
    with pytest.raises(ConfigurationError, match="at least 0"):
        epoch_blocks({"a": 9, "b": 9}, {"a": 1.5, "b": -0.5}, 3, 0)
