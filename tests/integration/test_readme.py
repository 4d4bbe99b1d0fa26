"""What the README says is true: its example is a method, its commands exist, its tables are those of the results."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "logit_matching.py"


def test_the_method_shown_is_the_example():
    shown = README.partition("<!-- method:begin -->\n```python\n")[2].partition("```\n<!-- method:end -->")[0]
    assert shown == EXAMPLE.read_text(encoding="utf-8")


def test_the_example_works_as_a_plugin_of_another_package(tmp_path):
    (tmp_path / "my_methods.py").write_text(EXAMPLE.read_text(encoding="utf-8"))
    facts = tmp_path / "my_methods-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[crossdistill.methods]\nlogit_matching = my_methods\n")
    command = (
        "distill --teacher timm/test_vit --student timm/test_resnet --method logit_matching --data digits --dry-run "
        "--limit-train 40 --batch-size 8 --image-size 32 --json --out unused teachers.0.image_size=32 method.weight=0.2"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "crossdistill", *shlex.split(command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"logit_matching"' in done.stdout
    assert "1312.6184" in subprocess.run(
        [sys.executable, "-m", "crossdistill", "methods", "logit_matching"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def commands():
    """Every ``crossdistill …`` line of the README's shell blocks, with its continuation lines."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        "crossdistill " + line.rpartition("crossdistill ")[2]
        for line in lines
        if "crossdistill " in line and not line.startswith(("#", "python"))
    ]


@pytest.mark.parametrize("line", commands())
def test_every_option_shown_exists(line):
    _, name, *words = shlex.split(line)
    names = [name, words.pop(0)] if name in ("recipes", "bench", "federation") else [name]
    command = [sys.executable, "-m", "crossdistill", *names, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout, f"{name} has no {option}"


def test_every_room_is_on_the_map():
    package, shown = ROOT / "src" / "crossdistill", README.partition("## Map of rooms")[2]
    rooms = {path.stem for path in package.iterdir() if path.suffix in ("", ".py")}
    for room in rooms - {"__init__", "__main__", "__pycache__"}:
        assert f"`{room}`" in shown, room


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_between_pages_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
