"""`limbeck shrink`: keep some layers of a model and write a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError
from limbeck.models import describe, even_layers, keep_layers, load_model, load_tokenizer

if TYPE_CHECKING:
    from limbeck.config.beside import ShrinkConfig


def run(config: ShrinkConfig) -> int:
    """Cut the model and save it with its tokenizer. Returns the exit status; raises ConfigError and ModelError."""
    model_config, layers = config.model, config.shrink.keep_layers
    output = new_folder(config.run.output_dir)
    model: Any = load_model(
        model_config.model,
        revision=model_config.model_revision,
        dtype=model_config.torch_dtype,
        trust_remote_code=model_config.trust_remote_code,
        trainable=False,
    )
    tokenizer = load_tokenizer(
        model_config.model, revision=model_config.model_revision, trust_remote_code=model_config.trust_remote_code
    )
    before = describe(model)
    kept = list(layers) or even_layers(before.layers, config.shrink.num_layers or 0)
    small = keep_layers(model, kept)
    after = describe(small)
    small.save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"kept     {after.layers} of {before.layers} layers: {', '.join(map(str, kept))}")
    print(f"before   {before.parameters / 1e6:,.1f}M parameters ({before.dtype})")
    share = after.parameters / before.parameters
    print(f"after    {after.parameters / 1e6:,.1f}M parameters ({share:.0%}, {after.dtype})")
    print(f"written  {output} ({size / 1e6:,.0f} MB)")
    return 0


def new_folder(output: Path | None) -> Path:
    """Raises ConfigError where there is no name, or something stands there already: nothing is overwritten."""
    if output is None:
        raise ConfigError("the model has no place to go", where="--output_dir", fix="add --output_dir FOLDER")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ConfigError(
            f"{output} exists and is not an empty folder",
            where=f"--output_dir {output}",
            fix="give a new folder, or remove this one first",
        )
    return output
