"""``folder:PATH``: class folders of image files, split into ``train/ val/ [test/]`` or in one flat tree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.contracts import UNLABELLED
from crossdistill.data.source import Splits, check_several_classes
from crossdistill.data.sources.classes import NO_FACTS, Facts
from crossdistill.data.sources.decode import EncodedSource, image_suffixes
from crossdistill.data.sources.split_names import Chosen, choose_splits, is_split_word, split_words
from crossdistill.data.sources.subset import Subset
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

_LAYOUT = "train/ and val/ (or test/) with one folder a class, or one folder a class directly"

_OF_CLASSES = {
    "train_split": "drop it, and name the folder of the split: folder:PATH/train",
    "evaluation_split": "drop it: nothing can be reported on images without classes",
    "first_per_class": "drop it: there are no classes to take them from",
    "labels_per_class": "drop it: there are no labels to keep",
    "sampling": "drop it: there are no classes to balance",
}
"""Settings that images without classes have no use for, and what to do instead."""


class FolderSource(EncodedSource):
    """Image files with their classes, in the order of class folder, then path."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        targets: NDArray[np.int64],
        class_names: tuple[str, ...],
        *,
        mirror_safe: bool = True,
    ) -> None:
        self.name, self.paths, self.targets, self.class_names = name, paths, targets, class_names
        self.mirror_safe = mirror_safe

    def file(self, index: int) -> Path:
        """The image's path."""
        return self.paths[index]

    def describe(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    @property
    def files(self) -> Sequence[Path]:
        """The paths of all images."""
        return self.paths

    def __len__(self) -> int:
        return len(self.paths)


def open_folder(path: str | Path, settings: DataSettings, facts: Facts = NO_FACTS) -> Splits:
    """Find the images below a folder; test/ is the evaluation split if there is one, else val/, else a fixed 20 %.

    Beside test/, val/ is the validation split. Other splits, such as extra/, are read if a setting names them. With
    ``data.unlabelled`` all images below the folder are trained on, none is reported on, and there are no classes.

    Raises:
        InputError: no such folder or split, no class folder, a class without images, splits with different classes, two
            folders for one split; without classes, no image, or a setting that needs classes.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise InputError(f"folder {root}, which {problem}", f"a folder with {_LAYOUT}", "check the path")
    if settings.unlabelled:
        return _unlabelled(root, settings, facts)
    folders = _split_folders(root, settings)
    if not folders:
        return Chosen("train").open(lambda split: _tree(root, facts))
    chosen = choose_splits(folders, settings, f"folder {root}", reported=facts.reported)
    trees = {chosen.train: _tree(folders[chosen.train], facts)}

    def open_split(split: str) -> FolderSource:
        if split not in trees:
            trees[split] = _tree(folders[split], facts)
            _check_same_classes(trees[chosen.train], trees[split])
        return trees[split]

    return chosen.open(open_split)


def _unlabelled(root: Path, settings: DataSettings, facts: Facts) -> Splits:
    for key, advice in _OF_CLASSES.items():
        given = getattr(settings, key)
        if given != DataSettings.model_fields[key].default:
            raise InputError(f"data.{key}={given!r} with data.unlabelled=true", "no such setting", advice)
    paths = sorted(_images(root))
    if not paths:
        raise InputError(f"folder {root}, which holds no image", "images to train on", "check the path, or add images")
    none = np.full(len(paths), UNLABELLED, dtype=np.int64)
    train = FolderSource(str(root), paths, none, (), mirror_safe=facts.mirror_safe)
    return Splits(train, Subset(train, none[:0], "none"), "none")


def _split_folders(root: Path, settings: DataSettings) -> dict[str, Path]:
    """Folders of splits by name, none if the folders are classes.

    They are splits if one of them is named so; but a single one among others that holds no folder is a class called
    train, test or val.
    """
    names = sorted(path.name for path in _folders(root))
    named = [name for name in names if is_split_word(name)]
    is_class = len(named) == 1 < len(names) and not any(_folders(root / named[0]))
    is_asked = settings.train_split is not None or settings.evaluation_split is not None
    if not is_asked and (not named or is_class):
        return {}
    return {split: root / word for split, word in split_words(names, f"folder {root}").items()}


def _tree(root: Path, facts: Facts) -> FolderSource:
    class_folders = sorted(_folders(root), key=lambda folder: folder.name)
    if not class_folders:
        files = list(_visible(root))
        held = f"{sum(map(_is_image, files))} images but no class folder" if files else "nothing"
        advice = "sort the images by class"
        if files:
            advice += ", or set data.unlabelled=true to pretrain without labels"
        raise InputError(f"folder {root}, which holds {held}", f"a folder with {_LAYOUT}", advice)
    paths: list[Path] = []
    targets: list[int] = []
    for target, folder in enumerate(class_folders):
        images = sorted(_images(folder))
        if not images:
            raise InputError(
                f"class folder {folder}, which holds no image",
                "at least one file that Pillow opens as an image, such as .jpg, .png or .tif",
                "add images, or remove the folder",
            )
        paths += images
        targets += [target] * len(images)
    names = tuple(folder.name for folder in class_folders)
    source = FolderSource(str(root), paths, np.array(targets, dtype=np.int64), names, mirror_safe=facts.mirror_safe)
    check_several_classes(names, source.targets, f"folder {root}")
    return source


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _visible(folder) if path.is_dir())


def _images(folder: Path) -> Iterator[Path]:
    """Images below a class folder; of links, none that leads up again or to a folder where it has been already."""
    # Above it by name and, where it is a link itself, by place: a link to any of these leads to other classes.
    seen = {_identity(above) for above in (*folder.absolute().parents, *folder.resolve().parents)}
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        if _identity(Path(directory)) in seen:
            subfolders.clear()
            continue
        seen.add(_identity(Path(directory)))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (path for name in files if _is_image(path := Path(directory, name)))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def has_class_folders(root: Path) -> bool:
    """Whether images lie where those of a class would, directly or below a split."""
    return any(_is_image(file) for pattern in ("*/*", "*/*/*") for file in root.glob(pattern))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


def _check_same_classes(train: FolderSource, evaluation: FolderSource) -> None:
    only = [
        sorted(set(one.class_names) - set(other.class_names))
        for one, other in ((train, evaluation), (evaluation, train))
    ]
    if not any(only):
        return
    differences = [
        f"{', '.join(map(repr, names))} only in {source.name}"
        for names, source in zip(only, (train, evaluation), strict=True)
        if names
    ]
    raise InputError(
        f"splits of different classes: {'; '.join(differences)}",
        "the same class folders in both splits",
        "rename, add or remove class folders",
    )
