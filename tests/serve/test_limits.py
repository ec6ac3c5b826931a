"""What is too much, too slow or not meant for this service is turned away, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageFile

from latewood.core.errors import DataError
from latewood.model.model import Model
from latewood.serve.app import make_app
from latewood.serve.limits import Limits, check_images

Digit = Callable[[int, int], bytes]
Serving = Callable[[Any, Limits], int]
SMALL = Limits(body_bytes=10_000, bodies_bytes=15_000, head_seconds=0.5, body_seconds=0.5, stop_seconds=1)


def exchange(port: int, *pieces: bytes, pause: float = 0.0, patience: float = 10.0) -> bytes:
    """Send some bytes as they are, with pauses, and read until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before all was sent
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


JSON = "content-type: application/json"


@pytest.fixture
def port(serving: Serving, text_model: Model, token: str) -> int:
    return serving(make_app(text_model, token, limits=SMALL), SMALL)


def test_a_declared_body_that_is_too_large_is_refused_before_it_comes(port: int) -> None:
    answer = exchange(port, head("/predict", JSON, "content-length: 10001"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"10,000 bytes" in answer
    assert b"connection: close" in answer.lower()
    assert exchange(port, head("/predict", JSON, f"content-length: {10**18}")).startswith(b"HTTP/1.1 413")


def test_a_body_in_pieces_that_never_ends_is_cut_off(port: int) -> None:
    piece = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = exchange(port, head("/predict", JSON, "transfer-encoding: chunked"), *[piece] * 200)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def test_a_body_in_pieces_that_is_small_enough_is_read(port: int) -> None:
    body = json.dumps({"texts": ["pay my bill"]}).encode()
    pieces = [f"{len(body):x}\r\n".encode() + body + b"\r\n", b"0\r\n\r\n"]
    answer = exchange(port, head("/predict", JSON, "transfer-encoding: chunked", "connection: close"), *pieces)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"payment" in answer


def test_a_body_shorter_than_declared_is_not_waited_for(port: int) -> None:
    began = time.monotonic()
    answer = exchange(port, head("/predict", JSON, "content-length: 100"), b'{"texts"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert 0.4 < time.monotonic() - began < 5


def test_a_body_longer_than_declared_is_no_second_request(port: int) -> None:
    body = json.dumps({"texts": ["a"]}).encode()
    smuggled = head("/reject", "content-length: 0")
    answer = exchange(port, head("/predict", JSON, f"content-length: {len(body)}", "connection: close"), body + smuggled)
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("lines", [("content-length: -1",), ("content-length: x",), ("content-length: 5", "content-length: 6")])
def test_a_length_that_is_none_is_refused(port: int, lines: tuple[str, ...]) -> None:
    assert exchange(port, head("/predict", JSON, *lines), b"{}").startswith(b"HTTP/1.1 400")


def test_a_body_that_drips_is_cut_off(port: int) -> None:
    began = time.monotonic()
    answer = exchange(port, head("/predict", JSON, "content-length: 1000"), *[b" "] * 50, pause=0.05)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("pieces", [(), (b"GET / HT",), (b"G", b"E", b"T", b" ", b"/", b" ", b"H", b"T")])
def test_a_head_that_does_not_come_closes_the_connection(port: int, pieces: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    exchange(port, *pieces, pause=0.1)
    assert time.monotonic() - began < 3


def test_a_second_head_that_does_not_come_closes_the_connection_too(port: int) -> None:
    began = time.monotonic()
    answer = exchange(port, head("/healthz", method="GET"), b"GET /heal", pause=0.2)
    assert answer.count(b"200 OK") == 1
    assert time.monotonic() - began < 3


def test_a_head_without_end_is_refused(port: int) -> None:
    assert exchange(port, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000)[:12] in (b"HTTP/1.1 400", b"")


def test_without_the_token_a_lesson_is_refused_before_it_comes(port: int) -> None:
    answer = exchange(port, head("/learn", JSON, "content-length: 9000"))
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()


def test_all_bodies_together_are_bounded_and_room_comes_back(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for connection in held:
        connection.sendall(head("/predict", JSON, "content-length: 9000") + b" " * 7000)
    time.sleep(0.2)
    body = json.dumps({"texts": ["a" * 2000]}).encode()
    request = head("/predict", JSON, f"content-length: {len(body)}", "connection: close") + body
    answer = exchange(port, request)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after" in answer.lower()
    for connection in held:
        connection.close()
    time.sleep(0.7)
    assert exchange(port, request).startswith(b"HTTP/1.1 200")


def test_only_so_many_requests_are_handled_at_once(serving: Serving, fake: Any, token: str) -> None:
    limits = Limits(requests=2, stop_seconds=1)
    port = serving(make_app(fake, token, limits=limits), limits)
    body = json.dumps({"texts": ["a"]}).encode()
    ask = head("/predict", JSON, f"content-length: {len(body)}", "connection: close") + body
    fake.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(exchange, port, ask)]
        while not fake.calls:
            time.sleep(0.01)
        asked.append(pool.submit(exchange, port, ask))
        time.sleep(0.5)
        refused = exchange(port, head("/none", "connection: close"))
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in refused
        assert b'"detail"' in refused
        assert exchange(port, head("/healthz", "connection: close", method="GET")).startswith(b"HTTP/1.1 200")
        fake.gate.set()
        assert all(answer.result().startswith(b"HTTP/1.1 200") for answer in asked)
    assert exchange(port, ask).startswith(b"HTTP/1.1 200")


def test_a_full_queue_is_told_with_a_time_to_come_back(client_of: Callable[..., TestClient], fake: Any) -> None:
    client = client_of(fake, limits=Limits(waiting_inputs=4))
    response = client.post("/predict", json={"texts": ["a"] * 5})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert client.post("/predict", json={"texts": ["a"] * 4}).status_code == 200


def test_a_prediction_that_takes_too_long_is_told(client_of: Callable[..., TestClient], fake: Any) -> None:
    fake.seconds = 0.5
    client = client_of(fake, limits=Limits(answer_seconds=0.1))
    response = client.post("/predict", json={"texts": ["a"]})
    assert (response.status_code, list(response.json())) == (504, ["detail"])


def test_a_defect_is_told_without_its_details(client_of: Callable[..., TestClient], fake: Any) -> None:
    response = client_of(fake).post("/predict", json={"texts": ["broken"]})
    assert (response.status_code, list(response.json())) == (500, ["detail"])
    assert "a defect" not in response.text


def test_lessons_that_have_no_room_are_refused(
    client_of: Callable[..., TestClient], text_model: Model, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(text_model, "learn", lambda *rest, **more: gate.wait(10))
    client = client_of(text_model, limits=Limits(waiting_jobs=2, stop_seconds=0.2))
    answers = [client.post("/learn", json={"texts": ["a"], "labels": ["b"]}, headers=bearer).status_code for _ in range(6)]
    assert answers[:2] == [202, 202]
    assert answers[-1] == 503
    gate.set()


# Images


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose head promises a sea of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    facts = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", facts) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(7072, 7072), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_a_pixel_of_it_is_decoded(
    image_client: TestClient, bearer: dict[str, str], width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("A pixel was decoded."))
    files = {"images": ("a.png", bomb(width, height))}
    for path, data in (("/predict", {}), ("/learn", {"labels": ["1"]})):
        response = image_client.post(path, files=files, data=data, headers=bearer)
        assert response.status_code == 422
        assert "images[0]" in response.json()["detail"]
    assert image_client.get("/versions").json()["current"] == 2


def test_images_up_to_the_limit_are_accepted() -> None:
    buffer = io.BytesIO()
    Image.new("L", (100, 100)).save(buffer, "PNG")
    check_images([buffer.getvalue()], Limits(pixels=10_000))
    with pytest.raises(DataError, match="100x100"):
        check_images([buffer.getvalue()], Limits(pixels=9_999))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX", "EPS", "PDF"])
def test_formats_with_rarely_used_decoders_are_refused(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, kind)
    with pytest.raises(DataError, match="not one of JPEG"):
        check_images([buffer.getvalue()], Limits())


def test_too_many_images_are_refused(image_client: TestClient, digit_file: Digit) -> None:
    content = digit_file(0, 0)
    for count, statuses in ((256, (200,)), (257, (400, 422)), (1500, (400, 422))):
        response = image_client.post("/predict", files=[("images", (f"{n}.png", content)) for n in range(count)])
        assert response.status_code in statuses


# Paths

TRICKS = ["../../evil", "/tmp/evil", "..\\evil", "a\x00b", "%2e%2e%2fevil", "file:///etc/passwd", "serve-token", "HEAD", "."]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def names_in(listed: list[str]) -> set[str]:
    """Of a listing, what is not one of the model's own numbers and checksums."""
    return {name for name in listed if not re.fullmatch(r"\w+/(blobs|versions)/[0-9a-f/]+(\.safetensors|\.json)?", name)}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_text_label_or_path_reaches_the_files(
    text_client: TestClient, text_model: Model, bearer: dict[str, str], finished: Any, tmp_path: Path, trick: str
) -> None:
    before = listing(tmp_path)
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/predict", {"json": {"texts": [trick]}}),
        ("POST", "/predict", {"json": {trick: [trick]}}),
        ("POST", "/rollback", {"json": {"number": trick}}),
        ("GET", "/versions", {"params": {"limit": trick}}),
        ("GET", "/model", {"headers": {**bearer, "x-source": trick.replace("\x00", "")}}),
    ]
    for method, path, rest in requests:
        response = text_client.request(method, path, **{"headers": bearer, **rest})
        assert response.status_code in (200, 422)
    for path in (f"/jobs/{trick}", f"/{trick}", f"/jobs/{trick}/.."):
        assert text_client.get(path.replace("\x00", "%00").replace("\\", "%5c")).status_code in (200, 404)
    assert listing(tmp_path) == before
    response = text_client.post("/learn", json={"texts": [trick], "labels": [trick]}, headers=bearer)
    if response.status_code == 202:
        finished(text_client, response)
    assert names_in(listing(tmp_path)) == names_in(before)


@pytest.mark.parametrize("trick", TRICKS)
def test_no_file_name_of_an_upload_reaches_the_files(
    image_client: TestClient,
    digit_file: Digit,
    bearer: dict[str, str],
    finished: Any,
    tmp_path: Path,
    trick: str,
) -> None:
    before = listing(tmp_path)
    parts = [
        (f'name="images"; filename="{trick}"\r\ncontent-type: {trick}/png', digit_file(5, 0)),
        ('name="labels"', b"5"),
        (f'name="{trick}"', trick.encode()),
    ]
    pieces = [f"--x\r\ncontent-disposition: form-data; {about}\r\n\r\n".encode() + data + b"\r\n" for about, data in parts]
    body = b"".join(pieces) + b"--x--\r\n"
    headers = {**bearer, "content-type": "multipart/form-data; boundary=x"}
    response = image_client.post("/learn", content=body, headers=headers)
    if response.status_code == 202:
        finished(image_client, response)
    else:
        assert response.status_code in (400, 422)
    assert names_in(listing(tmp_path)) == names_in(before)


TARGETS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "//etc/passwd",
    "/%00",
    "/docs/../../serve-token",
    "http://x/model",
    "*",
]


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_of_a_request_reaches_the_files(port: int, target: str) -> None:
    answer = exchange(port, head(target, "connection: close", method="GET"))
    assert answer[9:12] in (b"404", b"400")
    assert b"root:" not in answer
