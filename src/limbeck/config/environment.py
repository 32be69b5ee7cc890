"""Environment variables of ms-swift's commands, and what they do here. `docs/coming-from-ms-swift.md` lists them."""

from __future__ import annotations

from collections.abc import Mapping

# those that ask for processes, as torchrun has them
LAUNCH: Mapping[str, str] = {
    "NPROC_PER_NODE": "--nproc_per_node",
    "NNODES": "--nnodes",
    "NODE_RANK": "--node_rank",
    "MASTER_ADDR": "--master_addr",
    "MASTER_PORT": "--master_port",
}

_BY_TORCH = "the same: torch reads it"
_IMAGES = "not read: text models only"
_HUB = "not read: models and data sets come from the Hugging Face hub or from folders"
_TRACKER = "the same, with `--report_to {}`: the tracker reads it"

VARIABLES: Mapping[str, str] = {
    "NPROC_PER_NODE": "the same for `limbeck rlhf` and `limbeck sft`, by torchrun; other commands are one process",
    "NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT": "the same: handed to torchrun; run the command on every machine",
    "CUDA_VISIBLE_DEVICES": _BY_TORCH,
    "PYTORCH_CUDA_ALLOC_CONF, PYTORCH_ALLOC_CONF": _BY_TORCH,
    "NCCL_DEBUG, NCCL_SOCKET_IFNAME and the like": "the same: NCCL reads it",
    "OMP_NUM_THREADS": "the same: torch reads it; with several processes it is 1 unless set",
    "CUDA_DEVICE_MAX_CONNECTIONS": "not needed: Megatron's",
    "MAX_PIXELS, VIDEO_MAX_PIXELS, FPS_MAX_FRAMES, IMAGE_MAX_TOKEN_NUM, ENABLE_AUDIO_OUTPUT": _IMAGES,
    "USE_HF, MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN": _HUB,
    "HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE": "read by the libraries of the Hugging Face hub",
    "WANDB_API_KEY, WANDB_PROJECT": _TRACKER.format("wandb"),
    "SWANLAB_API_KEY, SWANLAB_PROJECT": _TRACKER.format("swanlab"),
    "OPENAI_API_KEY": "`LIMBECK_TEACHER_API_KEY`, the key of a teacher behind an address",
    "VLLM_USE_V1 and the like": "the same, for `limbeck deploy --infer_backend vllm`: vLLM reads it",
}
