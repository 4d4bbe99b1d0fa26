"""What ``flwr run`` takes: a folder that names the two apps of this package and holds the settings of a run.

The folder has no code of its own: both apps are imported from the installed package, which must be the same on the
SuperLink and at every site. What travels to the sites is hence a page of text that they can read.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

import crossdistill
from crossdistill.errors import InputError
from crossdistill.files import write_text, writing

SERVER_APP = "crossdistill.federated.server_app:app"
CLIENT_APP = "crossdistill.federated.client_app:app"

_PROJECT = "pyproject.toml"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
"""What Flower takes as the name of an app, of its folder and, here, of a connection."""

_NAME_EXPECTED = "letters, digits and hyphens, a letter first, 32 characters at most"


def write_app(folder: Path, settings_json: str, *, out: Path, resume: bool = False) -> Path:
    """Write a Flower app into ``folder``, which is new or held one before; its own name becomes the app's.

    Args:
        folder: for ``flwr run FOLDER CONNECTION``.
        settings_json: what the run shall do, as one JSON object.
        out: where the server writes the run, an absolute path on the machine of the SuperLink.
        resume: go on with the run in ``out``; ``flwr run --run-config resume=true`` says the same later.

    Raises:
        InputError: a name that Flower refuses, settings that are no JSON object, or an ``out`` that is not absolute.
    """
    name = folder.absolute().name
    if not _NAME.fullmatch(name):
        raise InputError(f"app folder {name!r}", _NAME_EXPECTED, "give the folder another name")
    if not out.is_absolute():
        raise InputError(f"out={out}", "an absolute path on the machine of the SuperLink", "write it from the root on")
    settings = _laid_out(settings_json)
    path = folder / _PROJECT
    if folder.exists() and not _holds_app(folder):
        raise InputError(f"{folder}, which holds other things", "a new folder, or that of an app", "give another one")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # As the last value and without escapes: the table of the run's values ends the text.
        write_text(path, f"{tomli_w.dumps(_project(name, out, resume))}settings = '''\n{settings}\n'''\n")
    return path


def write_connection(home: Path, name: str, *, address: str, authority: Path) -> Path:
    """Add a connection to ``config.toml`` below Flower's ``home``, for ``flwr run FOLDER NAME``.

    Args:
        home: the folder that ``FLWR_HOME`` names, ``~/.flwr`` by default.
        name: of the connection.
        address: ``HOST:PORT`` of the SuperLink.
        authority: the certificate that vouches for it, ``ca.crt``.

    Raises:
        InputError: the connection is there with other values, or an address, a name or a file that is none.
    """
    if not _NAME.fullmatch(name) or name == "default":
        raise InputError(f"connection {name!r}", _NAME_EXPECTED, "give it another name")
    if "//" in address or not re.fullmatch(r"\S+:\d{1,5}", address):
        raise InputError(f"address {address!r}", "HOST:PORT such as fed.example.org:8000", "leave out the scheme")
    if not authority.is_file():
        raise InputError(f"{authority}, which is no file", "the authority's certificate", "give the path of ca.crt")
    wanted = {"address": address, "root-certificates": str(authority.absolute())}
    path = home / "config.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    known = _connections(path, text)
    if name in known and known[name] != wanted:
        raise InputError(
            f"connection {name}, which {path} has with {json.dumps(known[name])}",
            "a new name, or the same values",
            "give another name, or edit that file",
        )
    if name not in known:
        table = tomli_w.dumps({"superlink": {name: wanted}})
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            # At the end of what is there, so that comments stay.
            write_text(path, f"{text.rstrip()}\n\n{table}" if text.strip() else table)
    return path


def _project(name: str, out: Path, resume: bool) -> dict[str, Any]:
    return {
        "project": {
            "name": name,
            "version": crossdistill.__version__,
            "description": "A federation of crossdistill; both apps come from the installed package.",
            "license": "Apache-2.0",
            # Nothing to install: a SuperLink that installs what an app needs would fetch it from the network.
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "crossdistill",
                    "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
                    "config": {"out": str(out), "resume": resume},
                }
            }
        },
    }


def _laid_out(settings_json: str) -> str:
    """The settings with a line for each, so that a site can read what it is asked to do."""
    try:
        settings = json.loads(settings_json)
    except ValueError as error:
        raise InputError(f"settings that are no JSON: {error}", "one JSON object", "mend them") from None
    if not isinstance(settings, dict):
        raise InputError(f"settings of type {type(settings).__name__}", "one JSON object", "give a tree of settings")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    # JSON that can stand between three apostrophes, where TOML knows no escapes.
    return text.replace("'", r"\u0027").replace("\x7f", r"\u007f")


def _holds_app(folder: Path) -> bool:
    """Whether nothing would be lost or shipped by accident: an app of ours and no more, or nothing at all."""
    try:
        names = {path.name for path in folder.iterdir()}
        if names != {_PROJECT}:
            return not names
        project = tomllib.loads((folder / _PROJECT).read_text(encoding="utf-8"))
        return bool(project["tool"]["flwr"]["app"]["components"]["serverapp"] == SERVER_APP)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _connections(path: Path, text: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text).get("superlink", {})
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}", "TOML, as Flower writes it", "mend or remove it") from None
    return table if isinstance(table, dict) else {}
