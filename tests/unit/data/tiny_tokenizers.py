"""Tiny tokenizers with the habits of real ones, made on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's habit: the thoughts of a finished turn go once another user turn follows it
FORGETFUL = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# DeepSeek-R1's habit: the generation prompt opens a thought that finished turns do not show
OPENING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Nemotron's habit: the same, and finished turns show an empty thought of another shape
EMPTY_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# the habit of models of pictures: content in parts, and nothing at all of content that is text
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
# Llama-2's habits: BOS in the text, roles that must take turns, no generation prompt of its own
LLAMA = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
# Phi-3's habit: <|endoftext|> after the whole conversation, so that a finished one is no prefix of a longer one
CLOSING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "system user assistant",
    "What is two plus two?\n\nIt is four.",
]


def byte_level(template: str | None, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), with merges of line feeds."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*CORPUS, *["a\n\n\nb"] * 50], trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
        )
    eos = "</s>" if template == LLAMA or bos else "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


def sentence_piece(template: str | None) -> PreTrainedTokenizerFast:
    """Llama-2's way: a space (as a block) before every text, bytes for what is not in the vocabulary."""
    specials = ["<unk>", "<s>", "</s>"]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator([text.replace(" ", "▁").replace("\n", "") for text in CORPUS], trainer)
    # the byte tokens are ordinary ones: only the first three stay special
    fast = Tokenizer.from_str(core.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def end_of(tokenizer: PreTrainedTokenizerFast, *names: str) -> frozenset[int]:
    return frozenset(tokenizer.convert_tokens_to_ids(name) for name in names or (tokenizer.eos_token,))
