"""The page is whole, honest, deterministic, accessible, and loads nothing."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from markupsafe import Markup

import crossdistill.report
from crossdistill.errors import InputError
from crossdistill.report import Panel, panel, write_report
from crossdistill.report.panel import PANELS
from samples.html_page import Page
from samples.run_folder import sample_results, write_run

HOSTILE = "<script>alert(1)</script>\"'&"
CSS = (Path(crossdistill.report.__file__).parent / "page.css").read_text(encoding="utf-8")


def written(folder, results=None):
    return write_report(write_run(folder, results)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a full run."""
    return written(tmp_path_factory.mktemp("whole"))


def titles(page):
    return page.text_of("h2")


def with_rows(*roles, **changes):
    results = sample_results(**changes)
    return results | {"rows": [row for row in results["rows"] if row["role"] in roles]}


def test_the_page_has_every_panel(whole):
    page = Page(whole)
    assert titles(page) == [
        *("Did distillation help?", "Read this first", "Comparison", "Accuracy"),
        *("Losses while training", "Training speed", "Settings", "Environment"),
    ]
    assert page.text_of("h1") == ["timm/test_vit3 taught by timm/resnet18"]
    assert any("labels_per_class: 5" in text for text in page.text_of("code"))
    assert "Some Processor 9000" in page.text_of("dd")


def test_the_same_run_gives_the_same_bytes(whole, tmp_path):
    assert written(tmp_path) == whole


def test_nothing_is_loaded_and_nothing_runs(whole):
    page = Page(whole)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for name in ("src", "href", "xlink:href", "srcset", "action"):
        assert all(value.startswith("#") for value in page.attributes(name))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    style = " ".join([*page.text_of("style"), *page.attributes("style")])
    assert "@import" not in style
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", style))
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_resolve(whole):
    page = Page(whole)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    references = [*re.findall(r"url\(#([^)]*)\)", whole), *(value[1:] for value in page.attributes("href"))]
    assert references
    assert {*references, *page.attributes("aria-labelledby")} <= set(ids)


def test_figures_are_well_formed_speak_and_take_the_page_s_colours(whole):
    drawings = re.findall(r"<svg.*?</svg>", whole, flags=re.DOTALL)
    assert len(drawings) == 2 + 8
    for drawing in drawings:
        svg = ElementTree.fromstring(drawing)
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label")) > 40
        assert "#0000" not in drawing
        assert "var(--" in drawing
    assert "Student alone from" in drawings[1]


def test_text_from_the_run_is_escaped_everywhere(tmp_path):
    results = sample_results(
        headline=HOSTILE, warnings=[HOSTILE], command=HOSTILE, environment={HOSTILE: HOSTILE}, kind=HOSTILE
    )
    results["data"]["source"] = HOSTILE
    for row in results["rows"]:
        row["name"] = HOSTILE
        row["method"] = row["method"] and row["method"] + HOSTILE.replace("/", "")
    write_run(tmp_path, results)
    (tmp_path / "config.yaml").write_text(f"classes: [{HOSTILE}]")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.elements}
    assert HOSTILE in page.text_of("li")
    assert HOSTILE in page.text_of("td")
    assert f"classes: [{HOSTILE}]" in page.text_of("code")


@pytest.mark.parametrize(
    ("accuracies", "outcome", "sentence"),
    [
        ((0.95, 0.97, 0.96), "helped", "Distillation (kd) helped: +5.0 points"),
        ((0.85, 0.87, 0.86), "hurt", "Distillation (kd) hurt: −5.0 points"),
        ((0.91, 0.90, 0.93), "unclear", "no difference measured; +0.3 points"),
        ((0.99,), "unclear", "one seed: no spread is known"),
    ],
)
def test_the_headline_is_what_was_measured(tmp_path, accuracies, outcome, sentence):
    alone, distilled, *_ = sample_results()["rows"]
    for row, values in ((alone, (0.90, 0.91, 0.92)), (distilled, accuracies)):
        row["runs"] = [{"seed": seed, "top1": value, "folder": None} for seed, value in enumerate(values)]
    page = Page(written(tmp_path, sample_results(rows=[alone, distilled])))
    assert [a["class"] for _, a in page.elements if "card" in a.get("class", "").split()] == [f"card {outcome}"]
    assert any(sentence in text for text in page.text_of("p"))


