"""The page of a step's parts: with a GPU and without, whole, escaped, and in the words of the figures."""

import copy

import pytest

from crossdistill.report.breakdown_page import breakdown_page, comparison, facts, parts_table, sentences
from crossdistill.report.table import grouped
from crossdistill.settings import Settings
from samples.html_page import Page

HOSTILE = "<script>alert(1)</script>\"'&"


def part(name, share, busy, idle, host):
    return {
        **{"name": name, "ms": busy + idle, "share": share, "step_ms": 40 * share},
        **{"busy_ms": busy, "idle_ms": idle, "host_ms": host},
    }


def spread(value):
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value}


FIGURES = {
    **{"teacher": "swin_tiny", "student": "resnet18", "method": "ofa", "data": "folder:photos", "device": "cuda"},
    **{"batch_size": 1024, "image_size": [224, 160], "teacher_is_stored": False, "warmup": 5, "steps": 20},
    **{"step_ms": spread(40.0), "images_per_second": 25_600.0, "data_wait_share": 0.013},
    "peak_memory_bytes": 3 * 2**30,
    "profiled": {"steps": 5, "ms": 50.0, "on_device": True},
    "parts": [
        part("data", 0.05, 0.5, 2.0, 4.0),
        part("student", 0.25, 12.0, 0.5, 9.0),
        part("backward", 0.7, 34.0, 1.0, 20.0),
        part("other", 0.0, 0.0, 0.0, 17.0),
    ],
    "in_turn": {
        "online": {"ms": spread(39.0), "ratio": spread(1.95)},
        "plain": {"ms": spread(20.0), "ratio": {"median": 1, "low": 1, "high": 1}},
        "at_hand": {"ms": spread(21.0), "ratio": spread(1.05)},
    },
    "settings": Settings.model_validate(
        {"student": {"name": "resnet18"}, "data": {"source": "folder:photos", "augment_on": "device"}}
    ).model_dump(mode="json"),
    "environment": {"cpu": "Some Processor", "num_threads": 1, "gpus": ["Some GPU"], "commit": "abc", "dirty": True},
    "command": "crossdistill bench speed",
}


def changed(**changes):
    return copy.deepcopy(FIGURES) | changes


def on_cpu():
    return changed(device="cpu", profiled={"steps": 1, "ms": 41.0, "on_device": False})


def test_of_a_gpu_work_and_idleness_add_up_to_the_step():
    columns, rows = parts_table(FIGURES)
    assert columns == ["part", "ms", "share", "GPU busy, ms", "GPU idle, ms", "host, ms"]
    assert [row[0] for row in rows] == ["data", "student forward", "backward", "other"]
    for row in rows:
        _, ms, _, busy, idle, _ = row
        assert float(busy) + float(idle) == pytest.approx(float(ms), abs=0.06)
    assert sum(float(row[1]) for row in rows) == pytest.approx(40, abs=0.1)
    assert sum(float(row[5]) for row in rows) == pytest.approx(40, abs=0.1)


def test_without_one_there_is_only_the_time_of_the_process():
    columns, rows = parts_table(on_cpu())
    assert columns == ["part", "ms", "share"]
    assert rows[1] == ["student forward", "10.0", "25.0%"]
    assert facts(on_cpu())["device"] == "Some Processor, 1 thread"
    assert "GPU" not in sentences(on_cpu())[0]


def test_the_sentences_give_the_figures():
    measured, compared = sentences(FIGURES)
    together = f"All 20 together: {grouped(25_600)} images/s"
    for words in ("40.0 ms", "median; quartiles 36.0 to 44.0", together, "1.3%", "3072 MiB GPU memory"):
        assert words in measured
    assert "1.95 times" in compared
    assert "1.05 times" in compared
    alone = changed(in_turn={name: FIGURES["in_turn"][name] for name in ("online", "plain")})
    assert "store" not in sentences(alone)[1]
    assert [row[0] for row in comparison(alone)[1]] == ["this step", "plain training of the student"]


def in_turn(**ways):
    return changed(in_turn=FIGURES["in_turn"] | ways)


def test_a_ratio_whose_quartiles_contain_1_is_said_to_be_no_clear_difference():
    assert "1.05 times (quartiles 0.95 to 1.16: no clear difference)" in sentences(FIGURES)[1]
    assert "1.95 times as long" in sentences(FIGURES)[1]


def test_this_step_measured_twice_with_other_results_asks_to_measure_again():
    assert len(sentences(FIGURES)) == 2
    for ms in (39.0 / 1.7, 39.0 * 1.7):
        online = {"ms": spread(ms), "ratio": spread(1.95)}
        assert sentences(in_turn(online=online))[2].endswith("busier in one part than in the other; measure again.")
        assert "measure again" in breakdown_page(in_turn(online=online))


def test_waiting_for_data_is_no_reason_to_measure_again():
    waiting = in_turn(online={"ms": spread(16.0), "ratio": spread(1.95)}) | {"data_wait_share": 0.6}
    assert len(sentences(waiting)) == 2
    assert len(sentences(waiting | {"data_wait_share": 0.0})) == 3


def test_the_page_is_whole_and_loads_nothing():
    page = Page(breakdown_page(FIGURES))
    assert page.text_of("h2") == ["Where the time goes", "Beside plain training", "Settings", "Environment"]
    assert "crossdistill bench speed" in page.text_of("code")
    assert {f"{grouped(1024)} of 224 x 160 px", "Some GPU", "fp32"} <= set(page.text_of("dd"))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    (label,) = [one for one in page.attributes("aria-label") if one.startswith("Shares")]
    assert label == "Shares of a step: data 5.0%; student forward 25.0%; backward 70.0%; other 0.0%."


def test_names_are_text_and_not_code():
    page = breakdown_page(changed(student=HOSTILE, teacher=HOSTILE, data=HOSTILE, command=HOSTILE))
    assert "<script" not in page
    Page(page)
