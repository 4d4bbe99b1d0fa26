"""The code stays readable: linted, typed, and in pieces that fit on a screen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def run(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", "--no-cache", ".")
    run("ruff", "format", "--no-cache", "--check", ".")


def test_types_are_complete(tmp_path):
    run("mypy", "--cache-dir", str(tmp_path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "crossdistill")))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_the_loop_is_one_readable_file():
    assert (ROOT / "src/crossdistill/engine/loop.py").read_text(encoding="utf-8").count("\n") <= 250


def test_recipes_are_short():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert path.read_text(encoding="utf-8").count("\n") <= 25, path
