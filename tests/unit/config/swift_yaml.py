"""ms-swift's YAML and JSON files (examples/ray, examples/yaml, examples/sampler, multi-node/ray), as data: file -> the
command that takes it, its text, the keys that are refused here. Model and data set names are ours."""

from __future__ import annotations

_MCORE = """
dataset: d#2000
dataset_num_proc: 4
split_dataset_ratio: 0
micro_batch_size: 1
global_batch_size: 16
num_train_epochs: 1
logging_steps: 1
seed: 42
max_length: 8192
max_completion_length: 8192
attention_backend: flash
lr: 1e-6
lr_warmup_fraction: 0.0
temperature: 1.0
use_vllm: true
offload_model: true
offload_optimizer: true
"""
_TOGETHER = "colocate_groups: [[train, rollout]]\nsleep_level: 1\n"
_ROLES = """
train:
  gpus: 4
  tuner_type: lora
  lora_rank: 8
  lora_alpha: 32
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 1
  expert_model_parallel_size: 1
  context_parallel_size: 1
  output_dir: out

rollout:
  gpus: 4
  vllm_tensor_parallel_size: 2
  vllm_gpu_memory_utilization: 0.4
  vllm_max_model_len: 16384
"""
_ALONE = _ROLES.replace("size: 2", "size: 1")
_GKD = f"""
rlhf_type: gkd
model: S
gkd_logits_topk: 64
{_MCORE}
padding_free: true
sequence_parallel: true
min_lr: 1e-6
beta: 0.5
sft_alpha: 0.0
finetune: true
no_save_optim: true
no_save_rng: true
recompute_granularity: selective
"""
_NEAR = "teacher_model: T\noffload_teacher_model: true\n"
_GRPO = f"""
rlhf_type: grpo
model: S
{_MCORE}
num_generations: 8
steps_per_generation: 4
padding_free: false
cross_entropy_loss_fusion: true
gradient_accumulation_fusion: false
beta: 0
"""
_REWARDED = """
epsilon: 0.2
epsilon_high: 0.28
loss_type: grpo
advantage_estimator: grpo
importance_sampling_level: token
log_rollout_offpolicy_metrics: true
reward_funcs: [format]
"""
_LAKE = """
external_plugins: plugin.py
multi_turn_scheduler: gym_scheduler
gym_env: frozen_lake
use_gym_env: true
max_turns: 10
"""
_OFF = "global_batch_size use_vllm offload_model offload_optimizer vllm_max_model_len"
_TEACHER = """
teacher:
  gpus: 4
  model: T
  vllm_tensor_parallel_size: 1
  vllm_max_model_len: 16384
  vllm_engine_kwargs: {"max_logprobs": 64}
"""

