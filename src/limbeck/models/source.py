"""Where a model comes from, and what is wrong when nothing comes: every failure to load becomes a ModelError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.config.base_model import base_of
from limbeck.config.limits import limit_of
from limbeck.errors import LimbeckError, ModelError

# A part of the message of transformers or huggingface_hub -> what to do about it. The first that occurs counts.
FIXES = (
    ("trust_remote_code", "read the model's code, then add --trust_remote_code true if you trust it"),
    ("Tokenizer class", "install the package that the tokenizer needs, or update transformers"),
    ("sentencepiece", "pip install sentencepiece"),
    ("does not recognize this architecture", "update transformers, or use a model that the installed version knows"),
    ("Unrecognized configuration class", "use a decoder-only language model that AutoModelForCausalLM loads"),
    (
        "Unrecognized model",
        "use a folder or hub id whose config.json names a model_type; an adapter goes by --adapters",
    ),
    ("couldn't connect", "check the network and HF_ENDPOINT, or give the path of a downloaded folder or a .gguf file"),
    ("not a local folder", "check the spelling; a private or gated model needs `hf auth login` first"),
    ("gated repo", "ask for access on the model's page, then `hf auth login`"),
    ("valid git identifier", "give --model_revision a branch, tag or commit that exists"),
    ("no file named", "give a folder that holds model.safetensors (or its sharded form)"),
    (
        "to have a file named",
        "check what the hub holds: a model has config.json and model.safetensors; an adapter goes by --adapters",
    ),
    ("Specified `attn_implementation", "use --attn_impl sdpa, eager or flash_attention_2, or leave it out"),
    ("FlashAttention", "use --attn_impl sdpa, or install what it asks for"),
    ("SafetensorError", "the weights file is damaged or cut short: copy or download it again"),
    ("not a valid JSON", "its JSON is damaged: copy or download it again"),
    ("size mismatch", "the adapter was trained on a model of another size: name its own base as --model"),
    ("Repo id must", "write a hub id as org/name, or give a folder or a .gguf file"),
    ("Can't find 'adapter_config.json'", "check the path, or write a hub id as org/name"),
)
_DAMAGED = "its files are damaged, or of another version: copy or download them again (--debug shows where it failed)"


@contextmanager
def refusals(name: str, what: str = "model") -> Iterator[None]:
    """Turns what loading raises into a ModelError about `name`; `what` is "model", "tokenizer" or "adapter"."""
    try:
        yield
    except (LimbeckError, MemoryError):  # what to lower is computed from the run: limbeck.config.limits
        raise
    except Exception as error:  # transformers, peft, safetensors and the hub client share no base class
        if limit_of(error, None) is not None and not isinstance(error, OSError):
            raise
        text = f"{type(error).__name__}: {error}"
        fix = next((fix for part, fix in FIXES if part.lower() in text.lower()), _DAMAGED)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise ModelError(f"the {what} {name} cannot be loaded", where=" ".join(lines)[:400], fix=fix) from error


def check_folder(name: str) -> None:
    """Raises ModelError where `name` is a path that cannot hold a model; hub ids pass."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return
        if (path / "adapter_config.json").is_file():
            base = base_of(str(path)) or "BASE"
            raise ModelError(
                f"{name} is an adapter, not a model",
                where=str(path / "adapter_config.json"),
                fix=f"load it on its base: --model {base} --adapters {name}",
            )
        raise ModelError(
            f"{name} has no config.json",
            where=f"folder with {_listing(path)}",
            fix="give the folder that `save_pretrained` wrote, or a checkpoint's own folder",
        )
    if path.is_file():
        raise ModelError(
            f"{name} is a file, not a model",
            where=f"looked at {path}",
            fix="give a model folder, a hub id or a .gguf file",
        )
    _must_be_a_hub_id(name)


def check_adapter(name: str) -> None:
    """Raises ModelError where `name` is a path that holds no adapter; hub ids pass."""
    path = Path(name).expanduser()
    if path.exists() and not (path / "adapter_config.json").is_file():
        found = f"folder with {_listing(path)}" if path.is_dir() else "a file"
        raise ModelError(
            f"{name} has no adapter_config.json", where=found, fix="give the folder that holds the adapter's two files"
        )
    if path.is_dir() and not any(path.glob("adapter_model.*")):
        raise ModelError(
            f"{name} has no weights of an adapter",
            where=f"folder with {_listing(path)}",
            fix="give the folder that holds adapter_model.safetensors too",
        )
    if not path.exists():
        _must_be_a_hub_id(name)


def _must_be_a_hub_id(name: str) -> None:
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        fix = "check the path" + ("; a file on the hub must be downloaded first" if name.endswith(".gguf") else "")
        if name.startswith(("http://", "https://")):
            fix = "write a hub id as org/name, without the rest of the address"
        raise ModelError(f"{name} does not exist", where=f"looked in {Path.cwd()}", fix=fix)


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing in it"
    )
