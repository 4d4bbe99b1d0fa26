"""One comparison, three renderers: the cells agree, and no name can break out of its cell."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crossdistill.errors import InputError
from crossdistill.report.table import (
    comparison,
    grouped,
    html_table,
    magnitude,
    markdown_table,
    rich_table,
    significant,
)
from samples.html_page import Page
from samples.run_folder import sample_results

HOSTILE = "<script>alert(1)</script> | [bold]x[/bold] & \\| $y$"


def one(role, top1, *, method=None, seeds=(0,), **changes):
    runs = [{"seed": seed, "top1": top1 + 0.01 * seed, "folder": None} for seed in seeds]
    return {"role": role, "name": "net", "method": method, "runs": runs, "top1_mean": top1} | changes


def printed(results, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_table(results))
    return console.file.getvalue()


def test_cells_are_the_figures():
    rows = [
        one("student_alone", 0.8, seeds=(0, 1), top1_sd=0.0123, num_parameters=37_312, gmacs=0.00721, num_labels=50),
        one("distilled", 0.9, method="ofa", seeds=(0, 1), latency_ms=12.345),
        one("teacher", 0.9944, num_labels=50_000),
    ]
    grid = comparison(sample_results(rows=rows))
    plain = [tuple(cell.replace("\xa0", " ") for cell in cells) for cells in grid.rows]
    assert plain == [
        ("Student alone", "net", "80.0 ± 1.2 % (2 seeds)", "–", "50", "37.3 k", "0.00721", "–"),
        ("Distilled (ofa)", "net", "90.0 % (2 seeds)", "+10.0", "–", "–", "–", "12 ms"),
        ("Teacher", "net", "99.4 % (1 seed)", "–", "50\u202f000", "–", "–", "–"),
    ]
    assert grid.roles == ("student_alone", "distilled", "teacher")
    assert "360 images" in grid.caption


def test_the_gain_carries_its_interval():
    rows = [one("student_alone", 0.80, seeds=(0, 1, 2)), one("distilled", 0.90, method="kd", seeds=(0, 1, 2))]
    rows[1]["runs"][2]["top1"] += 0.03
    (_, distilled) = comparison(sample_results(rows=rows)).rows
    assert distilled[3].replace("\xa0", " ") == "+11.0 (+6.7 to +15.3)"


def test_without_a_student_alone_no_gain_is_shown():
    grid = comparison(sample_results(rows=[one("distilled", 0.9, method="kd")]))
    assert grid.rows[0][3] == "–"


def test_all_renderers_show_the_same_cells():
    results = sample_results()
    grid = comparison(results)
    page = Page(html_table(results))
    for column in grid.columns:
        assert column in page.text_of("th")
    for cells in grid.rows:
        assert cells[0] in page.text_of("th")
        for cell in cells[1:]:
            assert cell in page.text_of("td")
    lines = markdown_table(results).splitlines()
    assert len(lines) == 2 + len(grid.rows)
    assert [tuple(part.strip(" ") for part in line.strip("|").split("|")) for line in lines[2:]] == list(grid.rows)


def test_the_terminal_s_table_fits_80_characters_without_breaking_a_number():
    results = sample_results()
    text = printed(results, width=80)
    assert max(map(len, text.splitlines())) <= 80
    for cells in comparison(results).rows:
        assert cells[0] in text
        assert cells[1] in text
        assert all(part in text for cell in (cells[2], *cells[4:]) for part in cell.split(" "))
        assert cells[3].split(" ")[0] in text


def test_html_names_every_cell_for_narrow_screens_and_screen_readers():
    page = Page(html_table(sample_results()))
    cells = [attributes for tag, attributes in page.elements if tag == "td"]
    assert [cell["data-label"] for cell in cells[:7]] == list(comparison(sample_results()).columns[1:])
    assert {attributes["scope"] for tag, attributes in page.elements if tag == "th"} == {"col", "row"}
    assert page.text_of("caption")


def test_a_hostile_name_stays_text():
    results = sample_results(rows=[one("distilled", 0.5, method=HOSTILE) | {"name": HOSTILE}])
    page = Page(html_table(results))
    assert "script" not in {tag for tag, _ in page.elements}
    assert HOSTILE in page.text_of("td")
    assert HOSTILE in printed(results, width=400)
    line = markdown_table(results).splitlines()[2]
    assert "<script" not in line
    assert line.replace("\\\\", "").replace("\\|", "").count("|") == 1 + len(comparison(results).columns)


def test_bad_results_are_bad_input():
    with pytest.raises(InputError, match=r"results\.data"):
        comparison({"schema": 1, "kind": "train", "rows": []})


@given(st.floats(1e-9, 1e12))
def test_three_significant_digits(value):
    text = significant(value)
    assert float(text) == pytest.approx(value, rel=0.0051)
    assert "e" not in text


@given(st.integers(0, 10**12))
def test_magnitude_keeps_the_count(count):
    number, _, unit = magnitude(count).partition("\xa0")
    assert float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(count, rel=0.0051)
    assert int(grouped(count).replace("\u202f", "")) == count
