"""What is drawn is what was measured."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from crossdistill.report.figures import Dots, Series, css_colour, dot_plot, is_dashed, line_chart


def chart(*series, percent=False):
    return line_chart(series, axis="epoch", percent=percent, size=(4, 3), identifier="x", label="a label")


def paths(svg, colour):
    return re.findall(rf'<path d="([^"]+)"[^>]*style="[^"]*stroke: {re.escape(colour)}', svg)


def test_the_mean_is_taken_where_all_seeds_have_a_point():
    series = Series("kd", 0, (((1, 0.2), (2, 0.4), (3, 0.9)), ((1, 0.4), (2, 0.6))))
    assert series.mean == ((1, pytest.approx(0.3)), (2, pytest.approx(0.5)))
    assert Series("kd", 0, ()).mean == ()


@pytest.mark.parametrize(("num_seeds", "num_lines"), [(1, 1), (3, 4)])
def test_every_seed_is_a_line_and_several_have_a_mean(num_seeds, num_lines):
    curve = ((1.0, 0.2), (2.0, 0.5), (3.0, 0.6))
    svg = chart(Series("kd", 1, (curve,) * num_seeds))
    lines = [path for path in paths(svg, css_colour(1)) if path.count("L") == 2]
    assert len(lines) == num_lines


def test_a_rising_curve_rises():
    (line,) = [p for p in paths(chart(Series("kd", 0, (((0, 1.0), (1, 3.0)),))), css_colour(0)) if p.count("L") == 1]
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", line)]
    assert numbers[2] > numbers[0]
    assert numbers[3] < numbers[1]  # SVG counts downwards


def test_series_beyond_the_palette_are_dashed():
    curve = ((1.0, 0.2), (2.0, 0.5))
    assert css_colour(0) == css_colour(6) != css_colour(1)
    assert (is_dashed(5), is_dashed(6)) == (False, True)
    assert "stroke-dasharray" in chart(Series("many", 6, (curve,)))
    assert "stroke-dasharray" not in chart(Series("few", 5, (curve,)))


def test_curves_without_a_common_point_are_still_drawn():
    svg = chart(Series("kd", 2, (((1, 0.2), (2, 0.4)), ((3, 0.5), (4, 0.7)))))
    assert len([path for path in paths(svg, css_colour(2)) if path.count("L") == 1]) == 2


def test_names_are_text_not_formulas_or_markup():
    svg = dot_plot([Dots("$x^2$ <b>", 0, (0.5, 0.6), 0.55)], identifier="x", label='a "label" <b>')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "label" <b>'
    assert "$x^2$ <b>" in {element.text for element in root.iter("text")}
    assert "55.0 %" in {element.text for element in root.iter("text")}


def test_the_teacher_has_a_colour_of_its_own():
    assert css_colour(-1) == "var(--teacher)"
    assert css_colour(-1) in dot_plot([Dots("Teacher", -1, (0.5,), 0.5)], identifier="x", label="a label")
