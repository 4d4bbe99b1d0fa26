"""Imports point one way, and the heavy libraries stay out of the way until they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "crossdistill"

LEVELS = [
    {"errors", "differences"},
    {"files"},
    {"settings", "registry", "contracts"},
    {"losses"},
    {"models", "data", "store"},
    {"bridges", "teachers"},
    {"methods", "engine", "analysis"},
    {"report", "export"},
    {"runs"},
    {"selfsup", "federated", "clinical"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
METHOD_MAY_IMPORT = {"errors", "contracts", "registry", "losses", "bridges"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms a file imports anywhere in it, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow between rooms"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("crossdistill.")}
    return rooms


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in LEVEL, f"{room} is not on the map of rooms"
    for other in imported_rooms(path) - {room}:
        if other not in LEVEL:  # `from crossdistill import __version__`
            assert not (PACKAGE / other).exists()
            continue
        assert LEVEL[other] < LEVEL[room], f"{path.relative_to(PACKAGE)}: {room} imports {other}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_knows_only_contracts_losses_and_bridges(path):
    assert imported_rooms(path) <= METHOD_MAY_IMPORT


def test_the_engine_names_no_method():
    names = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__", "none"}
    for path in (PACKAGE / "engine").rglob("*.py"):
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & words, f"{path.name} names {names & words}"


@pytest.mark.parametrize(
    "statement", ["import crossdistill", "import crossdistill.cli", "import crossdistill.settings"]
)
def test_torch_is_not_imported_early(statement):
    code = f"{statement}; import sys; print(sorted({{'torch', 'timm', 'sklearn', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_load():
    import crossdistill

    assert len(crossdistill.__all__) == 10
    for name in crossdistill.__all__:
        assert getattr(crossdistill, name) is not None
    with pytest.raises(AttributeError, match="distil_"):
        crossdistill.distil_  # noqa: B018
