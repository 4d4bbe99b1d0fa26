import numpy as np
import pytest
import torch

from crossdistill.data import EvalLoader, open_source, prepare_image
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_file_is_prepared_as_for_evaluation(tmp_path, write_tree, spec, mode):
    for split in ("train", "val"):
        write_tree(tmp_path / split, {"a": 1, "b": 1}, size=(80, 100), mode=mode)
    evaluation = open_source(DataSettings(source=f"folder:{tmp_path}")).evaluation
    batch = next(iter(EvalLoader(evaluation, {"student": spec(32)}, batch_size=2)))
    for index in range(2):
        found = prepare_image(tmp_path / "val" / "ab"[index] / "000.png", spec(32))
        assert found.shape == (3, 32, 32)
        assert torch.equal(found, batch.images["student"][index])


def test_bad_files(tmp_path, make_picture, spec):
    with pytest.raises(InputError, match=r"gone\.png: No such file"):
        prepare_image(tmp_path / "gone.png", spec())
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InputError, match=r"text\.png: not an image"):
        prepare_image(tmp_path / "text.png", spec())
    with pytest.raises(InputError, match=r"image .*: "):
        prepare_image(tmp_path, spec())
    make_picture(0).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match=r"colour\.png has three channels"):
        prepare_image(tmp_path / "colour.png", spec(num_channels=1))


def test_grey_for_a_model_of_one_channel(tmp_path, make_picture, spec):
    make_picture(0, (16, 16), "L").save(tmp_path / "grey.png")
    found = prepare_image(tmp_path / "grey.png", spec(16, 1, mean=0.0, std=1.0))
    np.testing.assert_allclose(found[0].numpy() * 255, np.asarray(make_picture(0, (16, 16), "L")), atol=1e-4)
