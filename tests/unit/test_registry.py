"""The registry: built-in modules, plugins, and names that do not exist."""

import sys

import pytest

from crossdistill.errors import InputError, nearest
from crossdistill.registry import METHODS, Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules that register themselves in a registry of their own."""
    home = tmp_path / "toy_methods"
    home.mkdir()
    (home / "__init__.py").write_text(
        "from crossdistill.registry import Registry\n"
        "R = Registry('toy', package='toy_methods', group='no.such.group')\n"
    )
    for name in ("alpha", "beta"):
        (home / f"{name}.py").write_text(f"from toy_methods import R\n@R.register('{name}', paper='p')\nclass C: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield home
    for name in [name for name in sys.modules if name.startswith("toy_methods")]:
        del sys.modules[name]


def test_modules_register_themselves(package):
    from toy_methods import R

    assert [record.name for record in R] == ["alpha", "beta"]
    assert R.get("alpha").facts == {"paper": "p"}


def test_deleting_a_module_removes_its_name_only(package):
    (package / "alpha.py").unlink()
    from toy_methods import R

    assert [record.name for record in R] == ["beta"]


def test_unknown_and_doubled_names(package):
    from toy_methods import R

    with pytest.raises(InputError, match="did you mean 'alpha'"):
        R.get("alhpa")

    class Other: ...

    with pytest.raises(InputError, match="another name"):
        R.register("beta")(Other)


def test_a_plugin_that_fails_names_itself(tmp_path, monkeypatch):
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[toy.group]\nbad = no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry = Registry("method", package="crossdistill.methods", group="toy.group")
    with pytest.raises(InputError, match=r"(?s)no_such_module_at_all.*uninstall"):
        str(registry.get("kd"))


def test_every_method_states_its_facts():
    for record in METHODS:
        assert {"title", "paper", "summary"} <= set(record.facts), record.name


def test_nearest_lists_a_few_when_nothing_is_near():
    assert nearest("zzzz", [f"model{i:02}" for i in range(40)]).endswith("(40 in all)")
