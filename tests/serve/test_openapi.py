"""The OpenAPI document is the truth: whatever schemathesis derives from it, the service behaves as it says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from latewood.model.model import Model
from latewood.serve.app import make_app
from latewood.serve.limits import Limits

schemathesis = pytest.importorskip("schemathesis")

ROOM = Limits(waiting_jobs=100_000, stop_seconds=0.5)
FEW = settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


def check(model: Model, token: str, digit: bytes) -> set[tuple[str, int]]:
    """Send what schemathesis makes of every operation, right and wrong; the operations with the statuses that came."""
    app = make_app(model, token, limits=ROOM)
    seen: set[tuple[str, int]] = set()
    with TestClient(app):  # for its end only: it closes what the application opened
        for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
            for mode in (VALID, INVALID):
                with suppress(Unsatisfiable):  # nothing wrong can be sent to what takes nothing
                    check_operation(found.ok(), mode, token, digit, seen)
    return seen


def check_operation(operation: Any, mode: Any, token: str, digit: bytes, seen: set[tuple[str, int]]) -> None:
    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if mode is VALID:
            complete(case, digit)
        response = case.call_and_validate(headers={"Authorization": f"Bearer {token}"})
        seen.add((operation.label, response.status_code))

    run()


def complete(case: Any, digit: bytes) -> None:
    """What a schema can't say: images are image files, and there is one label for each input."""
    if not isinstance(case.body, dict):
        return
    if "images" in case.body:
        case.body["images"] = [digit for _ in case.body["images"]]
    if "labels" in case.body:
        inputs = case.body["texts" if "texts" in case.body else "images"]
        case.body["labels"] = [case.body["labels"][0] for _ in inputs]


STATUSES = {
    ("GET /healthz", 200),
    ("GET /model", 200),
    ("GET /versions", 200),
    ("GET /versions", 422),
    ("GET /jobs/{id}", 404),
    ("GET /metrics", 200),
    ("POST /predict", 200),
    ("POST /predict", 422),
    ("POST /learn", 202),
    ("POST /learn", 422),
    ("POST /rollback", 422),
    ("POST /accept", 409),
    ("POST /reject", 409),
}


def test_a_service_of_texts_does_as_its_document_says(text_model: Model, token: str) -> None:
    assert check(text_model, token, b"") >= STATUSES


def test_a_service_of_images_does_as_its_document_says(
    image_model: Model, token: str, digit_file: Callable[[int, int], bytes]
) -> None:
    assert check(image_model, token, digit_file(1, 0)) >= STATUSES
