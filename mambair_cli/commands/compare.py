"""`mambair compare`: before and after on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CallError
from .terminal import Quiet, progress_bar, show

if TYPE_CHECKING:
    from ..pages.compare import Scene

EXAMPLES = "\n".join(
    (
        "mambair compare photo.jpg photo_x4.jpg",
        "mambair compare photo.jpg one.png another.png -o page.html",
        "mambair compare holiday/ better/ -o page.html",
        "mambair upscale photo.jpg --compare page.html",
    )
)


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="A photo, or a folder.", show_default=False)
    ],
    after: Annotated[
        list[Path],
        typer.Argument(
            metavar="AFTER", help="What became of it; one or several.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page.")
    ] = Path("compare.html"),
    quiet: Quiet = False,
) -> None:
    """Show before and after on one page, with a slider; it opens in any browser, offline."""
    check_page(output)
    from ..pages.compare import match_files

    write(output, match_files(before, after), quiet)


def check_page(page: Path) -> None:
    """Raise CallError where a page could not be written, before long work."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise CallError(f"{page}: a page is called something.html")
    if not page.resolve().parent.is_dir():
        raise CallError(f"{page}: there is no folder {page.resolve().parent}; create it first")


def write(page: Path, scenes: "Sequence[Scene]", quiet: bool) -> None:
    """Write the page and say so."""
    from ..pages.compare import write_page

    with progress_bar(quiet) as progress:
        write_page(page, scenes, progress)
    if not quiet:
        pictures = "1 picture" if len(scenes) == 1 else f"{len(scenes)} pictures"
        show(f"{page}: {pictures}, before and after; open it in a browser")