def test_without_a_baseline_nothing_is_claimed(tmp_path):
    text = written(tmp_path, with_rows("distilled", "teacher"))
    assert "whether distillation helped is not known" in text
    assert "helped:" not in text


def test_a_headline_of_the_run_is_shown_once(whole, tmp_path):
    verdicts = [text for text in Page(whole).text_of("p") if text.startswith("Distillation (")]
    assert len(verdicts) == 2
    same = Page(written(tmp_path / "b", sample_results(headline=" ".join(verdicts))))
    assert [text for text in same.text_of("p") if text.startswith("Distillation (")] == verdicts
    other = Page(written(tmp_path / "c", sample_results(headline="Measured on few images.")))
    assert "Measured on few images." in other.text_of("p")


def test_plain_training_without_logs_is_a_short_page(tmp_path):
    results = with_rows("teacher", kind="train", warnings=[], environment={}, command="", settings={})
    results["rows"][0]["runs"][0]["folder"] = None
    write_run(tmp_path, results)
    (tmp_path / "config.yaml").unlink()
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert titles(page) == ["Result", "Comparison"]
    assert "timm/resnet18 reached 99.4 % top-1 accuracy (one seed: no spread is known)." in page.text_of("p")


@pytest.fixture
def extra_panels():
    before = list(PANELS)
    yield
    PANELS[:] = before


@pytest.mark.usefixtures("extra_panels")
def test_any_room_can_add_a_panel(tmp_path):
    panel(position=35)(lambda run: Panel("Agreement", Markup("<p><b>{}</b></p>").format(run.results.kind)))
    panel(position=36)(lambda run: Panel("Careless", "<b>not markup</b>"))
    panel(position=37)(lambda run: None)
    page = Page(written(tmp_path))
    assert titles(page)[2:6] == ["Comparison", "Agreement", "Careless", "Accuracy"]
    assert page.text_of("b") == ["quickstart"]


def test_a_folder_that_cannot_take_the_page_is_bad_input(tmp_path):
    write_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_report(tmp_path)
    with pytest.raises(InputError, match=r"results\.json"):
        write_report(tmp_path / "nowhere")


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(mode):
    block = CSS.split(":root {")[1 + mode].split("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for paper in ("paper", "surface"):
        for name in ("ink", "muted", "good", "bad"):
            assert contrast(colours[name], colours[paper]) >= 4.5, name
        for name in ("teacher", *(f"series-{index}" for index in range(6))):
            assert contrast(colours[name], colours[paper]) >= 3, name
    assert contrast(colours["caution"], colours["caution-paper"]) >= 4.5
    assert contrast(colours["ink"], colours["caution-paper"]) >= 4.5


def test_a_network_that_the_method_made_is_drawn_dashed_beside_its_student(tmp_path):
    write_run(tmp_path)
    for log in tmp_path.glob("ofa-*/metrics.jsonl"):
        log.write_text(log.read_text().replace('"top1": ', '"fused_top1": 0.25, "top1": '))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    swatch, name = r'<li><span class="swatch dashed" style="([^"]*)"></span>', "fused network, 25.0 % at the end"
    (entry,) = re.findall(rf"{swatch}[^<]*: {name}</li>", html)
    colours = re.findall(r'<span class="swatch" style="([^"]*)"></span>[^<]*', html)
    assert entry in colours
    assert "fused network, 25.0 % at the end from 25.0 % to 25.0 %" in html
    assert re.search(r'var\(--teacher\)"></span>Teacher', html), "its accuracy is there to be reached"
    Page(html)
