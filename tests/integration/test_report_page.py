"""The report in a real browser: it shows, in light and dark, wide and narrow, and asks the network for nothing."""

import io
from pathlib import Path

import pytest
from PIL import Image

from crossdistill.report import write_report
from samples.run_folder import sample_results, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
DEBIAN_CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        own = Path(running.chromium.executable_path)
        executable = next((path for path in (DEBIAN_CHROMIUM, own) if path.exists()), None)
        if executable is None:
            pytest.skip("no Chromium: install Debian's, or run `playwright install chromium`")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = running.chromium.launch(executable_path=executable, headless=True, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = sample_results()
    results["rows"][1]["name"] = "<script>alert(1)</script><img src=https://example.invalid/x onerror=alert(2)>"
    return write_report(write_run(tmp_path_factory.mktemp("run"), results))


@pytest.fixture
def opened(browser, report):
    """Opens the report; everything it says, asks for or pops up is collected in ``noise``."""
    pages = []

    def open_(width=1200, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.noise.append(request.url) if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()


def picture(page):
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_shows_without_noise_and_without_sideways_scrolling(opened, width, scheme):
    page = opened(width, scheme)
    assert page.noise == []
    assert page.locator("table.comparison").is_visible()
    assert page.locator("svg").count() == 10
    assert all(page.locator("svg").nth(index).bounding_box()["height"] > 80 for index in range(10))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    image = picture(page)
    paper = image.getpixel((2, 2))
    assert (sum(paper) > 700) if scheme == "light" else (sum(paper) < 120)
    drawn = sum(count for count, colour in image.getcolors(2**24) if colour != paper)
    assert drawn > 0.02 * image.width * image.height


def test_figures_follow_the_colour_scheme(opened):
    colours = {
        scheme: opened(scheme=scheme).evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        for scheme in ("light", "dark")
    }
    assert colours["light"] != colours["dark"]


def test_a_narrow_screen_names_each_cell(opened):
    wide, narrow = opened(1200), opened(390)
    script = "getComputedStyle(document.querySelector('table.comparison td'), '::before').content"
    assert wide.evaluate(script) == "none"
    assert narrow.evaluate(script) == '"Model"'


def test_a_screen_reader_finds_table_and_figures(opened):
    page = opened(390)
    assert page.get_by_role("table").count() == 1
    assert page.get_by_role("row").count() == 5
    assert page.get_by_role("rowheader", name="Student alone").count() == 1
    assert page.get_by_role("img").count() == 10
    assert page.get_by_role("heading", level=1).count() == 1


def test_all_of_it_prints(opened):
    page = opened()
    page.emulate_media(media="print")
    settings = page.locator("pre.tall")
    assert settings.evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    assert page.pdf(format="A4").startswith(b"%PDF")
