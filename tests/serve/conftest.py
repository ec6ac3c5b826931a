"""Two small models, of texts and of images, and ways to reach them over HTTP."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("multipart")

from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import ASGIApp

from latewood.model.facts import Guess
from latewood.model.model import Model
from latewood.serve.app import make_app
from latewood.serve.limits import Limits

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] where is my parcel lost card pay bill send late new old cat dog"
TEXTS = [
    *((f"where is my {word} parcel", "delivery") for word in ("", "lost", "late", "new", "old", "late new")),
    *((f"pay my {word} bill", "payment") for word in ("", "lost", "late", "new", "old", "late new")),
]


class Fake:
    """A model in memory whose speed and failures tests decide. Text ``bad`` can't be predicted; ``broken`` is a defect."""

    kind = "text"

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.version = FakeVersion(1)
        self.refreshed = 0

    def predict(self, inputs: list[str], *, top: int = 1) -> list[list[Guess]]:
        from latewood.core.errors import DataError

        self.calls.append(len(inputs))
        version = self.version
        self.gate.wait(10)
        time.sleep(self.seconds)
        if "bad" in inputs:
            raise DataError(f"Input {inputs.index('bad')} is bad.")
        if "broken" in inputs:
            raise RuntimeError("a defect")
        return [[Guess(f"{text}@{version.number}", 1.0)][:top] for text in inputs if text != "nothing"]

    def refresh(self) -> bool:
        self.refreshed += 1
        return False


class FakeVersion(NamedTuple):
    number: int


@pytest.fixture(scope="session")
def text_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts on a tiny encoder, which knows two classes in version 2."""
    from transformers import BertConfig, BertModel

    encoder = tmp_path_factory.mktemp("encoder")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS.split()), **sizes)).save_pretrained(encoder)
    (encoder / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    folder = tmp_path_factory.mktemp("models") / "intents"
    model = Model.init(folder, kind="text", backbone=str(encoder), settings={"expansion": 256, "gamma": 1e-4})
    model.learn(TEXTS, source="examples")
    return folder


@pytest.fixture(scope="session")
def image_template(tmp_path_factory: pytest.TempPathFactory, digit_file: Callable[[int, int], bytes]) -> Path:
    """A model of digits on their pixels, which knows 0 to 3 in version 2."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    model = Model.init(folder, backbone="pixels", size=8, channels=1, settings={"expansion": 64})
    model.learn([(digit_file(label, which), str(label)) for label in range(4) for which in range(8)], source="examples")
    return folder


@pytest.fixture
def text_model(text_template: Path, tmp_path: Path) -> Model:
    return Model.open(shutil.copytree(text_template, tmp_path / "intents"))


@pytest.fixture
def image_model(image_template: Path, tmp_path: Path) -> Model:
    return Model.open(shutil.copytree(image_template, tmp_path / "digits"))


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def token() -> str:
    return "a-token-that-only-tests-know"


@pytest.fixture
def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="session")
def digit_file() -> Callable[[int, int], bytes]:
    """The ``which``-th drawing of a digit, as a PNG file."""
    from sklearn.datasets import load_digits

    digits = load_digits()

    def make(label: int, which: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray((digits.images[digits.target == label][which] * 15).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def client_of(token: str) -> Iterator[Callable[..., TestClient]]:
    """Clients of models in the same process, without any network; defects are answered, not raised."""
    with ExitStack() as stack:
        yield lambda model, **options: stack.enter_context(
            TestClient(make_app(model, token, **options), raise_server_exceptions=False)
        )


@pytest.fixture
def text_client(client_of: Callable[..., TestClient], text_model: Model) -> TestClient:
    return client_of(text_model)


@pytest.fixture
def image_client(client_of: Callable[..., TestClient], image_model: Model) -> TestClient:
    return client_of(image_model)


@pytest.fixture
def finished(bearer: dict[str, str]) -> Callable[[TestClient, Any], dict[str, Any]]:
    """The job that a response told of, when it has ended."""

    def wait(client: TestClient, response: Any) -> dict[str, Any]:
        assert response.status_code == 202, response.text
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            job: dict[str, Any] = client.get(f"/jobs/{response.json()['id']}", headers=bearer).json()
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.01)
        raise AssertionError("The job did not end.")

    return wait


@pytest.fixture
def serving() -> Iterator[Callable[[ASGIApp, Limits], int]]:
    """Start a real server for an application, in a thread; gives the port."""
    from latewood.serve.protocol import make_server

    started: list[tuple[Any, threading.Thread]] = []

    def start(app: ASGIApp, limits: Limits) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        started.append((server, thread))
        port: int = listener.getsockname()[1]
        return port

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
