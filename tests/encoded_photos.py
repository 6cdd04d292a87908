"""A small photograph with metadata in every format that is read, mostly by other programs."""

import numpy as np
import PIL.Image
from pictures import DATA, RGB_PROFILE, XMP, exif_block, pillow_bytes, png_bytes, tiff_bytes

from mambair_cli.images.io import Image, encode_image


def encoded_photos():
    """A small photograph with metadata in every format that is read, most by other programs than
    ours.
    """
    with PIL.Image.open(DATA / "osprey.png") as file:
        photo = file.convert("RGB").resize((24, 32))
    deep = np.asarray(photo).astype(np.uint16) * 257
    rows = deep.astype(">u2").reshape(32, -1).view(np.uint8)
    image = Image(
        deep, deep[..., 0], RGB_PROFILE, exif_block(), XMP, (300.0, 300.0), {"Comment": "Étude"}
    )
    files = {
        "png16": png_bytes(rows, 16, 2),
        "tiff": tiff_bytes(np.asarray(photo)),
        "tiff16": tiff_bytes(deep),
        "tiff lzw": pillow_bytes(photo, "TIFF", compression="tiff_lzw"),
        "tiff float": tiff_bytes(deep.astype(np.float32) / 65535),
        "tiff gray16 with alpha": encode_image(Image(deep[..., 0], deep[..., 1]), "tiff")[0],
        "jpeg progressive": pillow_bytes(photo, "JPEG", quality=90, progressive=True),
        "jpeg cmyk": pillow_bytes(photo.convert("CMYK"), "JPEG"),
        "webp lossless": pillow_bytes(photo, "WEBP", lossless=True),
        "ppm16": b"P6 24 32 65535\n" + rows.tobytes(),
        "ppm plain": b"P3 24 32 255\n" + " ".join(map(str, np.asarray(photo).ravel())).encode(),
        "gif": pillow_bytes(photo.quantize(), "GIF"),
        "apng": pillow_bytes(photo, "PNG", save_all=True, append_images=[photo.rotate(180)]),
        "png palette": pillow_bytes(photo.quantize(), "PNG", transparency=3),
        "heic gray": encode_image(Image(np.asarray(photo.convert("L"))), "heic")[0],
        "jpeg2000": pillow_bytes(photo, "JPEG2000"),
        "tga": pillow_bytes(photo, "TGA"),
        "pcx": pillow_bytes(photo, "PCX"),
    }
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "ppm", "avif", "heic"):
        files[suffix] = encode_image(image, suffix)[0]
    return files


PHOTOS = encoded_photos()
