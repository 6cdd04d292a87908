"""What can go wrong, as one tree; `cli.main` turns each into one line on stderr and an exit code.

    MambairError             exit code 1: the work failed
      ImageError             an image cannot be read or written
      CheckpointError        a weight file is missing, unsafe, damaged or of another network
      DownloadError          a file cannot be fetched
      UploadError            a file cannot be stored at a URL
      MemoryLimitError       the work does not fit into memory
      RestorationError       a network gave NaN or infinite values
      BackendError           a back end that was asked for by name cannot run here
      TrainingError          a training run cannot start or go on
      CacheError             results that were kept cannot be used
    CallError                exit code 2: the call itself is wrong (unknown model, missing input)
      NoImageError           the folders that were named hold no image

An interrupted run exits with 130. Messages say what happened, to which file, and what to do.
"""

import difflib
from collections.abc import Iterable


class MambairError(Exception):
    """The work failed. Base of every error this package raises on purpose."""

    exit_code = 1


class ImageError(MambairError):
    """An image cannot be read or written."""


class CheckpointError(MambairError):
    """A weight file is missing, unsafe, damaged or of another network."""


class DownloadError(MambairError):
    """A file cannot be fetched."""


class UploadError(MambairError):
    """A file cannot be stored at a URL."""


class MemoryLimitError(MambairError):
    """The work does not fit into memory."""


class RestorationError(MambairError):
    """A network gave NaN or infinite values."""


class BackendError(MambairError):
    """A scan back end that was asked for by name cannot run here."""


class TrainingError(MambairError):
    """A training run cannot start or go on."""


class CacheError(MambairError):
    """Results that were kept cannot be used."""


class CallError(MambairError):
    """The call itself is wrong: an unknown model, a bad option, a missing input."""

    exit_code = 2


class NoImageError(CallError):
    """The folders that were named hold no image."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown word: a known word that is near, or `otherwise`."""
    near = difflib.get_close_matches(word, known)
    if not near:
        return otherwise

    def likeness(other: str) -> tuple[float, int]:
        """The ratio, and of equals the one that begins alike for longer."""
        matcher = difflib.SequenceMatcher(None, word, other)
        return matcher.ratio(), matcher.get_matching_blocks()[0].size

    return f"did you mean {max(near, key=likeness)!r}?"
