"""Which model an adapter sits on: its own adapter_config.json says so, where --model does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.config.room import listed
from limbeck.errors import ConfigError


def name_base(given: dict[str, Any], where: Mapping[str, str], *, of: str = "") -> list[str]:
    """Fills in `model` from `adapters`, and says so; a `model` that is an adapter's folder becomes one on its base.
    of: "other_" does the same to `other_model` and `other_adapters`.

    NAME=FOLDER, as ms-swift's `deploy` has it, names what is served (`served_model_name`). Raises ConfigError for an
    adapter that does not say what it sits on, and for several names.
    """
    notes: list[str] = []
    folders: Any = listed(given.get(f"{of}adapters"))
    adapters = [str(folder) for folder in folders]
    named = given.get(f"{of}model")
    if isinstance(named, str) and not adapters and _is_adapter(Path(named)):
        adapters, named = [named], None
    names = [name for name, equals, _ in (_parts(adapter) for adapter in adapters) if equals]
    if len(names) > 1:
        what = "adapters lie on one another here and are one model, so they cannot have names of their own"
        fix = (
            "write the folders alone, and name the whole with --served_model_name; or serve each from a port of its own"
        )
        raise ConfigError(what, where=where.get(f"{of}adapters", f"--{of}adapters"), fix=fix)
    adapters = [folder for _, _, folder in map(_parts, adapters)]
    if names:
        notes.append(f"--adapters {names[0]}=... is --served_model_name {names[0]} here")
        given.setdefault("served_model_name", names[0])
    if adapters and not named:
        named = base_of(adapters[0])
        if named is None:
            what = f"{adapters[0]} does not say which model it is an adapter of"
            raise ConfigError(
                what,
                where=where.get(f"{of}adapters", f"--{of}adapters {adapters[0]}"),
                fix=f"add --{of}model FOLDER, or a hub id: the adapter's base",
            )
        notes.append(f"--{of}model is {named}: {adapters[0]}/adapter_config.json names it as the adapter's base")
    if adapters:
        given[f"{of}adapters"], given[f"{of}model"] = adapters, named
    return notes


def _is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def _parts(adapter: str) -> tuple[str, str, str]:
    """NAME, =, FOLDER; a folder that exists by the whole text is one."""
    name, equals, folder = adapter.partition("=")
    return ("", "", adapter) if not equals or "/" in name or Path(adapter).exists() else (name, equals, folder)


def base_of(adapter: str) -> str | None:
    """The model that an adapter names as its base, a folder's or one on the hub; None where it does not say."""
    folder = Path(adapter).expanduser()
    try:
        file = folder / "adapter_config.json" if folder.exists() else _from_hub(adapter)
        return json.loads(file.read_text()).get("base_model_name_or_path") or None
    except Exception:  # not there, not JSON, or whatever the hub's client has to say: the caller asks for --model
        return None


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi  # half a second to import, and only an adapter on the hub needs it

    return Path(HfApi().hf_hub_download(name, "adapter_config.json"))  # type: ignore[reportUnknownMemberType]
