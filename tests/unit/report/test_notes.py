"""Below the table stands what the teacher was and which images were seen, where that is not as usual."""

import pytest

from crossdistill.report import write_report
from crossdistill.report.notes import notes
from crossdistill.report.results import as_results
from samples.html_page import Page
from samples.run_folder import sample_results, write_run

STORE = {
    **{"path": "stores/t", "num_classes": 10, "top_k": 3, "embeddings": True},
    **{"precision": "fp32", "seed": 0, "num_epochs": 3},
}
KEPT = "(the 3 largest of 10 logits and the mass of the others, with embeddings; fp32; images of seed 0; 3 epochs)"


def said(**changes):
    return notes(as_results(sample_results(**changes)))


def with_settings(data, **train):
    return said(settings={"data": data, "train": train})


def test_a_live_teacher_and_seeds_of_their_own_need_no_words():
    assert said() == []
    assert with_settings({"seed": None, "cycle_epochs": None}, epochs=3) == []


def test_stored_answers_are_described():
    (note,) = said(store=STORE)
    start, end = "answers stored in stores/t", "Its accuracy and latency were measured when the store was made."
    assert note == f"Teacher: {start} {KEPT}. {end}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": None, "embeddings": False}, "(all 10 logits; fp32;"),
        ({"top_k": 1}, "(the largest of 10 logits and the mass of the others, with embeddings; fp32;"),
        ({"precision": "bf16", "seed": 4, "num_epochs": 1}, "bf16; images of seed 4; 1 epoch)"),
    ],
)
def test_what_is_kept_is_said_as_it_is(changes, words):
    assert words in said(store=STORE | changes)[0]


def test_seeds_that_share_their_images_are_said_to():
    assert with_settings({"seed": 0}) == [
        "All seeds saw the same images in the same order: the spread is that of first weights only."
    ]
    one = sample_results(settings={"data": {"seed": 0}})
    one["rows"] = [row | {"runs": row["runs"][:1]} for row in one["rows"]]
    assert notes(as_results(one)) == []


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"epochs": 6}, "Images of 4 epochs, shown again and again for 6."),
        ({}, "Images of 4 epochs, shown again and again for 100."),
        ({"steps": 90}, "Images of 4 epochs, shown again and again for 90 steps."),
    ],
)
def test_epochs_that_come_again_are_said_to(train, words):
    assert with_settings({"cycle_epochs": 4}, **train) == [words]


def test_epochs_that_do_not_come_again_need_no_words():
    assert with_settings({"cycle_epochs": 4}, epochs=4) == []


def test_the_sentences_stand_on_the_page(tmp_path):
    text = write_report(write_run(tmp_path, sample_results(store=STORE))).read_text()
    assert any(KEPT in paragraph for paragraph in Page(text).text_of("p"))
