"""``crossdistill bench speed`` on real networks and data: the parts add up, the page is whole, bad input is refused."""

import contextlib
import gzip
import json
import resource
import shlex

import pytest
import torch

from crossdistill import cli, runs
from crossdistill.errors import InputError
from crossdistill.runs import bench
from samples.html_page import Page

PAIR = "--teacher timm/test_vit --student timm/test_resnet --image-size 32 teachers.0.image_size=32"
SETTING = f"{PAIR} --data digits --limit-train 80 --batch-size 16 --device cpu"
SPEED = f"bench speed {SETTING} --steps 3 --warmup 1"
PARTS = ["data", "teacher", "student", "bridges", "loss", "backward", "optimizer", "other"]


@pytest.fixture
def run(capsys):
    """Exit code and what is printed."""

    def run(line):
        capsys.readouterr()
        code = cli.run(shlex.split(line))
        return code, capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """OFA, with a trace: the folder, and what a terminal shows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("speed") / "trace"
    shown = contextlib.redirect_stdout(open(folder.parent / "shown.txt", "w"))  # noqa: SIM115
    with shown:
        assert cli.run(shlex.split(f"{SPEED} --method ofa --trace {folder}")) == 0
    return folder


def figures_of(folder):
    return json.loads((folder / "breakdown.json").read_text())


def check(figures):
    """What holds for every method."""
    parts = figures["parts"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert sum(part["step_ms"] for part in parts) == pytest.approx(figures["step_ms"]["median"])
    # Measured twice: by the ranges of the trace, and by the host's clock around the same steps.
    assert 0.9 < sum(part["ms"] for part in parts) / figures["profiled"]["ms"] < 1.001
    assert all(part["share"] >= 0 for part in parts)
    assert figures["step_ms"]["low"] <= figures["step_ms"]["median"] <= figures["step_ms"]["high"]
    assert (figures["steps"], figures["warmup"], figures["profiled"]["steps"]) == (3, 1, 3)
    assert figures["in_turn"]["plain"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    return {part["name"]: part["share"] for part in parts}


def test_every_part_of_a_step_with_bridges(traced):
    shares = check(figures_of(traced))
    assert list(shares) == PARTS
    assert all(shares.values())
    assert list(figures_of(traced)["in_turn"]) == ["online", "plain", "at_hand"]


def test_the_trace_opens_and_holds_the_phases(traced):
    large = traced / "trace.json.gz"
    content = gzip.decompress(large.read_bytes()) if large.exists() else (traced / "trace.json").read_bytes()
    names = [one["name"] for one in json.loads(content)["traceEvents"]]
    assert names.count("crossdistill/student") == names.count("crossdistill/backward") == 3
    assert {path.name for path in traced.iterdir()} >= {"breakdown.html", "breakdown.json"}


def test_the_page_says_what_the_figures_say(traced):
    text, figures = (traced / "breakdown.html").read_text(), figures_of(traced)
    page = Page(text)
    assert page.text_of("h1") == ["test_resnet taught by test_vit: where the time goes"]
    assert page.text_of("h2") == ["Where the time goes", "Beside plain training", "Settings", "Environment"]
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    cells = page.text_of("td")
    for part in figures["parts"]:
        assert f"{part['share']:.1%}" in cells
    bars = [style for style in page.attributes("style") if style.startswith("width")]
    widths = [float(style.split()[1].rstrip("%;")) for style in bars]
    assert sum(widths) == pytest.approx(100, abs=0.01)
    assert "--method ofa" in "".join(page.text_of("code")) or figures["command"] == "from Python"


def test_a_terminal_shows_the_same(traced):
    shown, figures = (traced.parent / "shown.txt").read_text(), figures_of(traced)
    for part in figures["parts"]:
        assert f"{part['share']:.1%}" in shown
    assert f"{figures['in_turn']['online']['ratio']['median']:.2f}" in shown
    assert "page: " in shown


def test_an_earlier_trace_is_replaced(traced, tmp_path, run):
    code, printed = run(f"{SPEED} --method kd --steps 1 --trace {traced} --json")
    assert code == 0
    assert printed.err == ""
    figures = json.loads(printed.out)
    assert figures == figures_of(traced)
    assert (figures["method"], figures["steps"]) == ("kd", 1)


@pytest.mark.parametrize(
    "method",
    [
        "fbt",
        "hybrid 'method.methods={ofa: {stages: [1]}, rkd: {}}'",
        "rkd --teacher timm/test_vit data.augment.mixup=0.5",
    ],
)
def test_methods_of_every_kind(method, run):
    code, printed = run(f"{SPEED} --method {method} --json")
    assert code == 0
    assert printed.err == ""
    figures = json.loads(printed.out)
    shares = check(figures)
    if not method.startswith("rkd"):  # it has no modules
        assert shares["bridges"] > 0
    assert ("at_hand" in figures["in_turn"]) == (method != "fbt")


def test_a_stored_teacher(run, tmp_path):
    """One epoch is stored, and more steps than it has are measured."""
    data = "--data digits --batch-size 16 --device cpu data.limit_train=80"
    stored = f"store --teacher timm/test_vit {data} --epochs 1 --out {tmp_path} teachers.0.image_size=32"
    assert run(f"{stored} allow_untrained_teacher=true")[0] == 0
    line = f"--teacher {tmp_path} --student timm/test_resnet --image-size 32 {data} --epochs 1 --steps 5 --warmup 2"
    code, printed = run(f"bench speed {line} --json")
    assert code == 0, printed.err
    figures = json.loads(printed.out)
    assert figures["teacher_is_stored"]
    assert list(figures["in_turn"]) == ["online", "plain"]


def test_a_dry_run_measures_nothing_and_writes_nothing(run, tmp_path):
    code, printed = run(f"{SPEED} --dry-run --trace {tmp_path / 'trace'} --json")
    assert code == 0
    assert json.loads(printed.out)["dry_run"]["kd"]["steps_per_epoch"] == 5
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"bench speed {SETTING} --steps 0", "--steps 0"),
        (f"bench speed {SETTING} --warmup -1", "--warmup -1"),
        (f"{SPEED} --method odf", "did you mean 'ofa'"),
        (f"{SPEED} --method none", "leave out the teacher"),
        (f"{SPEED} train.epochs=3 train.steps=3", "--epochs or --steps"),
        ("bench speed --student timm/test_resnet --data digits", "--teacher"),
        (f"{SPEED} --out run", "--out"),
        (f"{SPEED} --trace {{full}}", "which holds notes.txt"),
        (f"{SPEED} --trace {{full}}/notes.txt", "cannot write below"),
        (f"{SPEED} --trace {{full}}/notes.txt/trace", "cannot write below"),
    ],
)
def test_bad_input_is_refused_at_once(line, said, run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, printed = run(line.format(full=tmp_path))
    assert code == 2
    assert said in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_step_needs_a_teacher():
    plan = runs.make_plan({"student": {"name": "timm/test_resnet"}, "data": {"source": "digits"}})
    with pytest.raises(InputError, match="--teacher"):
        runs.bench_speed(plan.settings)


def test_a_full_disk_is_named(traced, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write below .*\n.*\n.*--trace"):
            bench._write(tmp_path, figures_of(traced), {"traceEvents": list(range(1000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
