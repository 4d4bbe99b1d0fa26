"""Run by a test under a launcher of two processes: one pretraining, each rank's final state written to a folder."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from crossdistill.engine import process
from samples.pretraining import settings_of, state_of, train

OVERRIDES = (
    "views.crop_size=32",
    "views.patch_size=16",
    "method.num_words=45",
    "train.lr=0.05",
)


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    sent: list[str] = []
    original = torch.nn.parallel.DistributedDataParallel.__init__

    def watched(self, *arguments, **options):
        original(self, *arguments, **options)
        vocabulary = {id(buffer) for name, buffer in self.module.named_buffers() if "vocabulary" in name}
        sent.extend("vocabulary" for buffer in self.modules_buffers if id(buffer) in vocabulary)

    torch.nn.parallel.DistributedDataParallel.__init__ = watched
    parts, _ = train(settings_of(data, *OVERRIDES, model="timm/test_vit", image_size=48), examine=False)
    rank = process()[0]
    save_file({name: value.contiguous() for name, value in state_of(parts).items()}, out / f"{rank}.safetensors")
    if rank == 0:
        (out / "sent.txt").write_text(" ".join(sent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
