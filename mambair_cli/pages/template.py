"""A page as one file that needs nothing else: its template, the viewer of pictures, its data."""

import base64
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def fill(template: Path, data: Any) -> str:
    """The page of a template.

    Args:
        template: HTML in which @STYLE@ and @SCRIPT@ stand for the viewer's, and @DATA@ for `data`.
        data: what the script reads, of types that JSON has.
    """
    text = template.read_text("utf-8")
    text = text.replace("@STYLE@", (HERE / "viewer.css").read_text("utf-8"))
    text = text.replace("@SCRIPT@", (HERE / "viewer.js").read_text("utf-8"))
    # A < would end the element.
    return text.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


def data_address(image: bytes, kind: str = "webp") -> str:
    """The address that is the image itself."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
