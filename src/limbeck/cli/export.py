"""`limbeck export`: adapters merged, weights cast, as safetensors; a GGUF file by llama.cpp; the hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from limbeck.cli.shrink import new_folder
from limbeck.config.after import ExportConfig
from limbeck.config.defaults import Choice
from limbeck.errors import ConfigError, ModelError
from limbeck.models import describe, load_config, load_model, load_tokenizer
from limbeck.report import run_card
from limbeck.report.hub import check_hub, push

SCRIPT = "convert_hf_to_gguf.py"
PROBE = torch.arange(1, 17)[None]  # any ids will do: two models are compared on them


def run(config: ExportConfig) -> int:
    """Writes the folder and prints what it holds. Raises ConfigError and ModelError, before any weight is loaded where
    the flags tell."""
    m, hub, export = config.model, config.hub, config.export
    output = new_folder(config.run.output_dir)
    if export.gguf_type is not None and not export.merge_lora and m.adapters:
        raise ConfigError(
            "a .gguf file holds a whole model, and --merge_lora false leaves the adapter apart",
            where=f"--gguf_type {export.gguf_type}, --merge_lora false",
            fix="leave one of the two out",
        )
    tool = converter() if export.gguf_type is not None else []
    name = hub.hub_model_id or output.resolve().name
    if hub.push_to_hub:
        name = check_hub(name)
    tokenizer = load_tokenizer(m.model, revision=m.model_revision, trust_remote_code=m.trust_remote_code)
    model, said = _model(config)
    model.save_pretrained(output, max_shard_size=export.max_shard_size)
    tokenizer.save_pretrained(output)
    named = name if hub.push_to_hub else str(output)
    adapter = isinstance(model, PeftModel)
    cards = (run_card(Path(path), name=named, adapter=adapter) for path in (*m.adapters, m.model))
    card = next(filter(None, cards), None)
    if card is not None:
        (output / "README.md").write_text(card)
    print(f"model    {m.model}" + "".join(f" + {adapter}" for adapter in m.adapters))
    for line in said:
        print(line)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"written  {output} ({size / 1e6:,.0f} MB{'' if card is None else ', with the card of its run'})")
    if export.gguf_type is not None:
        print(f"written  {write_gguf(tool, output, export.gguf_type)}")
    if hub.push_to_hub:
        print(f"pushed   {push(output, name, private=hub.hub_private_repo)}")
    return 0


def _model(config: ExportConfig) -> tuple[Any, list[str]]:
    """The model as it will be written, and what there is to say of it. Adapters are merged in float32, so that the
    sum is rounded once, to the type that is written."""
    m = config.model
    merges = config.export.merge_lora and bool(m.adapters)
    said: list[str] = []
    dtype = m.torch_dtype
    if dtype == "auto":
        saved = getattr(load_config(m.model, revision=m.model_revision), "dtype", None)
        dtype = str(saved or torch.float32).removeprefix("torch.")
        reason = "what the base was saved in" if saved else "its config names no type"
        said.append(f"chosen   {Choice('torch_dtype', dtype, reason)}")
    model: Any = load_model(
        m.model,
        revision=m.model_revision,
        dtype="float32" if merges else dtype,  # type: ignore[arg-type]
        attn_impl=m.attn_impl,
        adapters=m.adapters,
        trust_remote_code=m.trust_remote_code,
        trainable=False,
    )
    if merges and isinstance(model, PeftModel):
        apart = _logits(model)
        model = model.merge_and_unload()  # type: ignore[operator]
        gap = float((_logits(model) - apart).abs().max() / apart.abs().max())
        said.append(f"merged   {len(m.adapters)} adapters; logits differ from theirs by {gap:.1e} of the largest")
        model = model.to(getattr(torch, dtype))
        model.config.dtype = getattr(torch, dtype)
    return model, [*said, f"holds    {describe(model)}"]


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model(input_ids=PROBE.to(model.device) % model.config.get_text_config().vocab_size).logits.float()


def converter() -> list[str]:
    """The command of llama.cpp's converter. Raises ConfigError where it is not installed."""
    folder = os.environ.get("LLAMA_CPP")
    if folder and (Path(folder) / SCRIPT).is_file():
        return [sys.executable, str(Path(folder) / SCRIPT)]
    for name in (SCRIPT, SCRIPT.removesuffix(".py").replace("_", "-")):
        if found := shutil.which(name):
            return [found]
    raise ConfigError(
        f"a .gguf file is written by llama.cpp's {SCRIPT}, which is not installed",
        where=f"--gguf_type; LLAMA_CPP is {folder or 'not set'}, and it is not on the PATH",
        fix="clone https://github.com/ggml-org/llama.cpp and set LLAMA_CPP to its folder",
    )


def write_gguf(tool: list[str], folder: Path, kind: str) -> Path:
    """Lets the converter read the folder that was just written. Raises ModelError with the converter's last words."""
    target = folder / f"{folder.resolve().name}-{kind}.gguf"
    command = [*tool, str(folder), "--outfile", str(target), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        missing = re.search(r"No module named '(\w+)", words[0])
        fix = f"`pip install {missing[1]}`" if missing else "run that command to see all of what it says"
        raise ModelError(
            f"the converter to GGUF failed (status {done.returncode}): {words[0][:300]}",
            where=" ".join(command),
            fix=f"{fix}; {folder} itself is whole",
        )
    return target
