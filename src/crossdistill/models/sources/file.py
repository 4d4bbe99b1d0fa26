"""``file:net.py:build``: a network that a function in a Python file makes. The file is run, so it must be allowed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from crossdistill.errors import InputError, nearest
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.sources.source import Head, Origin, Request, remember
from crossdistill.models.staged import StagedModel

NAME = re.compile(r"(?P<path>.+\.py):(?P<function>\w+)")
DEFAULT_CHANNELS = 3
OWN_MODULE = "crossdistill_file_"


class File:
    """Functions that are called with ``num_classes=`` and return a module."""

    prefix = "file:"
    always_trained = False

    def check(self, name: str) -> None:
        """Raises: InputError: not ``PATH.py:FUNCTION``, or no such file. Nothing is run yet."""
        _split(name)

    def published(self, name: str) -> Head | None:
        """Raises: InputError: a file publishes no weights."""
        raise InputError(
            f"file:{name} with published weights",
            "a file of weights, since a Python file publishes none",
            f"give file:{name}@PATH or --init PATH, or load the weights in that function",
        )

    def classifiers(self, name: str) -> tuple[str, ...]:
        """Not known before the file is run."""
        return ()

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """As it is."""
        return checkpoint

    def create(self, request: Request) -> nn.Module:
        """What the function returns.

        Raises:
            InputError: code is not allowed, no such function, arguments that it does not take, an error inside it, or
                anything but a module.
        """
        path, function_name = _split(request.name)
        if not request.allow_code:
            raise InputError(
                f"file:{request.name}, a Python file that would be run",
                "leave to run it",
                "if you trust the file, add --allow-code (from Python: allow_code=True, in settings: allow_code: true)",
            )
        with _telling(path), _importing_beside(path):
            function = _function(_execute(path), function_name, path)
            net = function(**_arguments(function, request))
        net = net.net if isinstance(net, StagedModel) else net
        if not isinstance(net, nn.Module):
            raise InputError(
                f"file:{request.name}, which returned {type(net).__name__}", "a torch.nn.Module", "return the network"
            )
        own = getattr(net, "pretrained_cfg", None)
        preprocessing = dict(own) if isinstance(own, dict) else {}
        preprocessing.pop("architecture", None)  # it is this file's now, whatever it was made from
        return remember(net, Origin(f"{self.prefix}{request.name}", request.saved_args), preprocessing, request)


def _split(name: str) -> tuple[Path, str]:
    parts = NAME.fullmatch(name)
    if parts is None:
        raise InputError(
            f"model 'file:{name}'", "file:PATH.py:FUNCTION, such as file:net.py:build", "name the file and a function"
        )
    path = Path(parts["path"]).expanduser()
    if not path.is_file():
        raise InputError(
            f"model 'file:{name}', where {path} does not exist", "a Python file", "check the path; it is seen from here"
        )
    return path, parts["function"]


def _execute(path: Path) -> ModuleType:
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"{OWN_MODULE}{path.stem}_{place}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"file {path}", "a Python file", "check the path")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.pop(spec.name, None)
    sys.modules[spec.name] = module  # stays there: classes look up their own module, for instance to be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException:
        _put_back(spec.name, before)
        raise
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        function: Callable[..., Any] = found
        return function
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise InputError(f"function {name!r} of {path}", "a function in that file", nearest(name, own))


def _arguments(function: Callable[..., Any], request: Request) -> dict[str, Any]:
    """Always the number of classes; size and channels where the function takes them; then what the user gives."""
    parameters = inspect.signature(function).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    given = {"num_classes": request.num_classes, **request.saved_args}
    unknown = [key for key in given if key not in parameters]
    if unknown and not takes_all:
        raise InputError(
            f"file:{request.name} with {unknown[0]}=, where the function is "
            f"{request.name.rpartition(':')[2]}{inspect.signature(function)}",
            "arguments that it takes",
            f"let it take num_classes=, or drop {unknown[0]}; {nearest(unknown[0], parameters)}",
        )
    if request.size is not None and "image_size" in parameters:
        height, width = request.size
        given.setdefault("image_size", height if height == width else request.size)
    channels = parameters.get("in_chans")
    if channels is not None and channels.default is inspect.Parameter.empty:
        given.setdefault("in_chans", DEFAULT_CHANNELS)
    return given


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Lets the file import its neighbours, as a script does, and forgets them: other files' may have the same names."""
    folder = path.resolve().parent
    hidden = {name: sys.modules.pop(name) for name in _hiding_neighbours(folder)}
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # the neighbours may have been written just now
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if module is not before.get(name) and _lies_in(folder, module) and not name.startswith(OWN_MODULE):
                _put_back(name, before.get(name))
        sys.modules.update(hidden)


def _hiding_neighbours(folder: Path) -> list[str]:
    """Modules that are there already and go by a neighbour's name; installed packages keep theirs."""
    neighbours = {file.stem for file in folder.glob("*.py")}
    neighbours |= {file.parent.name for file in folder.glob("*/__init__.py")}
    kept = {"__main__", __name__.partition(".")[0], *sys.stdlib_module_names}
    taken = neighbours.intersection(sys.modules) - kept
    if taken:
        taken -= importlib.metadata.packages_distributions().keys()
    return [name for name in sys.modules if name.partition(".")[0] in taken]


def _lies_in(folder: Path, module: ModuleType) -> bool:
    spec = getattr(module, "__spec__", None)
    places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ())]
    return any(folder in Path(place).resolve().parents for place in places if place)


def _put_back(name: str, module: ModuleType | None) -> None:
    sys.modules.pop(name, None)
    if module is not None:
        sys.modules[name] = module


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turns an error inside the file into one that names its line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's own code, and may be a script that ends with sys.exit
        raise InputError(
            f"{path}, which fails{_line(error, path)}: {type(error).__name__}: {error}",
            "a function that builds the network",
            "mend the file",
        ) from error


def _line(error: BaseException, path: Path) -> str:
    """The innermost line of that file which the error went through."""
    file = path.resolve()  # a traceback has absolute paths, whatever was given
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == file:
        return f" in line {error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == file]
    return f" in line {own[-1].lineno} ({own[-1].line})" if own else ""
