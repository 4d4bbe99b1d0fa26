import io

import numpy as np
import pytest
from PIL import Image

from crossdistill.data.source import CorruptImage
from crossdistill.data.sources.decode import decode, shape_of


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "ppm", "jpg"])
def test_colour_files(tmp_path, make_picture, suffix):
    path = tmp_path / f"picture.{suffix}"
    picture = make_picture(0, (9, 14))
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = decode(path, "here")
    assert found.shape == shape_of(path, "here") == (3, 9, 14)
    if suffix != "jpg":
        np.testing.assert_array_equal(found.permute(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGBA", 3), ("CMYK", 3), ("1", 1), ("P", 3)])
def test_other_modes_become_grey_or_colour(tmp_path, make_picture, mode, channels):
    start = {"1": "L", "P": "RGB"}.get(mode, mode)
    picture = make_picture(0, (8, 8), start).convert(mode)
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    found = decode(path, "here")
    assert found.shape == shape_of(path, "here") == (channels, 8, 8)
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(8, 8, channels)
    np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    values = np.array([[0, 257, 32768], [65535, 385, 386]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    # 385 and 386 lie on the two sides of 1.5 * 257.
    assert decode(path, "here").tolist() == [[[0, 1, 128], [255, 1, 2]]]


def test_orientation_of_the_camera_is_applied(tmp_path, make_picture):
    picture = make_picture(0, (6, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    found = decode(tmp_path / "turned.png", "here")
    assert found.shape == shape_of(tmp_path / "turned.png", "here") == (3, 10, 6)
    np.testing.assert_array_equal(found.permute(1, 2, 0), np.rot90(np.asarray(picture), -1))


def test_pixels_belong_to_the_tensor(tmp_path, make_picture):
    make_picture(0, (4, 4), "L").save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", "here").add_(1).shape == (1, 4, 4)


def broken_files(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    png = buffer.getvalue()
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    floats = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(floats, "TIFF")
    wide = io.BytesIO()
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(wide, "TIFF")
    return {
        "empty": (b"", "not an image"),
        "text": (b"hello", "not an image"),
        "cut png": (png[: len(png) // 2], "."),
        "changed png": (png[:60] + bytes(20) + png[80:], "."),
        "cut jpeg": (buffer.getvalue()[: len(buffer.getvalue()) // 2], "truncated"),
        "floats": (floats.getvalue(), "unknown range"),
        "32 bits": (wide.getvalue(), "70000"),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "cut png", "changed png", "cut jpeg", "floats", "32 bits"])
def test_broken_files_say_where_and_why(make_picture, kind):
    content, reason = broken_files(make_picture(0, (40, 40)))[kind]
    with pytest.raises(CorruptImage, match=reason) as caught:
        decode(io.BytesIO(content), "row 7")
    assert caught.value.where == "row 7"


def test_a_missing_file_is_corrupt(tmp_path):
    for function in (decode, shape_of):
        with pytest.raises(CorruptImage, match="No such file"):
            function(tmp_path / "gone.png", "here")
