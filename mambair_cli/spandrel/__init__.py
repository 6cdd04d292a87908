"""Our networks in spandrel, through which chaiNNer, ComfyUI and others load models.

>>> from mambair_cli.spandrel import install
>>> install()
>>> from spandrel import ModelLoader
>>> model = ModelLoader().load_from_file("mambair.pth")
"""

from .registry import install

__all__ = ["install"]
