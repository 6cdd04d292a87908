"""Files on Hugging Face by hf:OWNER/REPO[/FILE], through huggingface-hub and its cache."""

import re
from pathlib import Path

from ..errors import CallError, DownloadError
from .cache import is_offline

HUB_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?")
# Preferred first.
SUFFIXES = (".safetensors", ".pth", ".pt")


def is_on_hub(name: str) -> bool:
    """Whether a name means a file on Hugging Face."""
    return name.startswith("hf:")


def hub_file(name: str) -> Path:
    """The file that hf:OWNER/REPO/FILE names, fetched unless it is in the cache of huggingface-hub.

    Without FILE, the only checkpoint of the repository, safetensors before files of torch.save.

    Raises:
        CallError: the name is wrong, the package is missing, or there are several checkpoints.
        DownloadError: there is no such file, or it cannot be fetched.
    """
    found = HUB_NAME.fullmatch(name)
    if not found:
        raise CallError(f"{name}: a file on Hugging Face is named hf:OWNER/REPO or .../FILE")
    repository, file = found.groups()
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CallError(
            f"{name} needs the package huggingface-hub: pip install 'mambair[hub]'"
        ) from None
    try:
        file = file or _only_checkpoint(name, repository)
        return Path(hf_hub_download(repository, file))
    except CallError:
        raise
    except Exception as error:
        # Whatever a foreign library and its network raise is the reason.
        reason = " ".join(str(error).split())[:300]
        raise DownloadError(f"{name} cannot be fetched: {type(error).__name__}: {reason}") from None


def _only_checkpoint(name: str, repository: str) -> str:
    """The name of the only checkpoint in a repository. Raises CallError, and as huggingface-hub."""
    from huggingface_hub import list_repo_files, snapshot_download

    if is_offline():
        folder = Path(snapshot_download(repository, local_files_only=True))
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    else:
        files = list_repo_files(repository)
    for suffix in SUFFIXES:
        fitting = sorted(file for file in files if file.lower().endswith(suffix))
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(fitting[:5]) + (" ..." if len(fitting) > 5 else "")
            raise CallError(f"{name} has several checkpoints; add /FILE, one of {names}")
    raise CallError(f"{name} has no checkpoint ({', '.join(SUFFIXES)})")
