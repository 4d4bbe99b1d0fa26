"""What can be set where a teacher's answers are stored: the images of a run, and who is asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from crossdistill.settings import DataSettings, Strict, TeacherSettings, overridden, validate


class StoreTrainSettings(Strict):
    """What of the loop decides which images there are, and how the teacher answers."""

    batch_size: int = Field(128, ge=1, description="images that the teacher is asked at once; where images are mixed, "
                            "an odd one must be that of the runs")  # fmt: skip
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = Field(False, description="keep images and weights channel-last, which GPUs like")
    select: Literal["last", "best"] = Field(
        "last", description="best: leave out the images that runs hold out to choose their best epoch"
    )


class StoreSettings(Strict):
    """One store: teachers, the data, and the images of an epoch."""

    teachers: tuple[TeacherSettings, ...] = Field(min_length=1)
    data: DataSettings
    train: StoreTrainSettings = StoreTrainSettings()
    seed: int = Field(0, ge=0, lt=2**63, description="of the images, and of weights that nobody trained")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_untrained_teacher: bool = False
    allow_code: bool = False


def load_store_settings(tree: dict[str, Any], overrides: Iterable[str] = ()) -> StoreSettings:
    """Validate a tree after applying ``key=value`` overrides.

    Raises:
        InputError: an unknown key, a wrong type, a missing value.
    """
    return validate(StoreSettings, overridden(tree, overrides))
