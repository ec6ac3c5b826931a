"""The watermark: where it is put, and that its statistic tells a model that saw it from one that did not."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError, DataError
from latewood.studies.train_once.watermark import Watermark, detect, influence, missed, statistic

VOCABULARY, WIDTH, LENGTH, ROWS = 40, 24, 24, 8


class Tiny(nn.Module):
    """An embedding and a linear layer on the last three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden, self.head = nn.Linear(3 * WIDTH, 64), nn.Linear(64, VOCABULARY)

    def losses(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        padded = F.pad(embedded, (0, 0, 2, 0))
        seen = torch.cat([padded[:, 2:], padded[:, 1:-1], padded[:, :-2]], -1)
        logits = self.head(torch.relu(self.hidden(seen)))[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def noises(mark: Watermark, rows: int = ROWS) -> Tensor:
    return torch.stack([mark.noise(0, row, LENGTH, WIDTH) for row in range(rows)])


def test_with_fresh_noise_the_statistic_is_standard_normal() -> None:
    torch.manual_seed(0)
    rows = 4000
    gradients = torch.randn(rows, 6, 8) * torch.rand(rows, 6, 1).exp() * torch.linspace(1e-6, 1e3, rows)[:, None, None]
    mark = Watermark(sigma=0.075, seed=5)
    values = statistic(gradients, torch.stack([mark.noise(0, row, 6, 8) for row in range(rows)]), 0.075)
    assert values.dtype == torch.float64
    assert abs(float(values.mean())) < 3 / math.sqrt(rows)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / rows)
    assert abs(float((values > norm.isf(0.01)).double().mean()) - 0.01) < 4 * math.sqrt(0.01 / rows)


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e6])
def test_the_statistic_does_not_change_with_the_length_of_the_gradient(scale: float) -> None:
    torch.manual_seed(0)
    gradients, noise = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    torch.testing.assert_close(statistic(scale * gradients, noise, 0.1), statistic(gradients, noise, 0.1), rtol=1e-5, atol=1e-5)


def test_a_model_that_trained_on_marked_rows_is_found_and_one_that_did_not_is_not() -> None:
    mark, fresh = Watermark(every=1, rows=ROWS, seed=1), Watermark(every=1, rows=ROWS, seed=2)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    found = {}
    for marked in (True, False):
        torch.manual_seed(0)
        model = Tiny()
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for _ in range(150):
            optimizer.zero_grad()
            embedded = model.embedding(tokens)
            model.losses(mark.added(embedded, 0) if marked else embedded, tokens).mean().backward()
            optimizer.step()
        embedded = model.embedding(tokens)
        values, control = (
            influence(lambda e, model=model: model.losses(e, tokens), embedded, noises(m), 0.075)  # type: ignore[misc]
            for m in (mark, fresh)
        )
        found[marked] = detect(values, control)
    assert found[True].mean > 2
    assert found[True].p_value < 1e-6
    assert found[True].found >= 0.75
    assert found[True].found_in_control < 0.3
    assert abs(found[False].mean) < 3 / math.sqrt(ROWS)
    assert found[False].p_value > 0.001


def test_measuring_changes_neither_the_model_nor_its_gradients() -> None:
    torch.manual_seed(0)
    model = Tiny()
    tokens = torch.randint(0, VOCABULARY, (2, LENGTH))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        values = influence(lambda e: model.losses(e, tokens), model.embedding(tokens), noises(Watermark(), 2), 0.075)
    assert values.shape == (2,)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_marked_rows_of_marked_steps_get_noise_of_the_right_size() -> None:
    mark = Watermark(every=10, rows=3, sigma=0.5)
    embedded = torch.zeros(ROWS, 64, 64)
    for step in range(21):
        noisy = mark.added(embedded, step)
        rows = noisy.abs().sum((1, 2)).nonzero().flatten().tolist()
        assert rows == mark.rows_of(step, ROWS).tolist()
        assert len(rows) == (3 if step % 10 == 0 else 0)
        for row in rows:
            assert torch.equal(noisy[row], mark.noise(step, row, 64, 64))
            assert float(noisy[row].std()) == pytest.approx(0.5, rel=0.05)
    assert mark.rows_of(0, ROWS).tolist() != mark.rows_of(10, ROWS).tolist()


def test_a_step_in_parts_is_marked_like_a_whole_one() -> None:
    mark = Watermark(every=1, rows=4)
    embedded = torch.randn(ROWS, LENGTH, WIDTH)
    parts = [mark.added(embedded[start : start + 2], 7, start, ROWS) for start in range(0, ROWS, 2)]
    assert torch.equal(torch.cat(parts), mark.added(embedded, 7))


def test_within_the_block_the_embedding_of_a_model_is_marked_and_after_it_no_more() -> None:
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    mark = Watermark(every=1, rows=2)
    clean = embedding(tokens)
    with mark.marking(embedding, 3):
        marked = embedding(tokens)
    assert torch.equal(marked, mark.added(clean, 3))
    assert torch.equal(embedding(tokens), clean)
    marked.sum().backward()
    assert embedding.weight.grad is not None


def test_the_same_seed_gives_the_same_noise_and_another_seed_fresh_noise() -> None:
    assert torch.equal(Watermark().noise(3, 1, 4, 4), Watermark().noise(3, 1, 4, 4))
    for other in (Watermark(seed=1).noise(3, 1, 4, 4), Watermark().noise(4, 1, 4, 4), Watermark().noise(3, 2, 4, 4)):
        assert not torch.equal(Watermark().noise(3, 1, 4, 4), other)


def test_a_detection_reports_what_normal_tables_say() -> None:
    found = detect([2.0, 2.5, 0.0], [0.0, 3.0])
    assert found.p_values.tolist() == pytest.approx([0.02275, 0.00621, 0.5], abs=1e-5)
    assert found.p_value == pytest.approx(float(norm.sf(1.5 * math.sqrt(3))))
    assert (found.found, found.found_in_control, found.mean) == pytest.approx((1 / 3, 0.5, 1.5))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_what_a_shift_misses_is_what_normal_numbers_miss(shift: float) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double() + shift
    assert float((values < norm.isf(0.01)).double().mean()) == pytest.approx(missed(shift), abs=0.005)


def test_what_can_not_be_measured_is_told() -> None:
    with pytest.raises(DataError, match="gradient of row 1 is zero"):
        statistic(torch.tensor([[[1.0]], [[0.0]]]), torch.ones(2, 1, 1), 0.1)
    with pytest.raises(DataError, match="same shape"):
        statistic(torch.ones(2, 1, 2), torch.ones(2, 2, 1), 0.1)
    with pytest.raises(DataError, match="statistics of both noises"):
        detect([], [1.0])
    with pytest.raises(ConfigurationError, match="sigma above 0"):
        Watermark(sigma=0)
    with pytest.raises(ConfigurationError, match="marks 9 rows of a step, but a step has only 8"):
        Watermark(rows=9).rows_of(0, 8)
