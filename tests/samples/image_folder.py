"""Folders of tiny images, sorted by class, as ``folder:PATH`` reads them."""

from pathlib import Path

import numpy
from PIL import Image


def make(root: Path, class_names, *, num_images=4, mode="RGB", splits=("train", "val")) -> Path:
    """8 x 8 PNGs; each class is brighter than the one before it, so that there is something to learn."""
    generator = numpy.random.default_rng(0)
    shape = (8, 8, 3) if mode == "RGB" else (8, 8)
    for split in splits:
        for target, name in enumerate(class_names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(num_images):
                pixels = generator.integers(0, 60, shape) + 60 * target
                Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"{index}.png")
    return root
