"""Draw docs/pictures.jpg, which README shows, with the bundled networks as they are now.

`python scripts/draw_pictures.py` in the project's folder. Each row is an input of docs/pictures/,
enlarged by bicubic interpolation where the command enlarges, and what the command makes of it.
"""

import tempfile
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mambair_cli.cli import app

DOCS = Path(__file__).parents[1] / "docs"
ROWS = (
    ("people.png", "upscale"),
    ("landscape.png", "denoise"),
    ("text.jpg", "dejpeg"),
    ("drawing.png", "upscale"),
)
WIDTH, HEIGHT = 480, 320
LABEL = 26


def restored(source: Path, command: str) -> PIL.Image.Image:
    """What a command of mambair makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.png"
        app([command, str(source), "-o", str(target)], standalone_mode=False)
        with PIL.Image.open(target) as image:
            return image.convert("RGB")


def main() -> None:
    """Write the picture."""
    sheet = PIL.Image.new("RGB", (2 * WIDTH + 8, len(ROWS) * (HEIGHT + LABEL)), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(16)
    for row, (name, command) in enumerate(ROWS):
        top = row * (HEIGHT + LABEL)
        source = DOCS / "pictures" / name
        with PIL.Image.open(source) as image:
            before = image.convert("RGB")
        pictures = (
            (before, f"{name}, {before.width}x{before.height}"),
            (
                restored(source, command),
                f"mambair {command} {name}",
            ),
        )
        for column, (picture, label) in enumerate(pictures):
            left = column * (WIDTH + 8)
            draw.text((left + 2, top + 4), label, "black", font)
            resized = picture.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
            sheet.paste(resized, (left, top + LABEL))
    sheet.save(DOCS / "pictures.jpg", quality=90, subsampling=0)


if __name__ == "__main__":
    main()
