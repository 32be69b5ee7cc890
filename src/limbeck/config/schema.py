"""What a run is made of: one pydantic model a room, joined in `Config`.

Field names are the flags' names and are unique over the rooms, so that a flat YAML and a flat command line are never
ambiguous. They are ms-swift's names wherever ms-swift has the flag. The text under a field is its help. `None` means
"chosen for you": `limbeck.config.defaults.resolve_defaults` fills the value in and says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from limbeck.config.policy import Policy, Reward
from limbeck.config.room import (
    Count,
    DeviceName,
    Dtype,
    Fraction,
    LossScale,
    LossTemperature,
    Name,
    Names,
    NotNegative,
    Positive,
    Precision,
    QuantBits,
    RlhfType,
    Room,
    Scheduler,
    Seconds,
    Seed,
    Strategy,
    System,
    TeacherModel,
    TeacherServer,
    TeacherSource,
    Temperature,
    Tracker,
    WireBits,
    listed,
    not_zero,
    ramp,
)


class Model(Room):
    """The model: the student, where one is trained."""

    model: Name
    """Hub id, folder or .gguf file."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    torch_dtype: Dtype = "auto"
    """Type of the weights; auto takes what the model was saved in, float32 where all weights are trained, and on a CPU
    for a model that is only asked."""
    attn_impl: str | None = None
    """Attention implementation as transformers names it: eager, sdpa, flash_attention_2, ..."""
    adapters: Names = []
    """LoRA adapter folders or hub ids to start from; training goes on in the last one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub."""
    tuner_type: Literal["lora", "full"] = "lora"
    """Train LoRA adapters or all weights."""
    lora_rank: Annotated[int, Field(ge=1, le=65536)] = 8
    """Rank of the adapters."""
    lora_alpha: Positive = 32
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout inside the adapters in training steps; every other dropout is off, and evaluations have none."""
    target_modules: Names = ["all-linear"]
    """Modules that get an adapter; all-linear means every linear layer but the output head."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more compute."""


class Data(Room):
    """The rows."""

    dataset: Names = []
    """Training rows: files (.jsonl, .json, .csv, .parquet) or hub ids; path#500 takes 500 rows of one."""
    val_dataset: Names = []
    """Held-out rows, written as --dataset."""
    split_dataset_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows to hold out where there is no --val_dataset."""
    max_length: Count | None = None
    """Longest row in tokens, prompt and response together; by default no row is too long."""
    truncation_strategy: Literal["delete", "left", "right", "raise"] = "delete"
    """What happens to a row over --max_length: drop and count it, cut it at one end, or stop."""
    columns: dict[str, str] = {}
    """Rename columns, as JSON: '{"question": "query", "answer": "response"}'."""
    external_plugins: Names = []
    """Python files that register rewards (@limbeck.register_reward("name")) and preprocessors of rows
    (@limbeck.register_dataset("name"))."""
    streaming: bool = False
    """Take the first N rows of NAME#N as they come, without reading or downloading the rest."""
    loss_scale: LossScale = "last_round"
    """Which assistant turns of a dataset's row are trained: the last one, or all of them (default); with
    ignore_empty_think without an empty thought at the beginning. A message's own `loss` wins."""
    dataset_shuffle: bool = True
    """Shuffle the training rows anew for every epoch."""
    system: System | None = None
    """System message for rows that have none, or a .txt file that holds it."""
    data_seed: Seed | None = None
    """Seed of the order of the rows; by default that of the run (--seed)."""


