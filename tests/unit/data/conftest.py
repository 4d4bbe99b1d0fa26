"""Real image files for the tests of this room."""

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crossdistill.contracts import InputSpec


def picture(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    """A picture whose pixels tell it from every other seed's."""
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (*size, *channels), dtype=np.uint8)
    return Image.fromarray(values, mode=None if mode not in ("CMYK",) else mode)


@pytest.fixture
def make_picture():
    return picture


@pytest.fixture
def write_tree():
    """Write class folders of PNG files: ``write(root, {"cat": 3, "dog": 2})``."""

    def write(root: Path, counts: dict[str, int], *, size=(12, 12), mode="RGB", first_seed=0) -> Path:
        seed = first_seed
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for index in range(count):
                picture(seed, size, mode).save(root / name / f"{index:03d}.png")
                seed += 1
        return root

    return write


@pytest.fixture
def write_parquet():
    """Write rows of PNG images and labels to a parquet file."""

    def write(path: Path, labels, *, struct=True, images=None, **columns) -> Path:
        encoded = images if images is not None else [png(seed) for seed in range(len(labels))]
        if struct:
            encoded = [{"bytes": content, "path": None} for content in encoded]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": pa.array(encoded, kind), "label": pa.array(labels), **columns}), path)
        return path

    return write


@pytest.fixture
def write_idx():
    """Write IDX files in MNIST's layout: ``write(root, train=(images, labels), packed=True)``."""

    def write(root: Path, *, packed=False, **splits) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        for split, (images, labels) in (splits or {"train": arrays(8), "t10k": arrays(4)}).items():
            for what, array in (("images", np.asarray(images, "u1")), ("labels", np.asarray(labels, "u1"))):
                name, content = f"{split}-{what}-idx{array.ndim}-ubyte", idx_bytes(array)
                path = root / (f"{name}.gz" if packed else name)
                path.write_bytes(gzip.compress(content) if packed else content)
        return root

    return write


@pytest.fixture
def write_npz():
    """Write arrays in MedMNIST's layout, with changes: ``write(path, val_labels=...)``; ``None`` leaves one out."""

    def write(path: Path, **changes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {}
        for split, count in (("train", 8), ("val", 4), ("test", 6)):
            whole[f"{split}_images"], labels = arrays(count, seed=count)
            whole[f"{split}_labels"] = labels[:, None]
        np.savez(path, **{key: value for key, value in (whole | changes).items() if value is not None})
        return path

    return write


def arrays(count: int, *, seed: int = 0, shape: tuple[int, ...] = (6, 5)) -> tuple[np.ndarray, np.ndarray]:
    """Random images of that shape, and the labels 0, 1, 0, 1, …"""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 2


@pytest.fixture
def make_arrays():
    return arrays


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as the content of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def png(seed: int, **options) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture(seed, **options).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def spec():
    """What a small model wants, with changes: ``spec(size=8, num_channels=1)``."""

    def make(size=16, num_channels=3, mean=0.5, std=0.25, **changes) -> InputSpec:
        height_width = size if isinstance(size, tuple) else (size, size)
        return InputSpec(height_width, num_channels, (mean,) * num_channels, (std,) * num_channels, **changes)

    return make
