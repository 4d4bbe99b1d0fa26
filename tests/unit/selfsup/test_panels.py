"""Panels of a pretraining run: curves of each level, the pictures of words, and nothing for other runs."""

import base64
import json
import re

import pytest

import crossdistill.selfsup  # noqa: F401  (registers the panels)
from crossdistill.report import read_run, write_report
from crossdistill.selfsup.panels import CHARTS, vocabulary, words
from samples.html_page import Page
from samples.pretrained_folder import pretraining_results, write_pretraining
from samples.run_folder import write_run


def captions(panel):
    return Page(str(panel.html)).text_of("figcaption")


def labels(panel):
    return re.findall(r'<svg[^>]*aria-label="([^"]*)"', panel.html)


def test_each_level_has_its_charts_and_each_chart_its_meaning(tmp_path):
    panel = vocabulary(read_run(write_pretraining(tmp_path)))
    assert panel.title == "Is there something to predict?"
    assert captions(panel) == [
        *("perplexity, level 3", "perplexity, level 4", "words used, level 3", "words used, level 4"),
        *("mean distance, level 3", "mean distance, level 4", "embedding spread"),
    ]
    assert Page(str(panel.html)).text_of("dt") == [chart.title for chart in CHARTS]
    assert Page(str(panel.html)).text_of("dd") == [chart.healthy for chart in CHARTS]
    perplexity, *_, spread = labels(panel)
    assert "words in the bags of a batch together from 91 to 95" in perplexity
    assert "words in the bag of one image from 13 to 13" in perplexity
    assert "Pretrained from 80." in spread
    assert Page(str(panel.html)).text_of("li") == [*CHARTS[0].figures.values()], "two curves want a legend"


def test_levels_come_in_the_order_of_their_numbers(tmp_path):
    write_pretraining(tmp_path)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace("_level3", "_level12").replace("words_used_level4", "words_used"))
    shown = captions(vocabulary(read_run(tmp_path)))
    assert shown[:4] == ["perplexity, level 4", "perplexity, level 12", "words used", "words used, level 12"]


def test_figures_of_another_method_are_left_to_it(tmp_path):
    write_pretraining(tmp_path)
    log = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [line | {"figures": {"queue_age": 3.0}} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert vocabulary(read_run(tmp_path)) is None


def test_a_single_point_is_no_curve(tmp_path):
    write_pretraining(tmp_path)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0])
    assert vocabulary(read_run(tmp_path)) is None


def test_pictures_are_part_of_the_page_and_are_told_in_words(tmp_path):
    panel = words(read_run(write_pretraining(tmp_path)))
    assert captions(panel) == [f"Level {level}, 1\u202f437 images looked at" for level in (3, 4)]
    images = [attributes for tag, attributes in Page(str(panel.html)).elements if tag == "img"]
    assert images[0]["alt"] == ("Patches nearest to the most used words of level 3: word 17 (1.23 %), word 4 (1.00 %).")
    for level, image in zip((3, 4), images, strict=True):
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / f"words-level{level}.png").read_bytes()


def test_of_several_seeds_the_first_is_shown(tmp_path):
    panel = words(read_run(write_pretraining(tmp_path, seeds=(3, 5))))
    assert len(captions(panel)) == 2
    assert "these are of seed-3." in panel.html
    curves = vocabulary(read_run(tmp_path))
    assert "strong: mean over seeds" in curves.html


def test_a_picture_that_is_gone_is_passed_over(tmp_path):
    write_pretraining(tmp_path)
    (tmp_path / "words-level3.png").unlink()
    assert len(captions(words(read_run(tmp_path)))) == 1
    (tmp_path / "words-level4.png").unlink()
    assert words(read_run(tmp_path)) is None


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_images_without_labels_show_words_as_well(tmp_path, seeds):
    run = read_run(write_pretraining(tmp_path, pretraining_results(labelled=False), seeds=seeds))
    assert len(captions(vocabulary(run))) == 7
    assert len(captions(words(run))) == 2


def test_other_runs_have_neither(tmp_path):
    run = read_run(write_run(tmp_path))
    assert vocabulary(run) is None
    assert words(run) is None


def test_the_page_shows_them_after_the_losses_and_loads_nothing(tmp_path):
    page = Page(write_report(write_pretraining(tmp_path)).read_text(encoding="utf-8"))
    titles = page.text_of("h2")
    start = titles.index("Losses while training")
    assert titles[start : start + 4] == [
        *("Losses while training", "Is there something to predict?"),
        *("What the words look like", "Training speed"),
    ]
    assert all(value.startswith("data:image/png;base64,") for value in page.attributes("src"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
