"""The report in a real browser: it shows, in light and dark, wide and narrow, and asks the network for nothing."""

import io

import pytest
from PIL import Image

from crossdistill.report import write_report
from crossdistill.selfsup import pretrain
from samples.browser import launched
from samples.pretraining import QUICK, textures
from samples.run_folder import sample_results, write_run


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = sample_results()
    results["rows"][1]["name"] = "<script>alert(1)</script><img src=https://example.invalid/x onerror=alert(2)>"
    return write_report(write_run(tmp_path_factory.mktemp("run"), results))


@pytest.fixture(scope="module")
def pretrained_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    data = textures(folder / "images")
    options = ["student.image_size=32", *QUICK]
    pretrain("timm/test_resnet", f"folder:{data}", folder / "run", overrides=options, quiet=True)
    return folder / "run" / "report.html"


@pytest.fixture
def opened(browser, report):
    """Opens a report; everything it says, asks for or pops up is collected in ``noise``."""
    pages = []

    def open_(width=1200, scheme="light", report=report):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if is_own(request.url, report) else page.noise.append(request.url))
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()


def is_own(url, report):
    return url == report.as_uri() or url.startswith("data:image/png;base64,")


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_pretraining_run_shows_its_words(opened, pretrained_report, width, scheme):
    page = opened(width, scheme, pretrained_report)
    assert page.noise == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    mosaics = page.locator("img.words")
    assert mosaics.count() == 2
    for index in range(2):
        assert mosaics.nth(index).evaluate("image => image.complete && image.naturalWidth > 200")
        box = mosaics.nth(index).bounding_box()
        assert box["width"] == pytest.approx(mosaics.nth(index).evaluate("image => image.naturalWidth"), abs=3)
        image = Image.open(io.BytesIO(page.locator("figure:has(img.words)").nth(index).screenshot())).convert("RGB")
        assert len(image.getcolors(2**24)) > 100, "patches of many colours"
    assert page.get_by_role("heading", name="Is there something to predict?").is_visible()
    assert page.get_by_text("perplexity, level 4").is_visible()
    assert page.get_by_role("img", name="Patches nearest to the most used words of level 4").count() == 1


def test_a_pretraining_table_fits_beside_its_long_names(opened, pretrained_report):
    page = opened(1200, "light", pretrained_report)
    assert page.locator(".wide:has(table)").evaluate("box => box.scrollWidth <= box.clientWidth")
    assert page.get_by_role("rowheader", name="Pretrained, linear probe").count() == 1
