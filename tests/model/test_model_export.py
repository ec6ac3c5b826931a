"""A model directory goes elsewhere: as ONNX, and to the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latewood.core.errors import ConfigurationError
from latewood.model.model import Model

MakeModel = Callable[..., Model]
Rows = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("method", ["g-acil", "slda", "nmc"])
def test_the_onnx_file_gives_the_models_own_confidences(make: MakeModel, rows: Rows, tmp_path: Path, method: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = make(method=method)
    model.learn(rows([0, 1, 2]), source="monday")
    model.export_onnx(tmp_path / "digits.onnx")
    labels = json.loads((tmp_path / "digits.json").read_text())["labels"]
    images = rows([0, 1, 2])["image"][:7]
    session = runtime.InferenceSession(str(tmp_path / "digits.onnx"))
    found = session.run(None, {"pixels": images.numpy().astype(np.float32) / 255})[0]
    for row, guesses in zip(found, model.predict(images, top=3), strict=True):
        for guess in guesses:
            assert row[labels.index(guess.label)] == pytest.approx(guess.confidence, abs=1e-3)


def test_learners_by_gradient_say_that_they_have_no_onnx_form(make: MakeModel, rows: Rows, tmp_path: Path) -> None:
    model = make(method="finetune")
    model.learn(rows([0, 1]), source="monday")
    with pytest.raises(ConfigurationError, match="in closed form"):
        model.export_onnx(tmp_path / "digits.onnx")
    assert not (tmp_path / "digits.onnx").exists()


def test_what_is_pushed_is_a_whole_model_with_a_card_and_no_sample(
    make: MakeModel, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    few = rows([0, 1])
    model.learn(few, source="a secret source")
    seen: dict[str, Any] = {}

    def fake(folder: Path, name: str, token: str | None = None, private: bool = True) -> str:
        seen["files"] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        seen["predicted"] = Model.open(folder).predict(few["image"])
        seen["private"] = private
        return f"https://huggingface.co/{name}"

    monkeypatch.setattr("latewood.model.export.push", fake)
    assert model.push("someone/digits") == "https://huggingface.co/someone/digits"
    assert seen["private"] and seen["predicted"] == model.predict(few["image"])
    assert b"- zero" in seen["files"]["README.md"]
    assert not any(b"a secret source" in content for content in seen["files"].values())
