"""CSV rows and the README's tables: nothing lost, nothing stale, bad files named."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.report.results_csv import (
    BEGIN,
    COLUMNS,
    END,
    append_row,
    main,
    markdown_table,
    read_rows,
    update_readme,
)

ROOT = Path(__file__).resolve().parents[3]
ROW = {
    "recipe": "cifar100/ofa", "teacher": "timm/resnet18", "student": "timm/test_vit3", "method": "ofa",
    "data": "cifar100", "image_size": 32, "epochs_or_steps": "400 steps", "seeds": "0 1 2",
    "top1_mean": 0.4321, "top1_sd": 0.0123, "top1_by_seed": "0:0.42 1:0.44", "teacher_top1": 0.61,
    "num_parameters": 213_450, "gmacs": 0.00721,
    "device": "CPU", "torch": "2.11.0", "commit": "0" * 40, "command": 'crossdistill distill --out "a, b"',
    "date": "2026-01-01",
}  # fmt: skip
PRINTABLE = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30)


def test_rows_are_kept_in_order(tmp_path):
    path = tmp_path / "new" / "cifar100.csv"
    append_row(path, ROW)
    append_row(path, ROW | {"method": "kd", "top1_sd": None})
    first, second = read_rows(path)
    assert first == {key: str(value) for key, value in ROW.items()}
    assert (second["method"], second["top1_sd"]) == ("kd", "")
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


@given(st.dictionaries(st.sampled_from(COLUMNS), PRINTABLE | st.just('a "b", c\nd')))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_text_survives(tmp_path, row):
    path = tmp_path / "any.csv"
    path.unlink(missing_ok=True)
    append_row(path, row)
    assert read_rows(path) == [dict.fromkeys(COLUMNS, "") | row]


def test_markdown_has_the_figures_in_percent(tmp_path):
    append_row(tmp_path / "r.csv", ROW)
    line = markdown_table(tmp_path / "r.csv").splitlines()[2].replace("\xa0", " ")
    assert line == (
        "| timm/resnet18 | timm/test_vit3 | ofa | 32 | 400 steps | 0 1 2 | 43.2 ± 1.2 % | 61.0 % | 213 k | 0.00721 |"
    )


def test_missing_figures_are_shown_as_missing(tmp_path):
    append_row(tmp_path / "r.csv", {"student": "net", "top1_mean": 0.5})
    assert markdown_table(tmp_path / "r.csv").splitlines()[2] == "| – | net | – | – | – | – | 50.0 % | – | – | – |"


def readme(folder, inner=""):
    path = folder / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}\n{inner}{END}\n\nThe end.\n")
    return path


def test_the_readme_is_rewritten_between_its_markers_only(tmp_path):
    append_row(tmp_path / "results" / "cifar100.csv", ROW)
    page = readme(tmp_path, "old\n")
    assert not update_readme(page, tmp_path / "results", check=True)
    assert "old" in page.read_text()
    assert not update_readme(page, tmp_path / "results")
    text = page.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    assert "old" not in text
    assert markdown_table(tmp_path / "results" / "cifar100.csv") in text
    assert update_readme(page, tmp_path / "results", check=True)
    assert update_readme(page, tmp_path / "results")
    append_row(tmp_path / "results" / "cifar100.csv", ROW)
    assert not update_readme(page, tmp_path / "results", check=True)


def test_as_a_command(tmp_path, capsys):
    append_row(tmp_path / "results" / "cifar100.csv", ROW)
    page = readme(tmp_path)
    arguments = [str(page), str(tmp_path / "results")]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    page.write_text("no markers")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "results:begin" in capsys.readouterr().err


def test_bad_files_and_columns_are_bad_input(tmp_path):
    with pytest.raises(InputError, match="did you mean 'top1_mean'"):
        append_row(tmp_path / "r.csv", {"top1_men": 0.5})
    (tmp_path / "r.csv").write_text("student,accuracy\nnet,0.5\n")
    with pytest.raises(InputError, match="columns student, accuracy"):
        append_row(tmp_path / "r.csv", ROW)
    (tmp_path / "r.csv").write_text(",".join(COLUMNS) + "\nnet,0.5\n")
    with pytest.raises(InputError, match=f"{len(COLUMNS)} cells"):
        read_rows(tmp_path / "r.csv")
    with pytest.raises(InputError, match="check the path"):
        read_rows(tmp_path / "nowhere.csv")
    append_row(tmp_path / "text.csv", ROW | {"top1_mean": "good"})
    with pytest.raises(InputError, match="good"):
        markdown_table(tmp_path / "text.csv")
    with pytest.raises(InputError, match="No such file"):
        update_readme(tmp_path / "nowhere.md", tmp_path / "empty")


def test_this_repository_s_readme_is_up_to_date():
    if not list((ROOT / "results").glob("*.csv")):
        pytest.skip("no results are recorded yet")
    assert update_readme(ROOT / "README.md", ROOT / "results", check=True), (
        "run `python -m crossdistill.report.results_csv README.md results`"
    )
