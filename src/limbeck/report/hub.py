"""A model on the Hugging Face hub: checked before the work, pushed after it, by huggingface_hub's own client."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from huggingface_hub import HfApi

from limbeck.errors import ConfigError, TrainError

LOGIN = "set HF_TOKEN to a token that may write, or run `hf auth login`"
MORE = re.compile(r" For more information check: \S+")  # of the status code, at which nobody learns anything
LEAVE_OUT = "--push_to_hub false leaves the hub out"
# A part of an error's type -> what to do about it. The first that occurs counts.
FIXES = (
    ("OfflineMode", "unset HF_HUB_OFFLINE"),
    ("Connect", "check the network and HF_ENDPOINT"),
    ("Timeout", "check the network and HF_ENDPOINT"),
    ("LocalTokenNotFound", LOGIN),
)


def api() -> HfApi:
    """The hub that HF_ENDPOINT names."""
    return HfApi()


def check_hub(name: str) -> str:
    """Asks the hub who we are and whether we may write there, so that a long run does not end at a closed door.

    Returns the whole id, OWNER/NAME. Raises ConfigError.
    """
    where = f"--push_to_hub true, --hub_model_id {name}"
    if name.count("/") > 1 or not all(name.split("/")):
        raise ConfigError(f"{name} is no id of the hub", where=where, fix="write it as ORGANISATION/NAME or NAME")
    hub = api()
    where += f", at {hub.endpoint}"
    try:
        who = hub.whoami()
    except Exception as error:  # the client's errors share no base class
        raise ConfigError(f"the hub does not let us in: {_said(error)}", where=where, fix=_fix(error)) from error
    owner, _, rest = name.rpartition("/")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(f"the token of {who['name']} may only read", where=where, fix=f"{LOGIN}; {LEAVE_OUT}")
    ours = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner and owner.lower() not in map(str.lower, ours):
        fix = f"name one of yours ({', '.join(ours)}), or ask {owner} for its membership"
        raise ConfigError(f"{who['name']} is no member of {owner}", where=where, fix=fix)
    return f"{owner or who['name']}/{rest}"


def push(folder: Path, name: str, *, private: bool, card: str | None = None) -> str:
    """Puts the files of `folder` on the hub in one commit, and makes the repository where there is none; its address.

    card: becomes the folder's README.md first, so that folder and repository are the same. Raises TrainError, with the
    command that pushes the folder once more; Ctrl-C is one too, since the work is done.
    """
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    try:
        hub = api()
        repo = hub.create_repo(name, private=private, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model and card, by Limbeck")
    except (Exception, KeyboardInterrupt) as error:
        print(file=sys.stderr, flush=True)  # a bar of the client's may still stand on the line
        error = _inner(error)
        again = shlex.join(["hf", "upload", *(["--private"] if private else []), name, str(folder)])
        first = [] if isinstance(error, KeyboardInterrupt) else [_fix(error, others="wait until the hub is well again")]
        raise TrainError(
            f"the model is whole in {folder}, but could not be put on the hub: {_said(error)}",
            where=f"--hub_model_id {name}",
            fix="; then ".join([*first, f"push it by `{again}`"]),
        ) from error
    return f"{hub.endpoint}/{repo}"


def _inner(error: BaseException) -> BaseException:
    """The client wraps what goes wrong in its threads."""
    return error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error


def _said(error: BaseException) -> str:
    """The client's words on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {MORE.sub('', ' '.join(str(error).split()))}"[:300]


def _fix(error: BaseException, others: str = LEAVE_OUT) -> str:
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        return LOGIN
    return next((fix for part, fix in FIXES if part in type(error).__name__), others)
