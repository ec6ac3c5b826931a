"""A service that is killed under load and started again has lost nothing that it said was done."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from latewood.model.model import Model

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TOKEN = "a-token-for-tests-only"
KILLS = 5


def png(image: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze().numpy()).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Load:
    """What clients ask of a service until it dies, and what it told them."""

    def __init__(self, worker: Any, port: int, seed: int) -> None:
        self._worker, self._port, self._seed = worker, port, seed
        self.done: list[tuple[dict[str, Any], list[bytes]]] = []
        self.predicted: list[tuple[int, list[Any]]] = []
        self.wrong: list[str] = []
        self._images = [png(image) for image in worker.probe()[:4]]
        asking = (self._predict, self._predict, self._learn)
        self._threads = [threading.Thread(target=self._until_it_dies, args=(ask,)) for ask in asking]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _until_it_dies(self, ask: Any) -> None:
        address = f"http://127.0.0.1:{self._port}"
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client, contextlib.suppress(httpx.TransportError):
            for number in range(10_000):
                ask(client, number)

    def _expect(self, answer: Any, status: int) -> Any:
        if answer.status_code != status:
            self.wrong.append(f"{answer.status_code}: {answer.text}")
        return answer.json()

    def _predict(self, client: Any, number: int) -> None:
        files = [("images", (f"{i}.png", image)) for i, image in enumerate(self._images)]
        told = self._expect(client.post("/predict", files=files), 200)
        if "version" in told:
            self.predicted.append((told["version"], told["predictions"]))

    def _learn(self, client: Any, number: int) -> None:
        rows = self._worker.rows([(number + self._seed) % 10, (number + 3) % 10], 12, 1000 * self._seed + number)
        images = [png(image) for image in rows["image"]]
        files = [("images", (f"{i}.png", image)) for i, image in enumerate(images)]
        job = self._expect(client.post("/learn", files=files, data={"labels": rows["label"]}), 202)
        while job.get("state") in ("waiting", "running"):
            time.sleep(0.005)
            job = self._expect(client.get(f"/jobs/{job['id']}"), 200)
        if job.get("state") == "done":
            self.done.append((job, images))
        else:
            self.wrong.append(str(job))


def wait_until_up(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError("the service does not start")


def test_a_service_killed_under_load_keeps_every_job_that_it_said_was_done(nursery: Any, worker: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = worker.make(folder, limit=1.0, keep=200)
    worker.perform(model, {"verb": "learn", "source": "first", "rows": {"classes": list(range(10)), "count": 100, "seed": 1}})
    chance = random.Random(5)
    done: list[tuple[dict[str, Any], list[bytes]]] = []
    predicted: dict[int, Any] = {}
    for kill in range(KILLS):
        port = free_port()
        life = nursery.start(serve={"folder": str(folder), "port": port, "token": TOKEN})
        wait_until_up(port)
        with Load(worker, port, kill + 1) as load:
            time.sleep(chance.uniform(0.5, 1.5))
            assert life.kill() == -signal.SIGKILL
        assert load.wrong == []
        done += load.done
        told: list[str] = []
        model = Model.open(folder, tell=told.append)
        assert told == []
        worker.check_blobs(model)
        holds(model, done)
        for version, guesses in load.predicted:
            assert predicted.setdefault(version, guesses) == guesses
    assert len(done) >= KILLS
    assert set(predicted) <= {version.number for version in model.log()}, "a version that has predicted is lost"
    for number, guesses in predicted.items():
        model.rollback(number)
        found = model.predict([png(image) for image in worker.probe()[:4]])
        assert [guess[0].label for guess in found] == [guess[0]["label"] for guess in guesses]
    assert worker.garbage(model) == []


def holds(model: Any, done: list[tuple[dict[str, Any], list[bytes]]]) -> None:
    """Every job that was done is a version of the log, and all its images are known."""
    numbers = {version.number for version in model.log()}
    known = {bytes(key) for key in model._state.samples.hashes.numpy()}
    for job, images in done:
        assert job["version"] in numbers
        assert {hashlib.blake2b(image, digest_size=16).digest() for image in images} <= known
