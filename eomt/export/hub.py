"""An exported folder as a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError

from eomt.errors import InputError, reason

_T = TypeVar("_T")


def check_push(repository: str, public: bool, overwrite: bool) -> None:
    """Ask the Hub whether a folder can be pushed there, before it is made.

    Args:
        repository: USER/NAME.
        public: whether all may read it.
        overwrite: whether it may be there already.

    Raises:
        InputError: without a login or a network, or if the repository is there and `overwrite` is not set, or is
            private or public otherwise than `public` says.
    """
    api = HfApi()
    _asked(repository, api.whoami)
    if not _asked(repository, lambda: api.repo_exists(repository)):
        return
    if not overwrite:
        raise InputError(f"push={repository} is there already: choose another name, or set overwrite=true")
    private = bool(_asked(repository, lambda: api.model_info(repository).private))
    if public == private:
        there, way_out = ("private", "leave out public=true") if private else ("public", "set public=true")
        raise InputError(f"push={repository} is there, and {there}: {way_out}, or choose another name")


def push(folder: Path, repository: str, public: bool, replaced: Iterable[str]) -> str:
    """Make a repository of a folder with the address it returns, private unless `public`.

    Args:
        folder, repository, public: see `check_push`.
        replaced: names of files of earlier exports there, which are taken out unless the folder has them.

    Raises:
        InputError: if the Hub cannot be reached or refuses.
    """
    api = HfApi()
    url = _asked(repository, lambda: api.create_repo(repository, private=not public, exist_ok=True))
    upload = {"folder_path": folder, "delete_patterns": sorted(replaced), "commit_message": "Export of EoMT"}
    _asked(repository, lambda: api.upload_folder(repo_id=repository, **upload))
    return str(url)


def _asked(repository: str, ask: Callable[[], _T]) -> _T:
    """The Hub's answer, or its client's many errors, and those of the network below it, as one line."""
    try:
        return ask()
    except LocalTokenNotFoundError as error:
        raise InputError(f"push={repository} needs a login: run `hf auth login`, or set HF_TOKEN") from error
    except Exception as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason(error.__cause__ or error)
        raise InputError(
            f"push={repository}: the Hugging Face Hub cannot be reached, or refuses ({offline}): log in by "
            "`hf auth login` as one who may write there, and try again where there is internet"
        ) from error
