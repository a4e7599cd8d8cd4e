"""Where the weights lie that a checkpoint names: at a path, in geo3d itself, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from geo3d.checkpoints.shipped import SHIPPED, require_shipped, shipped_weights
from geo3d.errors import InputError, require_extra

#: How a reference begins; a `Path` has made one slash of the two.
_SCHEME = re.compile(r"hf:/{1,2}")
_FORM = "hf://owner/repository/file, or hf://owner/repository/file@revision"


@dataclass(frozen=True)
class HubFile:
    """A file of weights on the Hugging Face Hub.

    Args:
        repository: ``owner/name``.
        file: its name in the repository, folders included.
        revision: branch, tag or commit; None: the repository's main branch.
    """

    repository: str
    file: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubFile:
        """Read ``hf://owner/repository/file``, with ``@revision`` at the end or after the repository.

        Raises:
            InputError: a part is missing.
        """
        rest, repository_pin = _SCHEME.sub("", text, count=1), ""
        rest, _, revision = rest.partition("@") if rest.count("@") < 2 else rest.rpartition("@")
        if revision and rest.count("/") == 1:  # hf://owner/repository@revision/file
            repository_pin, _, file = revision.partition("/")
            rest, revision = f"{rest}/{file}", repository_pin
        parts = rest.split("/")
        if len(parts) < 3 or not all(parts) or ("@" in text and not revision) or {".", ".."} & set(parts):
            raise InputError(f"{_written(text)}: names no file of the Hugging Face Hub; give {_FORM}")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        return f"hf://{self.repository}/{self.file}" + (f"@{self.revision}" if self.revision else "")


def is_hub_file(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is written as a reference to the Hub."""
    return bool(_SCHEME.match(_text(checkpoint)))


def resolve(checkpoint: str | Path, model: str | None = None) -> Path:
    """The file or folder that a checkpoint names.

    A file of the Hub is looked up in huggingface_hub's cache (``HF_HOME``), and fetched into it where it is missing or
    newer there; with ``HF_HUB_OFFLINE=1`` the cache alone is asked. A revision that is a commit is never asked for
    again. Nothing else is ever fetched.

    Args:
        checkpoint: a path; ``hf://owner/repository/file[@revision]``; the name of a model whose weights come with
            geo3d; or ``shipped``, for those of ``model``. What exists as a path is taken as one.
        model: whose weights they are to be, for ``shipped``.

    Returns:
        The path. One that was handed in is not looked at: what reads it says what is wrong.

    Raises:
        InputError: no such file on the Hub, no way to it, or no weights of that model come with geo3d.
        MissingExtra: a file of the Hub is asked for and huggingface_hub is not installed.
    """
    if is_hub_file(checkpoint):
        return _fetched(HubFile.parse(_text(checkpoint)))
    path = Path(checkpoint)
    if path.exists():
        return path
    if str(checkpoint) == SHIPPED:
        if model is None:
            raise InputError(f"checkpoint {SHIPPED!r} goes with the name of a model, such as sparse_resnet_tiny")
        return require_shipped(model)
    return shipped_weights(str(checkpoint)) or path


def absolute(checkpoint: Path) -> Path:
    """A path made absolute, so that it is the same from every folder; what is no path stays as it is."""
    if is_hub_file(checkpoint) or (not checkpoint.exists() and shipped_weights(str(checkpoint)) is not None):
        return checkpoint
    return checkpoint.resolve()


def _text(checkpoint: str | Path) -> str:
    return checkpoint.as_posix() if isinstance(checkpoint, Path) else str(checkpoint)


def _written(text: str) -> str:
    """A reference as people write it, whatever a `Path` made of it."""
    return _SCHEME.sub("hf://", text, count=1)


def _fetched(wanted: HubFile) -> Path:
    """The file in huggingface_hub's cache."""
    hub = require_extra("huggingface_hub", "hub", f"{wanted}: a file of the Hugging Face Hub")
    try:
        return Path(hub.hf_hub_download(wanted.repository, wanted.file, revision=wanted.revision))
    except Exception as error:  # of its own classes, of the client that it uses, and of the disk
        _explain(wanted, error)


def _explain(wanted: HubFile, error: Exception) -> NoReturn:
    """Raise InputError: why a file could not be had, and what to do."""
    from huggingface_hub import constants, errors

    at = f"{wanted}: "
    if isinstance(error, errors.HFValidationError):
        reason = f"{wanted.repository!r} is no name of a repository; give {_FORM}"
    elif isinstance(error, errors.GatedRepoError):
        reason = "its authors ask for their terms to be accepted on its page first; then log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"{wanted.repository} has no revision {wanted.revision!r}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "there is no such repository, or it is private: see its page, or log in with `hf auth login`"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        # A kind of EntryNotFoundError, which is why it comes first.
        if constants.HF_HUB_OFFLINE:
            reason = f"not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it"
        else:
            reason = f"not in the cache {constants.HF_HUB_CACHE}, and the Hub cannot be reached: no network?"
    elif isinstance(error, errors.EntryNotFoundError):
        revision = f" of revision {wanted.revision}" if wanted.revision else ""
        reason = f"{wanted.repository} has no file {wanted.file}{revision}; see the list of its files on its page"
    else:
        reason = f"cannot be fetched ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    raise InputError(at + reason) from error


__all__ = ["HubFile", "absolute", "is_hub_file", "resolve"]
