import io

import numpy as np
import pytest
from PIL import Image

from crossdistill.data.source import CorruptImage
from crossdistill.data.sources.decode import decode, image_suffixes, shape_of


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 7, 255]], [0, 7, 255]),
        ([[0, 257, 256 * 257]], None),
        ([[0, 257, 65535]], [0, 1, 255]),
        ([[-1, 5, 9]], None),
    ],
)
def test_grey_of_32_bits_is_of_8_or_of_16(tmp_path, values, expected):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array(values, dtype=np.int32)).save(path)
    if expected is None:
        with pytest.raises(CorruptImage, match=f"from {min(values[0])} to {max(values[0])}; save it with 8 or 16 bits"):
            decode(path, "here")
    else:
        assert decode(path, "here").tolist() == [[expected]]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_dark_png_files_of_16_bits_stay_dark(tmp_path, monkeypatch, mode, turned):
    """Old versions of Pillow open these in the mode of 32 bits, which is made here by hand."""
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 3  # by half
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 128, 129, 255]], dtype=np.uint16)).save(path, exif=exif)
    with Image.open(path) as image:
        image.load()
        image._im = image.im.convert(mode)
        image._mode = mode
        monkeypatch.setattr(Image, "open", lambda file: image)
        assert decode(path, "here").flatten().tolist() == ([1, 1, 0, 0] if turned else [0, 0, 1, 1])


def test_what_pillow_opens_is_an_image():
    common = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".tga", ".jp2", ".mpo"}
    assert common <= image_suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".fli", ".h5", ".grib", ".wmf", ".txt"} & image_suffixes()


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["RGB", "L", "LA"])
def test_a_single_pixel_belongs_to_the_tensor(tmp_path, make_picture, mode):
    picture = make_picture(0, (1, 1), mode)
    picture.save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", "here")
    before = found.clone()
    assert found.numpy().flags.writeable
    assert found.bitwise_not_().equal(255 - before)


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
