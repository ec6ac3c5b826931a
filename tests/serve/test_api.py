"""What the service answers: predictions, changes of the model, and who may make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from latewood.model.model import Model

Finished = Callable[[TestClient, Any], dict[str, Any]]
Digit = Callable[[int, int], bytes]
CHANGES = ("/learn", "/rollback", "/accept", "/reject")
READINGS = ("/model", "/versions", "/jobs/0123456789abcdef", "/metrics", "/openapi.json")


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{number}.png", content)) for number, content in enumerate(contents)]


# Predicting


def test_texts_get_the_models_own_guesses_and_the_version_that_made_them(text_client: TestClient, text_model: Model) -> None:
    texts = ["where is my lost parcel", "pay my old bill", "dog"]
    told = text_client.post("/predict", json={"texts": texts, "top": 2}).json()
    assert told["version"] == text_model.version.number == 2
    for found, wanted in zip(told["predictions"], text_model.predict(texts, top=2), strict=True):
        assert [guess["label"] for guess in found] == [guess.label for guess in wanted]
        assert [guess["confidence"] for guess in found] == pytest.approx([guess.confidence for guess in wanted], abs=1e-6)
    assert [found[0]["label"] for found in told["predictions"][:2]] == ["delivery", "payment"]


def test_images_get_the_models_own_guesses(image_client: TestClient, image_model: Model, digit_file: Digit) -> None:
    images = [digit_file(label, 20) for label in range(4)]
    told = image_client.post("/predict", files=files(*images), data={"top": "4"}).json()
    assert [[guess["label"] for guess in found] for found in told["predictions"]] == [
        [guess.label for guess in found] for found in image_model.predict(images, top=4)
    ]
    assert [found[0]["label"] for found in told["predictions"]] == ["0", "1", "2", "3"]
    assert [sum(guess["confidence"] for guess in found) for found in told["predictions"]] == pytest.approx([1.0] * 4)


def test_without_top_there_is_one_guess(text_client: TestClient) -> None:
    assert [len(found) for found in text_client.post("/predict", json={"texts": ["a", "b"]}).json()["predictions"]] == [1, 1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": "a"}, "texts"),
        ({"texts": [""]}, "texts[0]"),
        ({"texts": ["a", " \n "]}, "texts[1]"),
        ({"texts": ["a", 3]}, "texts[1]"),
        ({"texts": ["a" * 20_001]}, "texts[0]"),
        ({"texts": ["a"] * 257}, "texts"),
        ({"texts": ["a"], "top": 0}, "top"),
        ({"texts": ["a"], "top": "3"}, "top"),
        ({"texts": ["a"], "top": 10**400}, "top"),
        ({"texts": ["a"], "more": 1}, "more"),
        ({"texts": ["\ud800"]}, "texts[0]"),
        ({"texts": ["a"], "\ud800": 1}, "body"),
        ([], "body"),
        (None, "body"),
    ],
)
def test_a_body_that_does_not_fit_is_told_in_one_sentence(text_client: TestClient, body: Any, words: str) -> None:
    import json

    response = text_client.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (response.status_code, list(response.json())) == (422, ["detail"])
    assert words in response.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"texts": ' + b"1" * 5000 + b"}", b"NaN"])
def test_a_body_that_is_no_json_is_told_so(text_client: TestClient, body: bytes) -> None:
    response = text_client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert list(response.json()) == ["detail"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("body", [b"", b"--x\r\n", b"\x00" * 1000, b"--x\r\n\r\n\r\n--x--"])
def test_a_body_that_is_no_form_is_told_so(image_client: TestClient, kind: str, body: bytes) -> None:
    response = image_client.post("/predict", content=body, headers={"content-type": kind})
    assert response.status_code in (400, 422)
    assert list(response.json()) == ["detail"]


def test_a_damaged_image_fails_with_its_place(image_client: TestClient, digit_file: Digit) -> None:
    whole = digit_file(1, 0)
    for damaged in (b"", b"no image", whole[:20], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        response = image_client.post("/predict", files=files(whole, damaged))
        assert response.status_code == 422
        assert "images[1]" in response.json()["detail"]


def test_an_image_with_a_whole_head_and_a_damaged_body_fails_alone(image_client: TestClient, digit_file: Digit) -> None:
    response = image_client.post("/predict", files=files(digit_file(1, 0)[:60]))
    assert response.status_code == 422
    assert image_client.post("/predict", files=files(digit_file(1, 0))).status_code == 200


# Changing the model


def test_what_is_taught_is_known_in_a_new_version(text_client: TestClient, bearer: dict[str, str], finished: Finished) -> None:
    lesson = {"texts": ["lost my card", "send new card", "where is my card"], "labels": ["card"] * 3}
    job = finished(text_client, text_client.post("/learn", json=lesson, headers=bearer))
    assert (job["state"], job["version"], job["error"]) == ("done", 3, None)
    assert (job["learned"]["added"], job["learned"]["new_classes"], job["learned"]["held"]) == (3, ["card"], False)
    told = text_client.post("/predict", json={"texts": ["lost my card"]}).json()
    assert (told["version"], told["predictions"][0][0]["label"]) == (3, "card")
    model = text_client.get("/model").json()
    assert [known["name"] for known in model["classes"]] == ["delivery", "payment", "card"]
    assert (model["name"], model["kind"], model["version"]["number"]) == ("intents", "text", 3)
    newest = text_client.get("/versions").json()["versions"][-1]
    assert newest["about"].startswith("upload 20")


def test_images_are_taught_in_one_request(
    image_client: TestClient, bearer: dict[str, str], finished: Finished, digit_file: Digit
) -> None:
    lesson = files(*(digit_file(7, which) for which in range(6)))
    response = image_client.post("/learn", files=lesson, data={"labels": ["7"] * 6}, headers=bearer)
    assert finished(image_client, response)["learned"]["new_classes"] == ["7"]
    told = image_client.post("/predict", files=files(digit_file(7, 30))).json()
    assert (told["version"], told["predictions"][0][0]["label"]) == (3, "7")


def test_the_way_back_is_a_new_version_that_predicts_as_the_old_one(
    text_client: TestClient, bearer: dict[str, str], finished: Finished
) -> None:
    ask = {"texts": ["dog cat", "where is my card"], "top": 2}
    before = text_client.post("/predict", json=ask).json()
    finished(text_client, text_client.post("/learn", json={"texts": ["dog cat"], "labels": ["animal"]}, headers=bearer))
    job = finished(text_client, text_client.post("/rollback", json={"number": 2}, headers=bearer))
    assert (job["state"], job["version"], job["kind"]) == ("done", 4, "rollback")
    after = text_client.post("/predict", json=ask).json()
    assert after == {**before, "version": 4}
    assert [version["event"] for version in text_client.get("/versions").json()["versions"]] == [
        "init",
        "learn",
        "learn",
        "rollback",
    ]


def test_a_lesson_that_costs_too_much_is_held_back_until_someone_decides(
    client_of: Callable[..., TestClient], tmp_path: Path, bearer: dict[str, str], finished: Finished, digit_file: Digit
) -> None:
    model = Model.init(tmp_path / "digits", backbone="pixels", size=8, channels=1, canaries=0.2, settings={"expansion": 64})
    model.learn([(digit_file(label, which), str(label)) for label in (0, 1) for which in range(60)], source="examples")
    client = client_of(model)
    zeros = files(*(digit_file(0, which) for which in range(60, 160)))

    def mislead() -> dict[str, Any]:
        return finished(client, client.post("/learn", files=zeros, data={"labels": ["1"] * 100}, headers=bearer))

    job = mislead()
    assert (job["state"], job["error"], job["learned"]["held"]) == ("done", None, True)
    told = client.get("/model").json()
    assert (told["version"]["number"], told["candidate"]["number"]) == (2, job["version"])
    assert job["learned"]["lost"] == told["candidate"]["lost"] != []
    assert mislead()["state"] == "failed"  # the one that waits must be decided first
    assert finished(client, client.post("/reject", headers=bearer))["state"] == "done"
    assert client.get("/model").json()["candidate"] is None
    held = mislead()["version"]
    accepted = finished(client, client.post("/accept", headers=bearer))["version"]
    assert accepted > held
    assert client.post("/predict", files=files(digit_file(0, 20))).json()["version"] == accepted


def test_there_is_nothing_to_decide_without_a_candidate(text_client: TestClient, bearer: dict[str, str]) -> None:
    for path in ("/accept", "/reject"):
        response = text_client.post(path, headers=bearer)
        assert (response.status_code, list(response.json())) == (409, ["detail"])


def test_versions_and_jobs_that_are_not_there_are_told(text_client: TestClient, bearer: dict[str, str]) -> None:
    assert text_client.post("/rollback", json={"number": 99}, headers=bearer).status_code == 404
    assert text_client.get("/jobs/none").status_code == 404


def test_a_lesson_that_the_model_refuses_fails_and_changes_nothing(
    text_client: TestClient, bearer: dict[str, str], finished: Finished
) -> None:
    lesson = {"texts": ["dog", "dog"], "labels": ["animal", "pet"]}
    job = finished(text_client, text_client.post("/learn", json=lesson, headers=bearer))
    assert (job["state"], job["version"], job["learned"]) == ("failed", None, None)
    assert "another label" in job["error"]
    assert text_client.get("/versions").json()["current"] == 2


def test_each_input_needs_a_label(
    text_client: TestClient, image_client: TestClient, bearer: dict[str, str], digit_file: Digit
) -> None:
    response = text_client.post("/learn", json={"texts": ["a", "b"], "labels": ["x"]}, headers=bearer)
    assert (response.status_code, "2 inputs but 1 labels" in response.json()["detail"]) == (422, True)
    lesson = files(digit_file(1, 0), digit_file(1, 1))
    assert image_client.post("/learn", files=lesson, data={"labels": ["1"]}, headers=bearer).status_code == 422


@pytest.mark.parametrize("label", ["", " ", " a", "a ", "a\n", "a\x00b", "a\tb", "\x85", "\ud800", "a" * 201])
def test_a_label_that_can_not_be_shown_is_refused(text_client: TestClient, bearer: dict[str, str], label: str) -> None:
    import json

    body = json.dumps({"texts": ["dog"], "labels": [label]})
    response = text_client.post("/learn", content=body, headers={**bearer, "content-type": "application/json"})
    assert response.status_code == 422
    assert "labels[0]" in response.json()["detail"]


def test_a_model_that_knows_nothing_yet_can_be_taught(
    client_of: Callable[..., TestClient], tmp_path: Path, bearer: dict[str, str], finished: Finished, digit_file: Digit
) -> None:
    client = client_of(Model.init(tmp_path / "new", backbone="pixels", size=8, channels=1, settings={"expansion": 64}))
    assert client.get("/model").json()["classes"] == []
    assert client.post("/predict", files=files(digit_file(1, 0))).status_code == 422
    lesson = files(digit_file(1, 0), digit_file(2, 0))
    assert finished(client, client.post("/learn", files=lesson, data={"labels": ["1", "2"]}, headers=bearer))["state"] == "done"
    assert client.post("/predict", files=files(digit_file(1, 0))).json()["predictions"][0][0]["label"] == "1"


def test_what_another_process_made_is_taken_up(text_client: TestClient, text_model: Model) -> None:
    import time

    other = Model.open(text_model.folder)
    other.learn([("dog", "animal"), ("cat", "animal")], source="elsewhere")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and text_client.get("/versions").json()["current"] == 2:
        time.sleep(0.05)
    assert text_client.post("/predict", json={"texts": ["dog"]}).json()["version"] == 3


# Who may


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "a-token-that-only-tests-know",
        "Basic a-token-that-only-tests-know",
        "Bearer a-token-that-only-tests-knoW",
        "Bearer a-token-that-only-tests-know more",
    ],
)
def test_nothing_changes_without_the_token(text_client: TestClient, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for body in ({"json": {"texts": ["a"], "labels": ["b"]}}, {"content": b"{"}, {"json": {"number": 1}}):
        response = text_client.post(path, headers=headers, **body)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert list(response.json()) == ["detail"]
    assert text_client.get("/versions").json()["current"] == 2


def test_reading_needs_no_token(text_client: TestClient) -> None:
    for path in READINGS:
        assert text_client.get(path).status_code != 401


def test_a_private_service_tells_nothing_without_the_token(
    client_of: Callable[..., TestClient], text_model: Model, bearer: dict[str, str]
) -> None:
    client = client_of(text_model, private=True)
    for path in READINGS:
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer).status_code != 401
    assert client.post("/predict", json={"texts": ["a"]}).status_code == 401
    assert client.post("/predict", json={"texts": ["a"]}, headers=bearer).status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    for page in ("/", "/docs"):  # they hold nothing of the model, and ask for the token
        assert text_model.folder.name not in client.get(page).text


# Names, headers, pages, numbers


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered(client_of: Callable[..., TestClient], text_model: Model, host: str) -> None:
    client = client_of(text_model, hosts=("localhost", "127.0.0.1", "[::1]"))
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::1", "localhost:80:80", "a@localhost"],
)
def test_another_name_for_this_machine_is_refused(client_of: Callable[..., TestClient], text_model: Model, host: str) -> None:
    client = client_of(text_model, hosts=("localhost", "127.0.0.1", "[::1]"))
    for path in ("/", "/healthz", "/model"):
        assert client.get(path, headers={"host": host}).status_code == 421


def test_every_answer_makes_browsers_careful(text_client: TestClient) -> None:
    for path in ("/", "/docs", "/model", "/none", "/metrics"):
        headers = text_client.get(path, headers={"origin": "https://elsewhere.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_other_pages_may_not_ask_first_either(text_client: TestClient) -> None:
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    response = text_client.options("/learn", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    [
        "/static",
        "/page.html",
        "/%2e%2e/serve-token",
        "/serve-token",
        "/docs/",
        "/healthz/",
        "/jobs/",
    ],
)
def test_there_are_no_files_and_no_other_paths(text_client: TestClient, path: str) -> None:
    assert text_client.get(path, follow_redirects=False).status_code == 404


def test_numbers_for_a_monitor_follow_what_happens(text_client: TestClient, bearer: dict[str, str], finished: Finished) -> None:
    text_client.post("/predict", json={"texts": ["a", "b", "c"]})
    text_client.post("/predict", json={})
    text_client.request("WEIRD", "/predict")
    text_client.get("/some/path/that/anyone/may/make/up")
    finished(text_client, text_client.post("/learn", json={"texts": ["dog"], "labels": ["animal"]}, headers=bearer))
    response = text_client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    for line in (
        'latewood_requests_total{method="POST",route="/predict",status="200"} 1.0',
        'latewood_requests_total{method="POST",route="/predict",status="422"} 1.0',
        'latewood_requests_total{method="other",route="/predict",status="405"} 1.0',
        'latewood_requests_total{method="GET",route="other",status="404"} 1.0',
        "latewood_batch_inputs_sum 3.0",
        'latewood_jobs_total{kind="learn",state="done"} 1.0',
        "latewood_version 3.0",
        "latewood_classes 3.0",
        "latewood_waiting_inputs 0.0",
        "latewood_unfinished_jobs 0.0",
    ):
        assert line in lines
    assert "anyone" not in response.text
