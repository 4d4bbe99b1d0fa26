"""What kind of data set a file or folder holds."""

from __future__ import annotations

from pathlib import Path

from crossdistill.data.sources.cifar import find_cifar
from crossdistill.data.sources.folder import has_class_folders
from crossdistill.data.sources.hub import is_saved
from crossdistill.data.sources.idx import idx_images
from crossdistill.data.sources.parquet import parquet_files

LAYOUTS = "parquet, IDX, npz, save_to_disk, train/ and val/ folders, or CIFAR's binary version"
_KIND_OF_SUFFIX = {".parquet": "parquet", ".npz": "npz", ".tar": "wds"}
_IDX_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")  # the latter are torchvision's


def find_layout(root: Path) -> tuple[str, Path] | None:
    """The kind of source, one of :data:`~crossdistill.data.sources.kinds.KINDS`, and the path for it.

    ``None`` for a file or folder of no known kind.
    """
    if root.is_file():
        kind = _KIND_OF_SUFFIX.get(root.suffix)
        return None if kind is None else (kind, root)
    if not root.is_dir():
        return None
    if is_saved(root):
        return "hf", root
    if parquet_files(root):
        return "parquet", root
    idx = next((folder for below in _IDX_FOLDERS if idx_images(folder := root / below)), None)
    if idx is not None:
        return "idx", idx
    arrays = sorted(root.glob("*.npz"))
    if len(arrays) == 1:
        return "npz", arrays[0]
    cifar = find_cifar(root)
    if cifar is not None:
        return "cifar", cifar
    if any(root.glob("*.tar")):
        return "wds", root
    return ("folder", root) if has_class_folders(root) else None
