"""What was forgotten is in no byte of the directory, whatever happened before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECRET: dict[str, Any] = {"verb": "learn", "source": "Rosalind", "rows": {"classes": [2, 3], "count": 40, "seed": 7}}
FORGET: dict[str, Any] = {"verb": "forget", "what": {"source": "Rosalind"}}


def known(worker: Any, folder: Path) -> Any:
    model = worker.make(folder, limit=0.5)
    worker.perform(model, {"verb": "learn", "source": "first", "rows": {"classes": [0, 1], "count": 60, "seed": 1}})
    return model


def where(worker: Any, model: Any) -> list[str]:
    """The files that hold the name of the secret source, or the features of one of its samples."""
    rows = worker.rows(**SECRET["rows"])
    wanted = [b"Rosalind", *(feature.numpy().tobytes() for feature in model.embedder(rows["image"]))]
    files = [path for path in model.folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(model.folder)) for path in files if any(one in path.read_bytes() for one in wanted)]


def test_a_source_that_was_rolled_back_and_learned_again_is_forgotten_with_its_first_version(
    worker: Any, tmp_path: Path
) -> None:
    model = known(worker, tmp_path / "model")
    for operation in (SECRET, {"verb": "rollback", "number": 2}, SECRET):
        worker.perform(model, operation)
    assert where(worker, model)
    worker.perform(model, FORGET)
    assert where(worker, model) == []


def test_nothing_stays_of_a_source_whose_learning_or_forgetting_was_killed_before_it_was_forgotten(
    nursery: Any, worker: Any, tmp_path: Path
) -> None:
    """What stays of an interrupted learning is there to go on from; forgetting removes that too."""
    model = known(worker, tmp_path / "model")
    much = {**SECRET, "rows": {**SECRET["rows"], "count": 270}}
    for operation, nth in ((much, 12), (much, 25), (SECRET, 6)):
        dies(nursery, worker, model, operation, nth)
    worker.perform(model, SECRET)
    dies(nursery, worker, model, FORGET, 6)
    assert where(worker, model)
    worker.perform(model, FORGET)
    assert where(worker, model) == []
    assert worker.garbage(model) == []


def dies(nursery: Any, worker: Any, model: Any, operation: dict[str, Any], nth: int) -> None:
    life, end = nursery.live(folder=str(model.folder), operations=[operation], die=nth)
    assert end == worker.DIED
    assert life.in_flight == 0
