"""Animations and documents: every frame and page, from file to file."""

import io

import numpy as np
import PIL.Image
import pytest
import tifffile
from failing import fails
from pictures import check_exif, exif_block, noise, pillow_bytes, smooth

from mambair_cli.errors import ImageError
from mambair_cli.images.image import each_frame
from mambair_cli.images.io import Image, decode_image, encode_image

SHADES = (40, 128, 250)


def animation(format, alpha=False, **options):
    """Three gray frames, shown 100, 200 and 300 milliseconds."""
    frames = [PIL.Image.new("RGB", (48, 32), (shade, shade, shade)) for shade in SHADES]
    if alpha:
        mask = np.full((32, 48), 255, np.uint8)
        mask[:8, :8] = 0
        for frame in frames:
            frame.putalpha(PIL.Image.fromarray(mask))
    options = {"duration": [100, 200, 300], "loop": 2} | options
    return pillow_bytes(frames[0], format, save_all=True, append_images=frames[1:], **options)


def shades(image):
    return [np.median(frame.pixels) for frame in (image, *image.frames.images)]


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_all_frames_go_from_format_to_format(format, suffix, alpha):
    image = decode_image(animation(format, alpha), "input")
    assert image.notes == ()
    assert shades(image) == pytest.approx(SHADES, abs=4)
    assert image.frames.durations == (100, 200, 300)
    # GIF counts repetitions, others how often it is shown; Pillow does not tell of AVIF's
    assert image.frames.plays == {"GIF": 3, "AVIF": 0}.get(format, 2)
    data, notes = encode_image(image, suffix)
    assert notes == []
    back = decode_image(data, "output")
    assert shades(back) == pytest.approx(SHADES, abs=6)
    assert back.frames.durations == (100, 200, 300)
    if suffix != "avif":
        assert back.frames.plays == image.frames.plays
    assert (back.alpha is None) == (not alpha)


@pytest.mark.parametrize("loop", [0, 1])
def test_loops(loop):
    image = decode_image(animation("GIF", loop=loop), "")
    assert image.frames.plays == (0 if loop == 0 else 2)
    with PIL.Image.open(io.BytesIO(encode_image(image, "webp")[0])) as file:
        assert file.info["loop"] == image.frames.plays


def test_what_holds_no_animation_gets_the_first_frame_and_that_is_said():
    image = decode_image(animation("GIF"), "input")
    for suffix in ("jpg", "tif", "heic", "bmp", "ppm"):
        data, notes = encode_image(image, suffix)
        assert "only the first of 3" in notes[0]
        assert decode_image(data, "").pixels.mean() == pytest.approx(SHADES[0], abs=3)


def test_the_first_frame_alone():
    image = decode_image(animation("GIF"), "input", first_frame=True)
    assert image.frames is None
    assert "only the first is read" in image.notes[0]


def test_the_limit_of_pixels_counts_all_frames():
    fails(lambda: decode_image(animation("GIF"), "", max_pixels=48 * 32 * 2), ImageError, "limit")
    decode_image(animation("GIF"), "", max_pixels=48 * 32 * 2, first_frame=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_of_tiff(dtype, big, order):
    pages = [noise((20, 30, 3), dtype), noise((10, 40), dtype), noise((20, 30, 3), dtype, seed=2)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
        for page in pages:
            kind = "rgb" if page.ndim == 3 else "minisblack"
            writer.write(page, photometric=kind, metadata=None, contiguous=False)
    image = decode_image(file.getvalue(), "input")
    assert image.notes == ()
    assert image.frames.kind == "pages"
    data, notes = encode_image(image, "tif")
    assert notes == []
    with tifffile.TiffFile(io.BytesIO(data)) as written:
        assert len(written.pages) == 3
        for page, wanted in zip(written.pages, pages, strict=True):
            np.testing.assert_array_equal(page.asarray(), wanted)
    back = decode_image(data, "")
    for seen, wanted in zip((back, *back.frames.images), pages, strict=True):
        np.testing.assert_array_equal(seen.pixels, wanted)
    assert "only the first of 3" in encode_image(image, "png")[1][0]


def test_smaller_copies_are_no_pages():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise((20, 30, 3)), photometric="rgb", metadata=None)
        writer.write(noise((10, 15, 3)), photometric="rgb", metadata=None, subfiletype=1)
    assert decode_image(file.getvalue(), "").frames is None


def test_metadata_of_an_animation_are_kept():
    image = decode_image(animation("WEBP", exif=exif_block()), "")
    for suffix in ("png", "webp"):
        check_exif(decode_image(encode_image(image, suffix)[0], "").exif)


def test_every_frame_is_changed_and_counted():
    shares = []
    image = decode_image(animation("PNG"), "")

    def halved(frame, report):
        report(1.0)
        return Image(frame.pixels // 2)

    result = each_frame(image, halved, shares.append)
    assert shades(result) == pytest.approx([shade // 2 for shade in SHADES])
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert result.frames.durations == image.frames.durations
    alone = each_frame(Image(smooth((8, 8))), halved, shares.append)
    assert alone.frames is None
