"""The generated parts of the methods' pages: every recorded row is on its page, with the gain that its seeds give."""

import statistics
from pathlib import Path

import pytest

from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.report.method_costs import cost_table, method_costs
from crossdistill.report.method_pages import INDEX, main, pilot_table, rows_table, update_pages
from crossdistill.report.results_csv import append_row, read_rows

ROOT = Path(__file__).resolve().parents[3]
NONE = {
    "recipe": "pilot/vit-cnn", "teacher": None, "student": "resnet10t", "method": "none", "data": "cifar100",
    "image_size": 32, "epochs_or_steps": "300 steps of 64", "seeds": 3, "top1_mean": 0.30, "top1_sd": 0.01,
    "top1_by_seed": "0:0.29 1:0.30 2:0.31", "device": "CPU", "torch": "2.11.0",
}  # fmt: skip
KD = NONE | {"method": "kd", "teacher": "transformer", "top1_mean": 0.33, "top1_by_seed": "0:0.31 1:0.33 2:0.35"}
COSTS = """method,teacher,student,ratio,ratio_low,ratio_high,memory_ratio,parameters,student_parameters,device
kd,swin,resnet,1.0,0.98,1.02,1.0,0,11000000,CPU
fbt,swin,resnet,1.25,1.2,1.3,1.4,1880000,11000000,CPU
"""


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for row in (NONE, KD, KD | {"method": "kd (temperature=2)"}, KD | {"method": "kdx"}):
        append_row(folder / "pilot" / "methods.csv", row)
    append_row(folder / "other.csv", KD | {"recipe": "elsewhere", "top1_by_seed": ""})
    (folder / "speed").mkdir()
    (folder / "speed" / "methods.csv").write_text(COSTS)
    return folder


@pytest.fixture
def pages(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "kd.md").write_text(
        "# kd\n<!-- cost:begin kd -->\n<!-- cost:end -->\n<!-- rows:begin kd -->\n<!-- rows:end -->\n"
    )
    (folder / INDEX).write_text("before\n<!-- pilot:begin -->\nold<!-- pilot:end -->\nafter\n")
    return folder


def test_a_page_has_the_rows_and_costs_of_its_method_and_no_others(results, pages):
    assert not update_pages(pages, results)
    text = (pages / "kd.md").read_text().replace("\xa0", " ")
    assert "| swin | resnet | 1.00 (0.98 to 1.02) | 1.00 | 0 (0.00 of the student's) | CPU |" in text
    assert text.count("pilot/vit-cnn") == 2
    assert "kd (temperature=2)" in text
    assert "elsewhere" in text
    assert "kdx" not in text
    assert "fbt" not in text


def test_the_gain_is_the_paired_difference_with_its_interval(results):
    rows = read_rows(results / "pilot" / "methods.csv")
    differences = [0.02, 0.03, 0.04]
    reach = 4.302652729911275 * statistics.stdev(differences) / 3**0.5
    low, high = (100 * (0.03 + sign * reach) for sign in (-1, 1))
    assert f"+3.0 (+{low:.1f} to +{high:.1f})" in rows_table("kd", rows).replace("\xa0", " ")


def test_a_row_with_nothing_to_compare_it_with_has_no_gain(results):
    (row,) = read_rows(results / "other.csv")
    assert rows_table("kd", [row]).splitlines()[-1].endswith("| – |")


def test_a_changed_option_is_compared_with_the_defaults_as_well(results):
    rows = read_rows(results / "pilot" / "methods.csv")
    changed = KD | {"method": "kd (temperature=2)", "top1_mean": 0.34, "top1_by_seed": "0:0.32 1:0.34 2:0.36"}
    lines = rows_table("kd", [*rows[:2], {key: str(value) for key, value in changed.items()}]).splitlines()
    assert lines[0].endswith("| Difference to the defaults (points) |")
    assert lines[-2].endswith("| – |")
    assert lines[-1].replace("\xa0", " ").endswith("| +1.0 |"), "all seeds differ alike, so there is no interval"
    assert "Difference" not in rows_table("kd", rows[:2])


def test_a_method_without_rows_says_so(results):
    assert rows_table("ofa", read_rows(results / "pilot" / "methods.csv")) == "None yet.\n"


def test_the_pilot_has_a_row_a_method_and_a_column_a_pair(results):
    append_row(
        results / "pilot" / "methods.csv", KD | {"recipe": "pilot/cnn-mlp", "student": "resmlp", "teacher": "CNN"}
    )
    lines = pilot_table(results).strip().splitlines()
    assert lines[0] == "| Method | transformer to resnet10t | CNN to resmlp |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none", "kd", "kd (temperature=2)", "kdx"]
    assert lines[2].endswith("| – |")


def test_a_check_writes_nothing_and_fails_where_a_page_is_old(results, pages):
    before = (pages / "kd.md").read_text()
    assert main([str(pages), str(results), "--check"]) == 1
    assert (pages / "kd.md").read_text() == before
    assert main([str(pages), str(results)]) == 0
    assert main([str(pages), str(results), "--check"]) == 0


def test_a_page_without_its_markers_is_named(results, pages, capsys):
    (pages / "kd.md").write_text("# kd\n")
    with pytest.raises(SystemExit, match="2"):
        main([str(pages), str(results)])
    assert "kd.md" in capsys.readouterr().err


def test_damaged_costs_are_refused(results):
    path = results / "speed" / "methods.csv"
    path.write_text(COSTS.replace("1.25", "fast"))
    with pytest.raises(InputError, match="measure again"):
        cost_table("fbt", path)


def test_a_cost_is_read_as_it_was_measured(results):
    fbt = next(one for one in method_costs(results / "speed" / "methods.csv") if one.method == "fbt")
    assert (fbt.time, fbt.time_interval, fbt.memory, fbt.parameters) == (1.25, (1.2, 1.3), 1.4, 1_880_000)


def test_every_method_has_a_page_and_the_pages_are_up_to_date():
    pages = ROOT / "docs" / "methods"
    assert {path.stem for path in pages.glob("*.md")} >= {record.name for record in METHODS} | {Path(INDEX).stem}
    assert update_pages(pages, ROOT / "results", check=True)


def test_every_method_was_measured():
    assert {one.method for one in method_costs()} >= {record.name for record in METHODS}
