"""The pages in a real browser: Swagger UI renders, nothing comes from elsewhere, nothing breaks the policy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.service.http_helpers import ServerProcess, image_bytes, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not at hand (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that can reach the loopback only; at the end nothing was asked of anybody else and no error was logged."""
    elsewhere: list[str] = []
    complaints: list[str] = []
    context = browser.new_context()

    def guard(route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("data", "blob") or url.hostname == "127.0.0.1":
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert elsewhere == [] and complaints == []


def test_the_api_pages_render(server: ServerProcess, page: Any) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.wait_for_selector(".opblock")
    routes = page.locator(".opblock-summary-path").all_inner_texts()
    shown = {route.replace("\u200b", "") for route in routes}
    assert {"/dream", "/sample", "/features", "/energy", "/inpaint", "/filters", "/models", "/readyz"} <= shown


def test_a_request_can_be_tried_from_the_api_pages(server: ServerProcess, page: Any) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    block = page.locator(".opblock", has=page.locator('[data-path="/models"]'))
    block.locator(".opblock-summary").click()
    block.locator(".try-out__btn").click()
    block.locator(".execute").click()
    block.locator(".live-responses-table .response-col_status", has_text="200").first.wait_for()


def test_the_front_page_works_without_script(server: ServerProcess, page: Any, tmp_path: Path) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function("document.querySelector('img').naturalWidth > 0")
    digit = tmp_path / "digit.png"
    digit.write_bytes(image_bytes())
    page.set_input_files("#file", digit)
    with page.expect_navigation() as navigation:
        page.click("button")
    assert navigation.value.status == 200 and navigation.value.headers["content-type"] == "image/png"
