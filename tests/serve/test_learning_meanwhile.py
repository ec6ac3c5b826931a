"""A thousand predictions and more while the model learns: none fails, and each is right for the version that it names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import ASGIApp

from latewood.model.model import Model
from latewood.serve.app import make_app

httpx = pytest.importorskip("httpx")
COUNT, AT_ONCE = 1000, 50
TEXTS = ["dog", "old cat", "where is my parcel", "pay my late bill", "lost card", "send", "new dog", "my card is lost"]


async def _storm(app: ASGIApp, bearer: dict[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers to all predictions, and the jobs that ran meanwhile."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def ask(number: int) -> dict[str, Any]:
            response = await client.post("/predict", json={"texts": [TEXTS[number % len(TEXTS)]], "top": 5})
            assert response.status_code == 200, response.text
            return dict(response.json())

        async def teach() -> list[dict[str, Any]]:
            jobs = []
            for number in range(6):
                lesson = {"texts": [TEXTS[number], f"send {TEXTS[number]}"], "labels": [f"class {number}"] * 2}
                path, body = ("/rollback", {"number": 2}) if number == 3 else ("/learn", lesson)
                job = (await client.post(path, json=body, headers=bearer)).json()
                while job["state"] in ("waiting", "running"):
                    await asyncio.sleep(0.02)
                    job = (await client.get(f"/jobs/{job['id']}")).json()
                jobs.append(job)
            return jobs

        jobs = asyncio.create_task(teach())
        answers: list[dict[str, Any]] = []
        over = False
        while len(answers) < COUNT or not over:
            over = jobs.done()  # asked first: the last round comes after the last lesson
            answers += await asyncio.gather(*(ask(len(answers) + place) for place in range(AT_ONCE)))
        return answers, await jobs


def test_every_answer_is_right_for_the_version_that_it_names(text_model: Model, token: str, bearer: dict[str, str]) -> None:
    app = make_app(text_model, token)
    with TestClient(app):  # for its end only: it closes what the application opened
        answers, jobs = asyncio.run(_storm(app, bearer))
    assert [job["state"] for job in jobs] == ["done"] * 6
    assert [job["version"] for job in jobs] == [3, 4, 5, 6, 7, 8]
    seen = {answer["version"] for answer in answers}
    assert seen >= {3, 8}  # from the first lesson to the last
    right = {}
    for version in sorted(seen):
        text_model.rollback(version)
        right[version] = {text: text_model.predict([text], top=5)[0] for text in TEXTS}
    for number, answer in enumerate(answers):
        wanted = right[answer["version"]][TEXTS[number % len(TEXTS)]]
        (found,) = answer["predictions"]
        assert [guess["label"] for guess in found] == [guess.label for guess in wanted]
        assert [guess["confidence"] for guess in found] == pytest.approx([guess.confidence for guess in wanted], abs=1e-4)