class Method(Room):
    """The loss: what is learnt from the teacher, and on whose tokens."""

    rlhf_type: RlhfType | None = "gkd"
    """gkd: the divergence is the loss. grpo: the teacher's log-ratio is an advantage. (`limbeck sft` has neither.)"""
    beta: NotNegative | None = None
    """gkd: 0 is forward KL, 1 is reverse KL, between is the generalised JSD (default 0.5). grpo: weight of the KL to
    a reference model (default 0)."""
    lmbda: Fraction = 0.5
    """Share of the batches that the student writes itself: 0 is off-policy, 1 is on-policy."""
    sft_alpha: NotNegative = 0.0
    """Weight of cross-entropy on the dataset's tokens, added to the divergence."""
    gkd_logits_topk: int | None = None
    """Compare the teacher's K likeliest tokens only; by default the full vocabulary."""
    topk_mode: Literal["tail", "renorm"] = "tail"
    """Mass off the K tokens: kept as one bucket (tail), or left out by renormalising both sides (renorm)."""
    topk_support: Literal["teacher", "student", "union"] = "teacher"
    """Whose K likeliest tokens are compared; the student's are chosen when the teacher scores."""
    loss_temperature: LossTemperature = 1.0
    """Divides both sides' logits inside the divergence; --temperature is the sampler's."""
    jsd_normalize: bool = False
    """Divide the JSD by beta (1 - beta), which makes it continuous with both KLs."""
    token_loss_clip: Positive | None = None
    """Upper bound of one token's divergence, which has no gradient there; off by default. OPSD's code (arXiv
    2601.18734) bounds each vocabulary entry's term at 0.05 instead, a tighter clip of the same kind."""
    position_weights: Annotated[list[float], BeforeValidator(listed), AfterValidator(ramp)] = []
    """Weigh tokens by their place in the response, LOW MIDDLE WIDTH: LOW + (1 - LOW) sigmoid((place - MIDDLE) / WIDTH),
    place from 0 to 1; falling where WIDTH is negative. Off by default, as in OPSD; PW-OPSD has 0.25 0.3 0.1."""
    loss_impl: Literal["linear", "reference"] = "linear"
    """linear keeps nothing of size tokens x vocabulary; reference is the plain formula, for comparison."""
    teacher_kl_coef: NotNegative = 1.0
    """grpo: weight of the teacher's log-ratio in the advantage."""
    teacher_logratio_clip: Positive | None = None
    """grpo: bound of the absolute log-ratio of one token."""


class Teacher(Room):
    """Who the teacher is."""

    teacher_model: TeacherModel = None
    """Teacher: hub id, folder or .gguf file. Several, by the rows' tags: '[{"model": "a", "tags": ["math"]}, ...]'."""
    teacher_model_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    teacher_adapters: Names = []
    """LoRA adapters of the teacher."""
    teacher_torch_dtype: Dtype = "auto"
    """Type of the teacher's weights."""
    teacher_quant_bits: QuantBits | None = None
    """Load the teacher's linear layers in 8 or 4 bits (needs the package bitsandbytes)."""
    teacher_device: DeviceName = None
    """Device of a teacher that is loaded here: cpu, cuda:1, ...; by default the student's."""
    teacher_model_server: TeacherServer = None
    """Address of a server that holds the teacher: `limbeck deploy`, or vLLM's OpenAI-compatible one. Several, by the
    rows' tags: '[{"url": "http://a:8000", "tags": ["math"]}, ...]'."""
    teacher_hidden_states: bool = False
    """Take hidden states from the server and run its output head here: the full vocabulary (needs `limbeck deploy
    --allow_hidden`)."""
    teacher_wire_bits: WireBits = 32
    """Bits of a log-probability on its way from `limbeck deploy`; 16 are rounded by less than a thousandth."""
    teacher_api_key: Annotated[str | None, Field(exclude=True, repr=False)] = None
    """Key of the server; better put into the environment as LIMBECK_TEACHER_API_KEY. Never written to a file."""
    teacher_timeout: Seconds = 60
    """How long one request to a server may take: seconds, or 2m."""
    teacher_patience: Seconds = 600
    """How long a server may stay away before the run saves and stops: seconds, or 10m."""
    teacher_concurrency: Count = 8
    """Requests to a server at a time, on each process."""
    teacher_cache: Path | None = None
    """Folder that keeps what the teacher said, so that no row is ever asked about twice; shared by runs."""
    teacher_source: TeacherSource = "auto"
    """model, server, or the student itself: its live weights, the base under its adapter, a frozen copy, or an
    average over the steps (ema). auto decides from the other flags."""
    teacher_ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """--teacher_source ema: share of the average that stays at each optimizer step."""
    teacher_tag_key: str = "dataset"
    """Column that says which of several teachers a row is sent to; `dataset` is the name of its file or data set."""
    teacher_prompt_template: str | None = None
    """Jinja over a row's columns, and prompt, response, messages: what the teacher reads in place of the last user
    message. Makes the column teacher_prompt (OPSD)."""
    offload_teacher_model: bool = False
    """Keep the teacher in main memory while it does not score."""