RAY: dict[str, tuple[str, str, str]] = {
    "ray/gkd/rollout_colocate_teacher_colocate": (
        "rlhf",
        _GKD + _NEAR + _TOGETHER + _ROLES,
        f"{_OFF} min_lr sleep_level tensor_model_parallel_size",
    ),
    "ray/gkd/rollout_colocate_teacher_standalone": (
        "rlhf",
        _GKD + _TOGETHER + _ROLES + _TEACHER,
        f"{_OFF} min_lr sleep_level tensor_model_parallel_size teacher.vllm_tensor_parallel_size "
        "teacher.vllm_max_model_len teacher.vllm_engine_kwargs",
    ),
    "ray/gkd/rollout_separate_teacher_colocate": (
        "rlhf",
        _GKD + _NEAR + _ROLES,
        f"{_OFF} min_lr tensor_model_parallel_size",
    ),
    "ray/gkd/multi_turn_colocate": (
        "rlhf",
        _GKD + _NEAR + _TOGETHER + _ROLES + "enable_thinking: false\nmulti_turn_scheduler: tips\nmax_turns: 2\n",
        f"{_OFF} min_lr sleep_level tensor_model_parallel_size enable_thinking multi_turn_scheduler max_turns",
    ),
    "yaml/megatron_ray/ray_gkd_colocate": (
        "rlhf",
        _GKD + _NEAR + _TOGETHER + _ALONE,
        f"{_OFF} min_lr sleep_level",
    ),
    "yaml/megatron_ray/ray_gkd_teacher_server": (
        "rlhf",
        _GKD + _TOGETHER + _ALONE + "teacher_model_server: http://localhost:8000/v1\n",
        f"{_OFF} min_lr sleep_level",
    ),
    "ray/grpo/ray_grpo_text_test": (
        "rlhf",
        _GRPO + _REWARDED + _TOGETHER + _ALONE + "train_iters: 5\nmin_lr: 5e-5\n",
        f"{_OFF} min_lr sleep_level",
    ),
    "ray/opd_rl/opd_rl_colocate": (
        "rlhf",
        _GRPO.replace("generations: 8", "generations: 1") + _NEAR + _TOGETHER + _ALONE + "teacher_kl_coef: 1.0\n",
        f"{_OFF} sleep_level",
    ),
    "yaml/megatron_ray/ray_grpo_colocate": (
        "rlhf",
        _GRPO + "reward_funcs: [format]\n" + _TOGETHER + _ROLES + "  vllm_enforce_eager: false\n",
        f"{_OFF} sleep_level tensor_model_parallel_size vllm_enforce_eager",
    ),
    "yaml/megatron_ray/ray_grpo_separate": (
        "rlhf",
        _GRPO + _REWARDED + _ALONE + "vllm_mode: colocate\nsystem: Hi\nmin_lr: 5e-5\noverlong_filter: false\n",
        f"{_OFF} vllm_mode min_lr",
    ),
    "yaml/megatron_ray/ray_grpo_frozen_lake": (
        "rlhf",
        _GRPO + _LAKE + _TOGETHER + _ALONE + "bf16: true\ntop_k: 80\ndynamic_sample: false\n",
        f"{_OFF} sleep_level multi_turn_scheduler gym_env use_gym_env max_turns",
    ),
    "multi-node/ray/sft": (
        "sft",
        "model: S\ndataset: d#1000\ntrain_type: lora\ntarget_modules:\n  - q_proj\n  - v_proj\nattn_impl: flash_attn\n"
        "learning_rate: 1e-4\nsplit_dataset_ratio: 0.0\ndeepspeed: zero3\nmodel_name: me\nmodel_author: me\n"
        "use_ray: true\ndevice_groups:\n  nproc_per_node: 4\n  default:\n    device: GPU\n"
        "    ranks: list(range(0, 4))\n    workers:\n      - default\n",
        "deepspeed model_name model_author",
    ),
    "sampler/ray/sampling": (
        "generate",
        "ray_exp_name: sampling\nuse_ray: true\nmodel: S\ndataset: d#16\nnum_return_sequences: 2\nmax_length: 2048\n"
        "system: Hi\nload_args: false\nsampler_engine: vllm\nmax_new_tokens: 768\norm_model: math\nprm_model: P\n"
        "override_exist_file: true\nnum_sampling_per_gpu_batch_size: 4\ntop_p: 1.0\ntemperature: 1.0\n"
        "prm_threshold: 0.8\noutput_file: sampling.jsonl\ndevice_groups:\n  nproc_per_node: 4\n",
        "sampler_engine orm_model prm_model override_exist_file prm_threshold",
    ),
    "sampler/distill/distill": (
        "generate",
        "use_ray: true\nsampler_type: distill\nsampler_engine: client\nmodel: T\nstream: true\ndataset: d#16\n"
        "num_return_sequences: 8\nmax_new_tokens: 768\nnum_sampling_batch_size: 4\noutput_file: sampling.jsonl\n"
        'engine_kwargs: \'{"base_url":"http://host/v1"}\'\n',
        "sampler_type sampler_engine engine_kwargs",
    ),
}

_ENV = "ENV:\n  MAX_PIXELS: '1003520'\n  PYTORCH_CUDA_ALLOC_CONF: 'expandable_segments:True'\n"
_LISTED = (
    '{"model": "S", "torch_dtype": "bfloat16", "tuner_type": "lora", "target_modules": "all-linear", '
    '"dataset": ["a#500", "b#500"], "split_dataset_ratio": 0.0, "model_author": "me", "learning_rate": 1e-4, '
    '"output_dir": "out", "dataloader_num_workers": 4, "deepspeed": "zero2"}'
)

PLAIN: dict[str, tuple[str, str, str]] = {
    "yaml/sft and yaml/deepspeed/sft": (
        "sft",
        "model: S\ntorch_dtype: bfloat16\ntrain_type: lora\nlora_rank: 8\ndataset:\n  - 'a#500'\n  - 'b#500'\n"
        "split_dataset_ratio: 0.0\nmodel_author: me\nlearning_rate: 1e-4\neval_steps: 50\nsave_steps: 50\n"
        "output_dir: out\ndataloader_num_workers: 4\ndeepspeed: zero2\n",
        "model_author deepspeed",
    ),
    "yaml/deepspeed/sft.json": ("sft", _LISTED, "model_author deepspeed"),
    "yaml/deepspeed/infer": ("infer", "model: S\nmax_new_tokens: 1024\ntemperature: 0\nstream: true\n", ""),
    "yaml/megatron/infer": (
        "infer",
        f"{_ENV}model: S\nstream: true\nenable_thinking: false\nmax_new_tokens: 512\nload_data_args: true\n",
        "ENV enable_thinking load_data_args",
    ),
    "yaml/megatron/sft": (
        "sft",
        f"{_ENV}model: S\ntuner_type: lora\ndataset:\n  - 'a#500'\nload_from_cache_file: true\npadding_free: true\n"
        "packing: true\nloss_scale: ignore_empty_think\nadd_non_thinking_prefix: true\nsave_safetensors: true\n"
        "micro_batch_size: 1\nglobal_batch_size: 4\nlr: 1e-4\nlr_warmup_fraction: 0.05\nmin_lr: 1e-5\n"
        "freeze_llm: false\nfreeze_vit: true\nexpert_model_parallel_size: 4\nsequence_parallel: true\n"
        "moe_permute_fusion: true\nmoe_aux_loss_coeff: 1e-6\nrecompute_granularity: full\n",
        "ENV add_non_thinking_prefix global_batch_size min_lr expert_model_parallel_size moe_aux_loss_coeff",
    ),
}

FILES: dict[str, tuple[str, str, str]] = RAY | PLAIN
