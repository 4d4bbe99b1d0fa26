"""The folder that `flwr run` takes: Flower itself validates, builds and reads it."""

import io
import json
import os
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
pytest.importorskip("flwr")

from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import validate_project_name
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_fab
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from crossdistill.errors import InputError
from crossdistill.federated.app_folder import CLIENT_APP, SERVER_APP, write_app, write_connection

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # what Flower calls

SETTINGS = {
    "clients": 3,
    "strategy": "knfu",
    "patience": 1e-7,
    "classes": ["it's", "''' and \"\"\"", "back\\slash \\u0027", "line\nbreak\r\ttab", "\x7f\x00\x1b", "Füße 腳 🦶"],
    "train": {"lr": 0.001, "select": None, "ema": False},
}


def app(tmp_path, **changes):
    given = {"settings_json": json.dumps(SETTINGS), "out": tmp_path / "runs" / "one", **changes}
    folder = given.pop("folder", tmp_path / "knee-study")
    return folder, write_app(folder, given.pop("settings_json"), **given)


def test_flower_validates_the_folder_and_finds_both_apps(tmp_path):
    folder, path = app(tmp_path)
    config, warnings = load_and_validate(path)  # also looks for the components
    assert warnings == []
    assert config["project"]["name"] == folder.name == "knee-study"
    assert config["project"]["dependencies"] == []  # nothing is fetched when a run begins


def test_the_components_are_the_apps_of_this_package(tmp_path):
    folder, path = app(tmp_path)
    components = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}
    for name, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        assert isinstance(load_app(components[name], ValueError, folder), kind)


def built(folder, **overrides):
    """The run config that a node gets, after Flower has packed and unpacked the folder."""
    return get_fused_config_from_fab(build_fab_from_disk(folder), SimpleNamespace(override_config=overrides))


def test_what_flower_builds_carries_the_settings_unchanged(tmp_path):
    folder, _ = app(tmp_path)
    config = built(folder)
    assert json.loads(config["settings"]) == SETTINGS
    assert config == {"settings": config["settings"], "out": str(tmp_path / "runs" / "one"), "resume": False}


def test_a_run_is_resumed_by_the_folder_or_by_the_command(tmp_path):
    folder, _ = app(tmp_path)
    assert built(folder, resume=True)["resume"] is True
    folder, _ = app(tmp_path, resume=True)  # the same folder, written again
    assert built(folder)["resume"] is True


def test_only_text_travels(tmp_path):
    folder, _ = app(tmp_path)
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "pyproject.toml"]


def test_a_site_can_read_the_settings(tmp_path):
    _, path = app(tmp_path)
    assert '  "strategy": "knfu",\n' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["under_score", "1st", "a b", "x" * 33, "dot.ted", "füße"])
def test_names_that_flower_refuses(tmp_path, name):
    with pytest.raises(InputError, match="letters, digits and hyphens"):
        app(tmp_path, folder=tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a", "Knee-2-b", "x" * 32])
def test_names_that_flower_takes(tmp_path, name):
    folder, _ = app(tmp_path, folder=tmp_path / name)
    validate_project_name(folder.name, "The Flower App directory name")
    assert build_fab_from_disk(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"words"', "null"])
def test_settings_that_are_no_object(tmp_path, text):
    with pytest.raises(InputError, match="one JSON object"):
        app(tmp_path, settings_json=text)
    assert not (tmp_path / "knee-study").exists()


def test_where_the_run_is_written_is_an_absolute_path(tmp_path):
    with pytest.raises(InputError, match="absolute path on the machine of the SuperLink"):
        app(tmp_path, out=Path("runs/one"))


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": ""},
        {"pyproject.toml": "[project]\n"},
        {"pyproject.toml": "["},
        {"pyproject.toml": None, "x.py": ""},
    ],
)
def test_a_folder_with_other_things_is_left_alone(tmp_path, files):
    folder = tmp_path / "knee-study"
    if None in files.values():
        app(tmp_path)
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="holds other things"):
        app(tmp_path, out=tmp_path / "other")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def authority(tmp_path):
    path = tmp_path / "ca.crt"
    path.write_text("")
    return path


def read(home, name, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(home))
    return read_superlink_connection(name)


def test_flower_reads_the_connection(tmp_path, authority, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_connection(
        tmp_path / "home", "fed", address="fed.example.org:8000", authority=authority.relative_to(tmp_path)
    )
    found = read(tmp_path / "home", "fed", monkeypatch)
    assert (found.address, found.root_certificates) == ("fed.example.org:8000", str(authority))
    assert not found.insecure


def test_other_connections_and_comments_stay(tmp_path, authority, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    mine = '# mine\n[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:1"  # here'
    (home / "config.toml").write_text(mine)
    write_connection(home, "fed", address="[fd00::7]:8000", authority=authority)
    text = (home / "config.toml").read_text()
    assert text.startswith(mine)
    assert read(home, "fed", monkeypatch).address == "[fd00::7]:8000"
    assert read(home, None, monkeypatch).address == "127.0.0.1:1"
    write_connection(home, "fed", address="[fd00::7]:8000", authority=authority)
    assert (home / "config.toml").read_text() == text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": "other.example.org:8000"}, "connection fed, which"),
        ({"address": "https://fed.example.org:8000"}, "HOST:PORT"),
        ({"address": "fed.example.org"}, "HOST:PORT"),
        ({"name": "default"}, "connection 'default'"),
        ({"name": "a.b"}, "letters, digits and hyphens"),
        ({"authority": "missing.crt"}, "which is no file"),
    ],
)
def test_connections_that_are_refused(tmp_path, authority, changes, words):
    given = {"name": "fed", "address": "fed.example.org:8000", "authority": authority}
    write_connection(tmp_path, given.pop("name"), **given)
    before = (tmp_path / "config.toml").read_bytes()
    given = {"name": "fed", **given, **changes}
    given["authority"] = tmp_path / given["authority"]
    with pytest.raises(InputError, match=words):
        write_connection(tmp_path, given.pop("name"), **given)
    assert (tmp_path / "config.toml").read_bytes() == before


def test_a_config_that_is_no_toml(tmp_path, authority):
    (tmp_path / "config.toml").write_text("[")
    with pytest.raises(InputError, match="as Flower writes it"):
        write_connection(tmp_path, "fed", address="fed.example.org:8000", authority=authority)
    assert (tmp_path / "config.toml").read_text() == "["