class Rollout(Room):
    """Sampling."""

    temperature: Temperature = 0.9
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with this much mass; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the K likeliest tokens; 0 is off."""
    min_p: Fraction = 0.0
    """Leave out tokens below this share of the likeliest one's probability; 0 is off."""
    repetition_penalty: Positive = 1.0
    """Divide the logits of tokens that have appeared; 1 is off."""
    max_completion_length: Count = 512
    """Longest sampled response in tokens."""
    num_generations: Count | None = None
    """Responses a prompt."""
    stop_at_teacher_eos: bool = False
    """Stop at the teacher's end tokens as well."""
    rollout_batch_size: Count | None = None
    """Sequences sampled at a time on a device; by default 32."""
    steps_per_generation: Count | None = None
    """Micro-batches taken from one generation batch, a multiple of --gradient_accumulation_steps; by default that
    number, so that every optimizer step learns from samples of its own."""
    dynamic_sample: bool = False
    """grpo: groups whose rewards are all equal give their places to further prompts (DAPO)."""
    max_resample_times: Count = 3
    """--dynamic_sample: how often a batch is filled up; groups without a spread stay after that."""
    rollout_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = None
    """grpo: weigh a token's loss by trainer over sampler probability, its own or its sequence's mean; truncate cuts the
    weights at the threshold, mask makes 0 of those above it. By default not at all."""
    rollout_importance_sampling_threshold: Positive = 2.0
    """Threshold of those weights."""
    log_rollout_offpolicy_metrics: bool = False
    """grpo: log how far trainer and sampler are apart; with a --rollout_importance_sampling_mode it always is."""


class Optim(Room):
    """The optimizer and its batches."""

    learning_rate: Positive | None = None
    """Peak learning rate; by default 1e-4 with LoRA and 1e-5 with all weights."""
    weight_decay: NotNegative = 0.1
    """AdamW's decay, on matrices only."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first decay rate."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's second decay rate."""
    adam_epsilon: Positive = 1e-8
    """AdamW's denominator guard."""
    lr_scheduler_type: Scheduler = "cosine"
    """Shape of the learning rate over the run, as transformers names it."""
    lr_scheduler_kwargs: dict[str, float | int | str | bool] = {}
    """More for the scheduler, as JSON: '{"min_lr": 1e-6}'."""
    warmup_ratio: Fraction = 0.05
    """Share of the steps over which the learning rate rises."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps over which the learning rate rises, instead of --warmup_ratio."""
    max_grad_norm: NotNegative = 1.0
    """Clip the gradient's norm; 0 is off."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    """Passes over the rows."""
    max_steps: Annotated[int, Field(ge=-1, le=2**31 - 1), AfterValidator(not_zero)] = -1
    """Optimizer steps, instead of --num_train_epochs; -1 is off."""
    per_device_train_batch_size: Count = 1
    """Sequences a micro-batch on each device."""
    per_device_eval_batch_size: Count | None = None
    """Sequences scored at a time in an evaluation; by default as in training."""
    gradient_accumulation_steps: Count | None = None
    """Micro-batches an optimizer step; by default what makes a total batch of 16 (grpo: one whole group)."""
    mixed_precision: Precision = "auto"
    """Type of the arithmetic; auto is bf16 on a GPU that multiplies in it, else no. Weights stay in their own type."""
    fsdp: Literal["none", "fsdp2"] = "none"
    """Shard the student's weights, gradients and optimizer state over the processes (docs/parallel.md)."""


