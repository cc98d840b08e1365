"""A checkpoint put on the hub, or on whatever HF_ENDPOINT names."""

import re
from pathlib import Path

from qlinear.errors import CheckpointError, OptionError, one_line


def check_repository(repository: str) -> None:
    """Before hours of work. Raises `OptionError` for what is no name of a repository."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", repository):
        raise OptionError(f"`push={repository[:100]}` is no name of a repository; it has to be ORGANISATION/NAME")


def push(directory: Path, repository: str, private: bool = True) -> str:
    """Upload a directory as one commit, making the repository where there is none; its address.

    private: of a repository that is made. Raises `CheckpointError` in one line for whatever the hub or the way there
    says, a token that is missing among it.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    api = HfApi()
    try:
        made = api.create_repo(repository, exist_ok=True, private=private)
        api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload a checkpoint made with run_awq",
            ignore_patterns=[".*"],
        )  # fmt: skip
    except Exception as error:  # of the library, of the network, of the other side
        raise CheckpointError(
            f"{directory} could not be pushed to {repository}: {one_line(error)}; HF_TOKEN or `hf auth login` has to "
            f"give a token that may write there"
        ) from error
    return str(made)
