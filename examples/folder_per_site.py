"""One folder a site: three sites that know two of three classes each learn from one another without sharing an image.

    python examples/folder_per_site.py

Every site has a folder of its own, with class folders in it, and all have the same folder of images without labels.
With images of your own the same is one command:

    crossdistill federate --data folder:SITES --partition folder --transfer folder:SHARED --out runs/sites
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from crossdistill.federated import federate

SITES = {"north": (0, 1), "south": (1, 2), "west": (0, 2)}


def write_digits(root: Path) -> None:
    """Digits 0, 1 and 2 as image files: a fifth of them shared and without labels, the rest dealt to the sites."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 3)
    order = np.random.default_rng(0).permutation(chosen)
    shared, own = np.split(order, [len(order) // 5])
    for index in shared:
        save(digits.images[index], root / "shared" / f"{index}.png")
    for place, index in enumerate(own):
        target = int(digits.target[index])
        knowing = [site for site, classes in SITES.items() if target in classes]
        save(digits.images[index], root / "sites" / knowing[place % 2] / f"digit {target}" / f"{index}.png")


def save(image: np.ndarray, path: Path) -> None:
    """Write an image of brightness 0 to 16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 15.9).astype(np.uint8)).save(path)


def main(out: Path) -> None:
    """Write the folders, run the federation, and say how each site fared."""
    write_digits(out)
    results = federate(
        f"folder:{out / 'sites'}",
        out / "run",
        clients=len(SITES),
        strategies=("knfu", "local"),
        rounds=4,
        workers=0,
        overrides=["partition.kind=folder", f"transfer.source=folder:{out / 'shared'}"],
    )
    for record in results["federation"]:
        last = record["rounds"][-1]["clients"]
        for client in record["clients"]:
            own, all_ = (last[str(client["id"])][name] for name in ("own_accuracy", "balanced_accuracy"))
            print(f"{record['strategy']:>6} {client['name']:>6}: own classes {own:.1%}, all three classes {all_:.1%}")
    print(f"report: {out / 'run' / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
