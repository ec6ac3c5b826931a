"""The invariants of NMC (paper 29)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from latewood import Data, Experience
from latewood.core.errors import ConfigurationError
from latewood.images.datasets import load_images
from latewood.images.learners.nmc import NMC, merged
from latewood.images.nets import mlp, pixels
from latewood.parts.backbone import Backbone

DIGITS = load_images("digits")
BACKBONE = pixels(DIGITS.train[:1])


def learned(*parts: Data, backbone: Backbone = BACKBONE, **settings: object) -> NMC:
    made = NMC(backbone, **settings)  # type: ignore[arg-type]
    for index, part in enumerate(parts):
        made.learn(Experience(index, part))
    return made


def means_by_label(made: NMC) -> torch.Tensor:
    return made.means.means()[made.classes.labels.argsort()]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_order_and_grouping_change_nothing(random: object, pieces: int) -> None:
    order = list(range(300))
    random.shuffle(order)  # type: ignore[attr-defined]
    parts = [DIGITS.train[order[i::pieces]] for i in range(pieces)]
    grouped, at_once = learned(*parts), learned(DIGITS.train[:300])
    assert (means_by_label(grouped) - means_by_label(at_once)).abs().max() < 1e-12
    assert torch.equal(grouped.predict(DIGITS.test), at_once.predict(DIGITS.test))


def test_it_is_the_nearest_centroid_of_normalised_features() -> None:
    made = learned(DIGITS.train)
    train, test = (F.normalize(part["image"].flatten(1).double() / 255) for part in (DIGITS.train, DIGITS.test))
    oracle = NearestCentroid().fit(train.numpy(), DIGITS.train["label"].numpy())
    assert made.predict(DIGITS.test).tolist() == oracle.predict(test.numpy()).tolist()


def test_the_linear_form_agrees_with_explicit_distances() -> None:
    made = learned(DIGITS.train)
    features = F.normalize(made.encoder(DIGITS.test).double())
    nearest = torch.cdist(features, made.means.means()).argmin(1)
    assert torch.equal(made.predict(DIGITS.test), made.classes.labels[nearest])


def test_old_classes_never_move() -> None:
    labels = DIGITS.train.tensor("label")
    made = learned(DIGITS.train[labels < 4])
    sums, counts = made.means.sums.clone(), made.means.counts.clone()
    old = DIGITS.test[DIGITS.test.tensor("label") < 4]
    before = made.scores(old)
    made.learn(Experience(1, DIGITS.train[labels >= 4]))
    assert torch.equal(made.means.sums[:4], sums)
    assert torch.equal(made.means.counts[:4], counts)
    assert torch.equal(made.scores(old)[:, :4].argmax(1), before.argmax(1))  # local forgetting is exactly zero


def test_the_mean_is_not_renormalised() -> None:
    assert learned(DIGITS.train).means.means().norm(dim=1).max() < 1


def test_learners_of_separate_streams_merge_and_unlearn() -> None:
    labels = DIGITS.train.tensor("label")
    low, high = DIGITS.train[labels < 6], DIGITS.train[labels >= 4]
    both = learned(low, high)
    together = merged(learned(low), learned(high))
    assert (means_by_label(together) - means_by_label(both)).abs().max() < 1e-12
    alone = learned(high)
    columns = both.classes.columns(alone.classes.labels)
    both.means.sums[columns] -= alone.means.sums
    both.means.counts[columns] -= alone.means.counts
    assert (both.means.means()[:6] - learned(low).means.means()).abs().max() < 1e-12


def test_learners_on_different_encoders_do_not_merge() -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigurationError, match="same encoder"):
        merged(learned(DIGITS.train[:9]), learned(DIGITS.train[:9], backbone=mlp(DIGITS.train[:1], width=8)))


def test_a_single_sample_is_its_own_mean() -> None:
    rows = torch.stack([(DIGITS.train.tensor("label") == label).nonzero()[0, 0] for label in range(10)])
    made = learned(DIGITS.train[rows])
    assert torch.equal(made.predict(DIGITS.train[rows]), torch.arange(10))
    assert torch.allclose(made.means.means().norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_encoder_is_bit_identical_and_nothing_needs_a_gradient() -> None:
    torch.manual_seed(0)
    backbone = mlp(DIGITS.train[:1], width=16)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    made = learned(DIGITS.train, backbone=backbone)
    made.train()
    made.predict(DIGITS.test)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert not any(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize("normalise", [True, False])
def test_the_scale_of_each_sample_matters_only_without_normalisation(normalise: bool) -> None:
    images = DIGITS.train["image"][:200].float() / 255
    scale = torch.rand(200, generator=torch.Generator().manual_seed(0)).clamp(min=0.1)[:, None, None, None]
    plain = Data(image=images, label=DIGITS.train["label"][:200])
    scaled = Data(image=images * scale, label=plain["label"])
    first, second = (learned(part, normalise=normalise).means.means() for part in (plain, scaled))
    assert ((first - second).abs().max() < 1e-6) == normalise


def test_decay_forgets_old_samples() -> None:
    labels = DIGITS.train.tensor("label")
    zero, one = (
        DIGITS.train[labels == 0],
        DIGITS.train[labels == 1].with_columns(label=torch.zeros(int((labels == 1).sum())).long()),
    )
    drifted = learned(zero, *[one] * 5, decay=0.1).means.means()[0]
    target = learned(one).means.means()[0]
    assert (drifted - target).norm() < 0.01
    assert (learned(zero, *[one] * 5).means.means()[0] - target).norm() > 0.05


def test_a_decay_beyond_its_range_gets_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="decay must lie above 0"):
        NMC(BACKBONE, decay=1.5)
