"""MER and ADEPT within the loop: what their pieces promise holds for whole runs, and for runs that are killed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, StorageError
from latewood.core.experience import Experience
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language.expansion import copies, layers, silence
from latewood.language.learner import LanguageLearner
from latewood.language.learners.adept import ADEPT
from latewood.language.learners.continue_ import Continue
from latewood.language.learners.mer import MER
from latewood.language.nets import causal
from latewood.language.recipe import TextRecipe
from latewood.parts import disk_buffer

LENGTH = 16


def blocks(count: int, seed: int) -> Data:
    chance = torch.Generator().manual_seed(seed)
    starts = torch.randint(60 + 20 * seed, 75 + 20 * seed, (count, 1), generator=chance)
    return Data(tokens=(starts + torch.arange(LENGTH) % (3 + seed)).int())


def stream(rows: int = 64) -> Stream:
    return Stream("rows", 2, lambda index: Experience(index, blocks(rows, index)), ())


def made(kind: Callable[..., LanguageLearner], depth: int = 1, seed: int = 0, recipe: Any = None, **settings: Any) -> Any:
    torch.manual_seed(seed)
    net = causal(blocks(1, 0), layers=depth, width=16, heads=2)
    return kind(net, recipe=TextRecipe(**{"batch_size": 8, "lr": 0.01, **(recipe or {})}), **settings)


def weights(learner: LanguageLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.backbone.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# MER


def test_keeping_the_whole_way_and_replaying_nothing_is_sequential_training_bit_for_bit() -> None:
    plain, mer = made(Continue), made(MER, share=0.0, eps=1.0)
    for learner in (plain, mer):
        run(learner, stream(), device="cpu")
    assert equal(weights(plain), weights(mer))


def test_keeping_the_whole_way_is_plain_replay_whatever_the_distance_of_pulls() -> None:
    results = []
    for every in (1, 3, 1000):
        learner = made(MER, share=0.5, every=every, eps=1.0)
        run(learner, stream(), device="cpu")
        results.append(weights(learner))
    assert equal(results[0], results[1]) and equal(results[1], results[2])


def test_keeping_nothing_of_the_way_leaves_the_weights_at_the_anchor() -> None:
    learner = made(MER, every=4, eps=0.0, recipe={"steps": 8})
    before = weights(learner)
    learner.learn(Experience(0, blocks(64, 0)))
    assert equal(weights(learner), before)


def test_the_buffer_holds_what_passed_and_new_rows_do_not_depend_on_the_share() -> None:
    for share in (0.0, 0.25, 0.5):
        learner = made(MER, share=share)
        learner.learn(Experience(0, blocks(48, 0)))
        passed = learner.buffer.read(range(48))
        assert sorted(map(tuple, passed.tolist())) == sorted(map(tuple, blocks(48, 0)["tokens"].tolist()))


def test_the_replayed_part_of_a_batch_is_the_share_and_comes_from_all_that_passed() -> None:
    learner = made(MER, share=0.25)
    run(learner, stream(), device="cpu")
    learner.begin(Experience(2, blocks(8, 2)))
    seen = [learner.batch(blocks(6, 2)) for _ in range(40)]
    assert {len(batch) for batch in seen} == {8}
    old = torch.cat([batch["tokens"][6:] for batch in seen])
    domains = ((old[:, 0] - 60) // 20).clamp(0, 2).unique(return_counts=True)
    assert len(domains[0]) == 3 and int(domains[1].min()) > 5


@pytest.mark.parametrize("death", [3, 9, 12, 16, 20])
@pytest.mark.parametrize("capacity", [None, 20])
def test_mer_that_is_killed_within_a_window_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int, capacity: int | None
) -> None:
    settings: dict[str, Any] = {"every": 5, "eps": 0.5, "capacity": capacity, "recipe": {"save_every": 3}}
    straight = made(MER, **settings)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    after, count = MER.after_step, [0]

    def dying(self: MER, *rest: Any) -> None:
        count[0] += 1
        if count[0] == death:
            raise KeyboardInterrupt
        after(self, *rest)

    broken = made(MER, **settings)
    monkeypatch.setattr(MER, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(broken, stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    broken.buffer.close()
    again = made(MER, **settings)
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert equal(weights(again), weights(straight))
    assert torch.equal(again.buffer.read(range(len(again.buffer))), straight.buffer.read(range(len(straight.buffer))))


def arriving(count: int, rows: int = 64) -> Stream:
    return Stream("rows", 6, lambda index: Experience(index, blocks(rows, index)) if index < count else stop(), ())


def stop() -> Experience:
    raise KeyboardInterrupt


def test_the_disk_holds_what_two_arrivals_replaced_however_many_there_were(tmp_path: Path) -> None:
    learner = made(MER, capacity=20, recipe={"save_every": 3})
    for count in range(1, 7):
        with suppress(KeyboardInterrupt):
            run(learner, arriving(count), to=tmp_path, device="cpu")
        files = tmp_path / "files" / "buffer"
        # 11 steps: 3 saves within an arrival, and its end.
        numbers = [int(path.stem.removeprefix("changes-")) for path in files.glob("changes-*.bin")]
        assert len(numbers) <= 2 * 4
        assert sum(path.stat().st_size for path in files.glob("rows-*.bin")) == 20 * (8 + 4 * LENGTH + 4)
        learner.buffer.close()
        learner = made(MER, capacity=20, recipe={"save_every": 3})
    assert max(numbers) > 16


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_goes_on_from_either_of_the_two_newest_checkpoints_though_older_rows_are_gone(
    tmp_path: Path, damaged: bool
) -> None:
    settings: dict[str, Any] = {"capacity": 20, "recipe": {"save_every": 3}}
    straight = made(MER, **settings)
    run(straight, arriving(6), to=tmp_path / "straight", device="cpu")
    broken = made(MER, **settings)
    after, count = broken.after_step, [0]

    def dying(*rest: Any) -> None:
        count[0] += 1
        if count[0] == 5 * 11 + 5:  # within the sixth arrival, after a save
            raise KeyboardInterrupt
        after(*rest)

    broken.after_step = dying
    with pytest.raises(KeyboardInterrupt):
        run(broken, arriving(6), to=tmp_path / "broken", device="cpu")
    broken.buffer.close()
    assert json.loads((tmp_path / "broken" / "files" / "buffer" / "folded.json").read_text())["folded"] > 0
    if damaged:
        newest = max((tmp_path / "broken" / "checkpoints").iterdir())
        (newest / "state.safetensors").write_bytes(b"not what was written")
    again = made(MER, **settings)
    run(again, arriving(6), to=tmp_path / "broken", device="cpu")
    assert equal(weights(again), weights(straight))
    assert torch.equal(again.buffer.read(range(20)), straight.buffer.read(range(20)))
    assert torch.equal(again.get_extra_state(), straight.get_extra_state()) or damaged


def test_a_full_disk_ends_the_run_with_a_sentence_and_with_room_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = made(MER, recipe={"save_every": 3}), made(MER, recipe={"save_every": 3})
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    written, count = disk_buffer._write, [0]

    def full(handle: Any, position: int, content: bytes) -> None:
        count[0] += 1
        if count[0] > 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(handle, position, content)

    with monkeypatch.context() as patch:
        patch.setattr(disk_buffer, "_write", full)
        with pytest.raises(StorageError, match=r"Could not write .*rows-.*: No space left on device\. What was saved before"):
            run(broken, stream(), to=tmp_path / "broken", device="cpu")
    broken.buffer.close()
    again = made(MER, recipe={"save_every": 3})
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert equal(weights(again), weights(straight))


@pytest.mark.parametrize("settings", [{"every": 0}, {"eps": 1.5}, {"share": 0.3}])
def test_settings_of_mer_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        made(MER, **settings)


# ADEPT


@pytest.fixture
def adept() -> ADEPT:
    learner: ADEPT = made(ADEPT, depth=4, layers=2, every=3, probe=32, recipe={"lr": 0.003})
    learner.learn(Experience(0, blocks(64, 0)))
    return learner


def test_the_first_arrival_trains_the_whole_model_and_gives_the_probe(adept: ADEPT) -> None:
    fresh = made(ADEPT, depth=4)
    assert not equal(weights(adept), weights(fresh))
    assert len(adept.kept) == 32 and len(layers(adept.backbone.network)) == 4


def test_a_model_that_is_trained_already_only_gives_the_probe() -> None:
    learner = made(ADEPT, depth=4, first="keep")
    before = weights(learner)
    learner.learn(Experience(0, blocks(64, 0)))
    assert equal(weights(learner), before) and len(learner.kept) > 0


def test_training_touches_nothing_but_the_copies_and_without_them_the_model_is_what_it_was(adept: ADEPT) -> None:
    tokens = blocks(8, 0)["tokens"].long()
    with torch.no_grad():
        before = adept.backbone(tokens)
    adept.learn(Experience(1, blocks(64, 1)))
    network = adept.backbone.network
    assert len(layers(network)) == 6 and len(copies(network)) == 2
    with torch.no_grad():
        assert not torch.allclose(adept.backbone(tokens), before, atol=1e-3)
        for position in copies(network):
            silence(layers(network)[position])
        assert torch.allclose(adept.backbone(tokens), before, atol=1e-5)


def test_the_copied_layers_are_those_that_matter_least(adept: ADEPT) -> None:
    importance = adept.importance()
    adept.begin(Experience(1, blocks(8, 1)))
    chosen = adept.expansions[-1].tolist()
    assert sum(importance[i] for i in chosen) == pytest.approx(sum(sorted(importance)[:2]))


def test_rates_are_recomputed_between_0_and_2_and_never_compound(adept: ADEPT) -> None:
    adept.learn(Experience(1, blocks(80, 1)))
    assert len(adept.multipliers) == 3
    for found in adept.multipliers:
        assert min(found.values()) == 0.0 and max(found.values()) == 2.0


@pytest.mark.parametrize("death", [2, 10, 13])
def test_adept_that_is_killed_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int) -> None:
    settings: dict[str, Any] = {"depth": 3, "layers": 1, "every": 2, "probe": 16, "recipe": {"save_every": 3}}
    straight = made(ADEPT, **settings)
    run(straight, stream(), to=tmp_path / "straight", device="cpu")
    after, count = ADEPT.after_step, [0]

    def dying(self: ADEPT, *rest: Any) -> None:
        count[0] += 1
        if count[0] == death:
            raise KeyboardInterrupt
        after(self, *rest)

    monkeypatch.setattr(ADEPT, "after_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(made(ADEPT, **settings), stream(), to=tmp_path / "broken", device="cpu")
    monkeypatch.undo()
    again = made(ADEPT, **settings)
    run(again, stream(), to=tmp_path / "broken", device="cpu")
    assert equal(weights(again), weights(straight)) and again.multipliers == straight.multipliers


def test_more_copies_than_layers_are_refused(adept: ADEPT) -> None:
    adept.layers = 9
    with pytest.raises(ConfigurationError, match="9 can't be copied"):
        adept.begin(Experience(1, blocks(8, 1)))