class Run(Room):
    """The run: its folder, its checkpoints, its end."""

    preflight: bool = True
    """Compare student and teacher on a few rows before the first step. `limbeck plan --preflight` does it too, and
    loads the weights for it."""
    output_dir: Path | None = None
    """The run folder; by default output/<model>-<method>."""
    seed: Seed = 42
    """Seed of everything random."""
    save_strategy: Strategy = "steps"
    """When to write a checkpoint."""
    save_steps: Count = 500
    """Steps between checkpoints."""
    save_total_limit: Count | None = None
    """Checkpoints to keep, the best and the last always among them; by default all."""
    eval_strategy: Strategy | None = None
    """When to evaluate; by default every --eval_steps where there are held-out rows."""
    eval_steps: Count | None = None
    """Steps between evaluations; by default --save_steps."""
    eval_on_policy: bool | None = None
    """Evaluate on fresh samples too, under metric names of their own; by default for grpo."""
    logging_steps: Count = 5
    """Steps between lines of the log."""
    resume_from_checkpoint: str | None = None
    """auto (the run folder's last checkpoint), a checkpoint's folder, or none."""
    metric_for_best_model: str = "eval_loss"
    """Metric that names the best checkpoint; by default grpo's is one of the student's own answers."""
    greater_is_better: bool | None = None
    """Whether that metric should grow; by default decided from its name."""
    max_time: Seconds | None = None
    """Save and stop after this time: seconds, or 2h30m."""
    stop_on_collapse: bool = False
    """Save and stop, with exit status 3, where one of the figures below is beyond its limit in --collapse_window lines
    of the log in a row."""
    collapse_entropy: NotNegative = 0.01
    """Entropy of the student's next token below this, in nats: it always says the same."""
    collapse_truncated: Fraction = 0.9
    """Share of the samples that ran out of tokens above this: answers do not end."""
    collapse_repeated: Fraction = 0.6
    """Share of four-token pieces that stood earlier in the same sample above this: it goes round in circles."""
    collapse_window: Count = 3
    """Lines of the log in a row, of --logging_steps steps each."""
    use_cpu: bool = False
    """Leave the GPU alone."""
    debug: bool = False
    """Show tracebacks."""


class Report(Room):
    """Where the metrics go; metrics.jsonl is always written."""

    report_to: Annotated[list[Tracker], BeforeValidator(listed)] = []
    """Trackers to report to as well."""
    run_name: str | None = None
    """Name of the run in a tracker; by default the run folder's."""
    log_completions: bool = True
    """Write sampled responses to completions.jsonl."""
    log_privileged_kl: bool = False
    """Log how far its teacher_prompt moves the teacher (privileged_kl): KL between its views with and without, on two
    rows a logging step, for two forwards of the teacher each. For a teacher in this process."""
    report_html: bool = True
    """Write report.html."""


class Hub(Room):
    """The Hugging Face hub; the key is taken from HF_TOKEN or `hf auth login`."""

    push_to_hub: bool = False
    """Put the model and its card on the hub when it is done."""
    hub_model_id: str | None = None
    """Its id there, as ORGANISATION/NAME or NAME; by default the folder's name."""
    hub_private_repo: bool = False
    """Let only you see it, where it is not there yet."""


class Config(Room):
    """A training run: `limbeck rlhf`, `limbeck sft`, `limbeck.distil`."""

    model: Model
    data: Data = Data()
    method: Method = Method()
    policy: Policy = Policy()
    reward: Reward = Reward()
    teacher: Teacher = Teacher()
    rollout: Rollout = Rollout()
    optim: Optim = Optim()
    run: Run = Run()
    report: Report = Report()
    hub: Hub = Hub()
