"""A model on the Hugging Face hub: checked before the work, pushed after it, by huggingface_hub's own client."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from limbeck.errors import ConfigError, TrainError

LOGIN = "set HF_TOKEN to a token that may write, or run `hf auth login`; --push_to_hub false leaves the hub out"


def api() -> HfApi:
    """The hub that HF_ENDPOINT names."""
    return HfApi()


def check_hub(name: str) -> None:
    """Asks the hub who we are, so that a long run does not end at a closed door. Raises ConfigError."""
    where = f"--push_to_hub true, --hub_model_id {name}"
    if name.count("/") > 1 or not all(name.split("/")):
        raise ConfigError(f"{name} is no id of the hub", where=where, fix="write it as ORGANISATION/NAME or NAME")
    try:
        api().whoami()
    except Exception as error:  # the client's errors share no base class
        raise ConfigError(f"the hub does not let us in: {_line(error)}", where=where, fix=LOGIN) from error


def push(folder: Path, name: str, *, private: bool, card: str | None = None) -> str:
    """Puts the files of `folder` and the card on the hub, and makes the repository where there is none; its address.

    Raises TrainError, with the command that pushes the folder once more.
    """
    try:
        hub = api()
        repo = hub.create_repo(name, private=private, exist_ok=True).repo_id
        ignored = ["README.md"] if card is not None else None
        hub.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=ignored, commit_message="Model, by Limbeck")
        if card is not None:
            hub.upload_file(
                repo_id=repo,
                path_or_fileobj=card.replace('"last"', f'"{repo}"').encode(),
                path_in_repo="README.md",
                commit_message="Model card, by Limbeck",
            )
    except Exception as error:
        raise TrainError(
            f"the model could not be put on the hub: {_line(error)}",
            where=f"--hub_model_id {name}",
            fix=f"it lies in {folder}: once the hub answers, `hf upload {name} {folder}`",
        ) from error
    return f"{hub.endpoint}/{repo}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
