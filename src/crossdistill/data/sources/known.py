"""Known names: a local copy below ``CROSSDISTILL_DATA`` in whichever layout it has, else the set on the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from crossdistill.data.source import Splits
from crossdistill.data.sources.classes import Facts
from crossdistill.data.sources.hub import open_hub
from crossdistill.data.sources.kinds import open_kind
from crossdistill.data.sources.layout import LAYOUTS, find_layout
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings

VARIABLE = "CROSSDISTILL_DATA"
_PICKLED = ("cifar-10-batches-py", "cifar-100-python", "cifar-10-python.tar.gz", "cifar-100-python.tar.gz")


@dataclass(frozen=True, slots=True)
class Known:
    """A published set: its id on the hub, what is known of it, and the folder that torchvision or its authors use."""

    hub: str | None
    facts: Facts
    folder: str | None = None


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_WORDS = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple "
    "motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup_truck pine plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider "
    "squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
    "wardrobe whale willow wolf woman worm"
)
_IMAGENETTE = (
    *("tench", "English springer", "cassette player", "chain saw", "church"),
    *("French horn", "garbage truck", "gas pump", "golf ball", "parachute"),
)
_TEST_HAS_NO_LABELS = ("val", "test")

KNOWN = {
    "mnist": Known("ylecun/mnist", Facts(tuple("0123456789"), mirror_safe=False), "MNIST"),
    "fashion_mnist": Known("zalando-datasets/fashion_mnist", Facts(_FASHION), "FashionMNIST"),
    "cifar10": Known("uoft-cs/cifar10", Facts(_CIFAR10), "cifar-10-batches-bin"),
    "cifar100": Known("uoft-cs/cifar100", Facts(tuple(_CIFAR100_WORDS.split())), "cifar-100-binary"),
    "imagenet": Known("ILSVRC/imagenet-1k", Facts(reported=_TEST_HAS_NO_LABELS)),
    "imagenette": Known(None, Facts(_IMAGENETTE)),
    "tiny_imagenet": Known("zh-plus/tiny-imagenet", Facts(reported=_TEST_HAS_NO_LABELS)),
}


def open_known(name: str, settings: DataSettings) -> Splits:
    """Open a set of :data:`KNOWN`.

    Raises:
        InputError: neither a local copy nor the hub, or one that is not as its kind must be.
    """
    known, root = KNOWN[name], os.environ.get(VARIABLE)
    # The names are those of the usual labels; another column has other classes.
    facts = known.facts if settings.label_column is None else replace(known.facts, class_names=None)
    copy = None if not root else _find_copy(Path(root).expanduser(), name, known)
    if copy is not None:
        return _open_copy(copy, name, settings, facts)
    problem = "it is on no hub"
    if known.hub is not None:
        try:
            return open_hub(known.hub, settings, facts)
        except InputError as error:
            problem = error.given
    below = f"{VARIABLE} is not set" if not root else f"no folder {name} below {VARIABLE}={root}"
    raise InputError(
        f"data source {name!r}: {below}, and {problem}",
        f"a local copy ${VARIABLE}/{name} ({LAYOUTS}){'' if known.hub is None else f', or {known.hub} of the hub'}",
        f"put a copy there and set {VARIABLE}" if not root else f"put a copy into {Path(root) / name}",
    )


def _find_copy(root: Path, name: str, known: Known) -> Path | None:
    places = [*_folders(name, known), *(p for p in _PICKLED if _is_of(p, name))]
    return next((root / place for place in places if (root / place).exists()), None)


def _folders(name: str, known: Known) -> list[str]:
    return [name, name.replace("_", "-"), *filter(None, [known.folder])]


def known_by_folder(folder: Path) -> str | None:
    """The name that opens this folder, once CROSSDISTILL_DATA is the folder around it."""
    return next((name for name, known in KNOWN.items() if folder.name in _folders(name, known)), None)


def _is_of(pickled: str, name: str) -> bool:
    return pickled.replace("-", "", 1).startswith(f"{name}-")


def _open_copy(folder: Path, name: str, settings: DataSettings, facts: Facts) -> Splits:
    found = find_layout(folder)
    if found is None:
        raise _unknown_layout(folder, name)
    kind, path = found
    if kind == "wds":
        action = f"give the data source 'wds:{path}' instead"
        raise InputError(f"{path} for {name}, which holds shards", LAYOUTS, action)
    return open_kind(kind, str(path), settings, facts)


def _unknown_layout(folder: Path, name: str) -> InputError:
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    if any(found in _PICKLED for found in (folder.name, *held)):
        return InputError(
            f"{folder} for {name}, which is the pickled version of CIFAR; opening it would run what is in it",
            "the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz), unpacked, or parquet",
            "fetch that one, or move this one away to use the hub",
        )
    shown = f"{', '.join(held[:8])}{' …' if len(held) > 8 else ''}" if held else "nothing"
    return InputError(f"{folder} for {name}, which holds {shown}", LAYOUTS, "copy the set there in such a layout")
