"""The page of a federated run in a real browser: any number of clients, light and dark, wide and narrow, any name."""

import io
import itertools
import re

import pytest
from PIL import Image

import crossdistill.federated.panels  # noqa: F401  (registers the panels)
from crossdistill.report import write_report
from samples.browser import launched
from samples.federation_results import federation_results, write_federation

TITLES = ("Strategies", "Accuracy by round", "Labels of the clients", "Weights of the fusion", "Who helped whom")
TITLES = (*TITLES, "Traffic", "What went wrong")
EVIL = "<script>alert(1)</script><img src=https://example.invalid/x onerror=alert(2)>"
RUNS = {
    "three": {"clients": 3, "classes": 2, "names": [EVIL, '"onload="alert(3)', "\u202eWard 7\ud800 " + "W" * 300]},
    "ten": {"clients": 10, "strategies": ("knfu", "local", "fedmd", "fedavg", "auto"), "seeds": (0, 1, 2)},
    "hundred": {"clients": 100, "classes": 100, "strategies": ("knfu", "self"), "rounds": 5},
}


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each kind; one more lacks every figure that may be missing."""
    folder = tmp_path_factory.mktemp("federations")
    results = {name: federation_results(**options) for name, options in RUNS.items()}
    for record in results["three"]["federation"][0]["rounds"]:
        record["notes"] = [EVIL]
    results["bare"] = federation_results(clients=4, told=False)
    for record in results["bare"]["federation"][0]["rounds"]:
        record.update(dict.fromkeys(("alma", "alma_balanced", "worst", "sd")))
        for done in record["clients"].values():
            done.update(dict.fromkeys(key for key in done if key != "status"))
    return {name: write_report(write_federation(folder / name, tree)) for name, tree in results.items()}


@pytest.fixture
def opened(browser, reports):
    """Opens a report; everything it says, asks for or pops up is collected in ``noise``."""
    pages = []

    def open_(name, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: None if is_own(request.url, reports[name]) else page.noise.append(request.url)
        )
        page.goto(reports[name].as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()


def is_own(url, report):
    return url == report.as_uri() or url.startswith("data:image/png;base64,")


def picture(part):
    return Image.open(io.BytesIO(part.screenshot())).convert("RGB")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", RUNS)
def test_the_page_shows_without_noise_and_without_sideways_scrolling(opened, name, width, scheme):
    page = opened(name, width, scheme)
    for title in TITLES:
        assert page.get_by_role("heading", name=title, exact=True).is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.locator("svg")
    assert figures.count() >= 7
    for index in range(figures.count()):
        box = figures.nth(index).bounding_box()
        assert box["height"] > 80
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    paper = picture(page).getpixel((2, 2))
    assert (sum(paper) > 700) if scheme == "light" else (sum(paper) < 120)
    assert page.noise == []


@pytest.mark.parametrize("width", [1280, 390])
def test_missing_figures_leave_their_panels_out(opened, width):
    page = opened("bare", width)
    assert page.noise == []
    shown = page.get_by_role("heading", level=2).all_inner_texts()
    assert [title for title in shown if title in TITLES] == [
        *("Strategies", "Weights of the fusion", "Who helped whom", "What went wrong")
    ]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["three", "ten"])
def test_the_colour_of_a_cell_belongs_to_the_number_in_it(opened, name, scheme):
    """The picture of the cells is neither turned nor moved against the numbers, and all of these can be read."""
    page = opened(name, scheme=scheme)
    figure = page.locator("section:has(h2:text-is('Weights of the fusion')) svg").nth(1)
    image, corner = picture(figure), figure.bounding_box()
    numbers = figure.locator("text").filter(has_text=re.compile(r"^\d+$"))
    assert numbers.count() >= 9
    found = []
    for index in range(numbers.count()):
        box = numbers.nth(index).bounding_box()
        assert box["height"] >= 9, "large enough to read"
        place = (int(box["x"] - corner["x"] - 2), int(box["y"] + box["height"] / 2 - corner["y"]))
        red, _, blue = image.getpixel(place)
        found.append((int(numbers.nth(index).text_content()), blue - red))
    found.sort()
    blueness = [blue for _, blue in found]
    assert blueness[-1] > 60
    assert all(later >= earlier - 3 for earlier, later in itertools.pairwise(blueness))


@pytest.mark.parametrize("name", RUNS)
def test_figures_follow_the_colour_scheme_and_are_seen_in_both(opened, name):
    selector = "section:has(h2:text-is('Weights of the fusion')) svg"
    contrasts = {}
    for scheme in ("light", "dark"):
        page = opened(name, scheme=scheme)
        colours = picture(page.locator(selector).nth(1)).getcolors(2**24)
        blues = sum(count for count, (red, _, blue) in colours if blue - red > 15)
        contrasts[scheme] = blues / sum(count for count, _ in colours)
    assert min(contrasts.values()) > 0.05


def test_names_are_text_in_tables_and_figures(opened):
    page = opened("three")
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == 0
    first = page.locator("section:has(h2:text-is('Who helped whom')) tbody th").all_inner_texts()
    assert first[0].startswith("<script>alert(1)</script><img")
    assert first[1].startswith('"onload="alert(3)')
    assert first[2].startswith("Ward 7 WWW")
    assert page.locator("svg text", has_text="<script>alert").count() > 0
    assert page.noise == []


def test_folds_open_and_hold_every_client(opened):
    page = opened("hundred")
    part = page.locator("section:has(h2:text-is('Who helped whom'))")
    table = part.locator("table").first
    assert not table.is_visible()
    part.get_by_text("All 100 clients").first.click()
    assert table.is_visible()
    assert table.locator("tbody tr").count() == 100


def test_several_strategies_have_their_curves_in_their_own_colours(opened):
    page = opened("ten")
    part = page.locator("section:has(h2:text-is('Accuracy by round'))")
    assert part.locator("ul.legend li").all_inner_texts()[:5] == ["KnFu", "Local", "FedMD", "FedAvg", "KnFu (auto)"]
    colours = part.locator("ul.legend .swatch").evaluate_all(
        "all => all.map(one => getComputedStyle(one).borderTopColor)"
    )
    assert len(set(colours)) == 5
    drawn = (
        part.locator("svg").first.locator("path").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)")
    )
    assert set(colours) <= set(drawn)


def test_a_narrow_screen_names_each_cell_and_a_screen_reader_finds_the_tables(opened):
    page = opened("ten", 390)
    script = "one => getComputedStyle(one, '::before').content"
    part = page.locator("section:has(h2:text-is('Strategies'))")
    assert part.locator("td").nth(1).evaluate(script) == '"Own mix"'
    names = page.locator("section:has(h2:text-is('Who helped whom')) td[data-label='Learns from']").first
    assert names.locator("bdi").count() == 3
    assert names.evaluate("one => one.childElementCount") == 1, "names stay together"
    assert part.get_by_role("table").count() == 1
    assert part.get_by_role("row").count() == 6
    assert part.get_by_role("rowheader", name="FedMD").count() == 1


@pytest.mark.parametrize("name", ["three", "ten"])
def test_tables_fit_a_wide_screen(opened, name):
    page = opened(name)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    boxes = page.locator(".wide")
    assert boxes.count() > 3
    for index in range(boxes.count()):
        cut = boxes.nth(index).evaluate("box => box.scrollWidth - box.clientWidth")
        assert cut <= 0, boxes.nth(index).get_attribute("aria-label")


def test_all_of_it_prints(opened):
    page = opened("ten")
    page.emulate_media(media="print")
    assert page.pdf(format="A4").startswith(b"%PDF")
