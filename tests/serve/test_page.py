"""The page for people, in a real browser: predict, correct, see the new version, go back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from latewood.model.model import Model
from latewood.serve.app import make_app
from latewood.serve.limits import Limits

playwright = pytest.importorskip("playwright.sync_api")

Serving = Callable[[Any, Limits], int]
Digit = Callable[[int, int], bytes]
HERE = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("There is no chromium on the path.")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, serving: Serving, token: str) -> Iterator[Callable[..., Any]]:
    """Open the page of a service; at the end, no error was shown on its console and nothing was asked of another machine."""
    complaints: list[str] = []
    asked: set[str] = set()
    pages: list[Any] = []

    def open_page(model: Model, path: str = "/", fragment: str = f"#token={token}", **options: Any) -> Any:
        limits = Limits(stop_seconds=1)
        private = options.pop("private", False)
        port = serving(make_app(model, token, limits=limits, hosts=HERE, private=private), limits)
        page = browser.new_page(**options)
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        page.set_default_timeout(15_000)
        playwright.expect.set_options(timeout=15_000)
        page.goto(f"http://127.0.0.1:{port}{path}{fragment}")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    # A refusal is shown on the page; the browser reports it as well.
    assert [complaint for complaint in complaints if not complaint.startswith("Failed to load resource")] == []
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def ask(page: Any, *texts: str) -> None:
    page.get_by_label("Texts").fill("\n".join(texts))
    page.get_by_role("button", name="Ask").click()


def test_texts_are_predicted_corrected_and_rolled_back(visit: Callable[..., Any], text_model: Model) -> None:
    page = visit(text_model)
    expect = playwright.expect
    expect(page.get_by_role("heading", name="intents")).to_be_visible()
    assert "token" not in page.url
    ask(page, "pay my late bill", "dog cat")
    first = page.locator(".card").nth(0)
    expect(first.locator(".guess").first).to_contain_text("payment")
    expect(first.locator(".foot")).to_have_text("by version 2")
    page.get_by_label("Right label for “dog cat”").fill("animal")
    page.get_by_role("button", name="Teach 1").click()
    expect(page.get_by_role("status")).to_contain_text("Version 3: learned 1 sample; a new class: animal.")
    second = page.locator(".card").nth(1)
    expect(second.locator(".guess").first).to_contain_text("animal")
    expect(second.locator(".foot")).to_have_text("by version 3")
    expect(page.locator(".version.current")).to_contain_text("Learned")
    assert page.locator(".version").count() == 3
    page.get_by_role("button", name="Go back to version 2").click()
    expect(page.get_by_role("status")).to_contain_text("Version 4 is in use")
    expect(page.locator(".version.current")).to_contain_text("Went back")
    expect(second.locator(".guess").first).not_to_contain_text("animal")
    assert text_model.version.number == 4


def test_images_are_predicted_and_taught_with_one_label_for_all(
    visit: Callable[..., Any], image_model: Model, digit_file: Digit
) -> None:
    page = visit(image_model)
    expect = playwright.expect
    expect(page.get_by_role("heading", name="digits")).to_be_visible()
    chosen = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": digit_file(9, n)} for n in range(4)]
    page.locator("#files").set_input_files(chosen)
    expect(page.locator(".card .guess").first).to_be_visible()
    page.get_by_label("One label for all").fill("9")
    page.get_by_role("button", name="Teach 4").click()
    expect(page.get_by_role("status")).to_contain_text("a new class: 9.")
    for card in page.locator(".card").all():
        expect(card.locator(".foot")).to_have_text("by version 3")
    expect(page.locator("#facts")).to_contain_text("5 classes of images, 36 samples, version 3")


def test_an_image_that_can_not_be_read_is_told_in_its_place(
    visit: Callable[..., Any], image_model: Model, digit_file: Digit
) -> None:
    page = visit(image_model)
    page.locator("#files").set_input_files(
        [
            {"name": "a.png", "mimeType": "image/png", "buffer": digit_file(1, 0)[:40]},
            {"name": "b.png", "mimeType": "image/png", "buffer": digit_file(1, 0)},
        ]
    )
    playwright.expect(page.locator(".card").nth(0).locator(".problem")).to_be_visible()
    playwright.expect(page.locator(".card").nth(1).locator(".guess").first).to_contain_text("1")


def test_the_token_is_asked_for_once_and_a_wrong_one_again(visit: Callable[..., Any], text_model: Model, token: str) -> None:
    page = visit(text_model, fragment="")
    expect = playwright.expect
    ask(page, "dog cat")
    page.get_by_label("Right label for “dog cat”").fill("animal")
    page.get_by_role("button", name="Teach 1").click()
    expect(page.get_by_role("heading", name="The token, please")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("heading", name="That is not the token")).to_be_visible()
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("status")).to_contain_text("Version 3")
    page.get_by_role("button", name="Go back to version 2").click()
    expect(page.get_by_role("status")).to_contain_text("Version 4 is in use")


def test_without_the_token_nothing_is_changed(visit: Callable[..., Any], text_model: Model) -> None:
    page = visit(text_model, fragment="")
    page.get_by_role("button", name="Go back to version 1").click()
    page.get_by_role("button", name="Cancel").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("needs the token")
    assert text_model.version.number == 2


def test_a_private_service_shows_itself_to_who_has_the_token(visit: Callable[..., Any], text_model: Model, token: str) -> None:
    page = visit(text_model, fragment="", private=True)
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Use it").click()
    playwright.expect(page.get_by_role("heading", name="intents")).to_be_visible()


def test_a_version_that_is_held_back_can_be_accepted(visit: Callable[..., Any], tmp_path: Path, digit_file: Digit) -> None:
    model = Model.init(tmp_path / "digits", backbone="pixels", size=8, channels=1, canaries=0.2, settings={"expansion": 64})
    model.learn([(digit_file(label, which), str(label)) for label in (0, 1) for which in range(60)], source="examples")
    assert model.learn([(digit_file(0, which), "1") for which in range(60, 160)], source="a mistake").held
    page = visit(model)
    playwright.expect(page.get_by_role("heading", name="Version 3 is held back")).to_be_visible()
    playwright.expect(page.locator("#held-why")).to_contain_text("It would lose 0 (")
    page.get_by_role("button", name="Accept it").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("Accepted; version 4 is in use.")
    playwright.expect(page.locator("#held")).to_be_hidden()


def test_labels_are_shown_as_text_whatever_they_hold(visit: Callable[..., Any], text_model: Model) -> None:
    text_model.learn([("dog", "<img src=x onerror=alert(1)>"), ("cat", "\u202ereversed")], source="<script>alert(1)</script>")
    page = visit(text_model)
    ask(page, "dog", "<b>bold</b>")
    playwright.expect(page.locator(".guess").first).to_be_visible()
    assert page.locator("main img, main b, aside script").count() == 0
    playwright.expect(page.locator(".version.current")).to_contain_text("<script>")


def test_everything_can_be_done_by_keyboard_on_a_phone_without_scrolling_sideways(
    visit: Callable[..., Any], text_model: Model
) -> None:
    page = visit(text_model, viewport={"width": 360, "height": 740}, color_scheme="dark")
    playwright.expect(page.locator(".version.current")).to_be_visible()  # the page is ready
    page.get_by_label("Texts").focus()
    page.keyboard.type("lost parcel with-a-word-that-is-far-too-long-to-fit-into-a-line-of-a-phone-and-must-be-broken")
    page.keyboard.press("Control+Enter")
    playwright.expect(page.locator(".guess").first).to_be_visible()
    page.locator(".guess").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for _ in range(5):
        if page.evaluate("document.activeElement.classList.contains('field')"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("status")).to_contain_text("Version 3")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_control_has_a_name(visit: Callable[..., Any], text_model: Model) -> None:
    page = visit(text_model)
    ask(page, "dog")
    playwright.expect(page.locator(".guess").first).to_be_visible()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, a")].filter((one) =>
            !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_the_interface_for_programs_is_shown_without_another_machine(visit: Callable[..., Any], text_model: Model) -> None:
    page = visit(text_model, path="/docs", fragment="")
    expect = playwright.expect
    for operation in ("GET /versions", "POST /predict", "POST /learn", "POST /rollback"):
        method, path = operation.split()
        expect(page.get_by_role("heading", name=f"{method} {path}", exact=True)).to_be_visible()
    expect(page.locator("#example")).to_contain_text('"texts": ["a text"]')
