"""The rest of ms-swift's flags, which none of its examples gives: Megatron's, those of tuners and other tasks, those of
transformers' TrainingArguments. One answer for many of them; the others stand in `limbeck.config.swift`."""

from __future__ import annotations

from limbeck.config.entries import Entry, NotNeeded, Refused, Renamed

_NO = ("false", "no", "0", "none")

GROUPS: tuple[tuple[Entry, str], ...] = (
    (Renamed("max_grad_norm"), "clip_grad"),
    (Renamed("adam_epsilon"), "adam_eps"),
    (
        NotNeeded("Megatron's own way to memory or speed"),
        "recompute_modules masked_softmax_fusion bias_dropout_fusion bias_activation_fusion apply_rope_fusion "
        "cross_entropy_fusion_impl optimizer_cuda_graph manual_gc manual_gc_steps manual_gc_eval data_sharding "
        "te_rng_tracker mlp_padding_free perform_initialization use_cpu_initialization async_save "
        "use_persistent_ckpt_worker dist_ckpt_save_pre_mcore_014 dist_ckpt_optim_fully_reshardable "
        "distrib_optim_fully_reshardable_mem_efficient use_distributed_optimizer strict_fsdp_dtensor_load "
        "overlap_p2p_comm batch_p2p_comm align_param_gather cp_comm_type cp_partition_mode sequence_packing_scheduler "
        "tp_comm_overlap overlap_grad_reduce overlap_param_gather overlap_param_gather_with_optimizer_step "
        "align_grad_reduce nccl_comm_warmup microbatch_group_size_per_vp_stage attention_softmax_in_fp32 "
        "accumulate_allreduce_grads_in_fp32 moe_token_dispatcher_type moe_enable_deepep moe_layer_recompute "
        "bridge_backend skip_megatron_init use_fused_mhc mhc_recompute_layer_num apply_dsa_kernel_fusion "
        "enable_flattened_weight_sync",
    ),
    (
        Refused("leave it out: Megatron is not used, and what it changes in the arithmetic is not here", _NO),
        "calculate_per_token_loss main_grads_dtype main_params_dtype exp_avg_dtype exp_avg_sq_dtype "
        "data_parallel_random_init weight_decay_incr_style start_weight_decay end_weight_decay fp8_format fp8_recipe "
        "fp8_param_gather fp8_amax_history_len fp8_amax_compute_algo fp4_format fp4_recipe fp4_param_gather "
        "apply_query_key_layer_scaling moe_router_load_balancing_type moe_router_dtype moe_z_loss_coeff "
        "moe_pad_expert_input_to_capacity moe_token_drop_policy engram_tokenizer_map mtp_loss_scaling_factor "
        "mtp_decoder_input_detach mtp_shared_weights dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss csa_dense_mode "
        "megatron_extra_kwargs apply_wd_to_qk_layernorm linear_decoupled_in_proj router_replay_mode",
    ),
    (
        Refused("use --fsdp fsdp2 with several processes, which shards the student (docs/parallel.md)", _NO),
        "use_megatron_fsdp data_parallel_sharding_strategy decoder_last_pipeline_num_layers "
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split pipeline_model_parallel_layout "
        "zero_hpz_partition_size deepspeed_autotp_size max_memory fsdp_config accelerator_config parallelism_config",
    ),
    (
        Refused("use --lr_scheduler_type with --warmup_ratio or --warmup_steps, and --lr_scheduler_kwargs"),
        "lr_warmup_init lr_decay_iters lr_wsd_decay_style lr_wsd_decay_iters",
    ),
    (
        Refused("leave it out: AdamW", _NO),
        "sgd_momentum muon_momentum muon_split_qkv muon_use_nesterov muon_scale_mode muon_fp32_matmul_prec "
        "muon_coefficient_type muon_num_ns_steps muon_tp_mode muon_extra_scale_factor muon_scalar_optimizer muon_lr "
        "muon_min_lr optim_args optim_target_modules",
    ),
    (
        Refused("leave it out: models are read and written as Hugging Face has them", _NO),
        "mcore_model mcore_adapter mcore_ref_model mcore_ref_adapter test_convert_dtype save_missing_weights "
        "to_peft_format use_flash_ckpt",
    ),
    (
        Refused("leave it out: plain LoRA adapters, or all weights with --tuner_type full", _NO),
        "freeze_parameters_regex freeze_parameters_ratio trainable_parameters trainable_parameters_regex "
        "target_parameters lorap_lr_ratio fourier_n_frequency fourier_scaling boft_block_size boft_block_num "
        "boft_n_butterfly_factor boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial "
        "adapter_act adapter_length adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT "
        "adalora_beta1 adalora_beta2 adalora_orth_reg_weight reft_layer_key reft_layers reft_rank "
        "reft_intervention_type reft_args use_swift_lora",
    ),
    (
        Refused("leave it out: Limbeck distils, and does not train on preferences, by PPO or reward models", _NO),
        "reward_adapters reward_model_type reward_model_revision reward_template num_ppo_epochs whiten_rewards kl_coef "
        "cliprange vf_coef cliprange_value lam num_mini_batches local_rollout_forward_batch_size "
        "num_sample_generations response_length missing_eos_penalty ld_alpha discopop_tau loss_weights cpo_alpha "
        "simpo_gamma desirable_weight undesirable_weight center_rewards_coefficient reference_free f_divergence_type "
        "calculate_KL label_smoothing_factor",
    ),
    (
        Refused("leave it out: --loss_type grpo, bnpo, dr_grpo, dapo, cispo or sapo has no such part", _NO),
        "advantage_reweight rlsd_lambda rlsd_reweight_clip_range rlsd_lambda_warmup_steps rlsd_lambda_decay_steps "
        "rlsd_negative_only sdar_loss_coef sdar_gate_beta real_tau off_policy_sequence_mask_delta "
        "completion_length_limit_scope",
    ),
    (
        Refused("leave it out: language models only", _NO),
        "problem_type reranker_use_activation mrl_dims norm_bbox language_model_only decision_drop_instructions "
        "decision_subsample_options decision_state_as_text decision_shuffle_fields is_multimodal",
    ),
    (
        Refused("leave it out, and set it in the tokenizer's own chat template", _NO),
        "preserve_thinking disable_ignore_empty_think is_binary_loss_scale",
    ),
    (
        Refused("give the rows as files or hub ids on --dataset; --columns renames their columns", _NO),
        "stopping_strategy shuffle_buffer_size download_mode disable_auto_column_mapping custom_dataset_info "
        "local_dataset length_column_name label_names",
    ),
    (
        Refused("leave it out: responses are sampled token by token, with no grammar", _NO),
        "structured_outputs_regex logprobs top_logprobs context_manager",
    ),
    (
        Refused("measure on rows of yours: `limbeck eval --val_dataset rows.jsonl --reward_funcs accuracy`", _NO),
        "eval_output_dir eval_num_proc extra_eval_args metric eval_metric include_for_metrics batch_eval_metrics",
    ),
    (
        Refused("leave it out; `limbeck generate` writes all answers, and goes on with an unfinished file", _NO),
        "resume num_sampling_batches n_best_to_keep easy_query_threshold",
    ),
    (
        Refused("leave it out: behind a proxy that speaks TLS, or on this machine only"),
        "ssl_keyfile ssl_certfile base_url studio_title lang server_name server_port share owned_by",
    ),
    (
        Refused("leave it out; `limbeck export --gguf_type q8_0` writes 8-bit weights", _NO),
        "hqq_axis group_size template_mode thread_count",
    ),
    (
        Refused("--torch_dtype, --attn_impl and --model_revision are flags of their own; there is no more", _NO),
        "model_kwargs init_strategy use_cache",
    ),
    (
        Refused("leave it out: the model is computed as it stands, in the type that --mixed_precision says", _NO),
        "bf16_full_eval fp16_full_eval tf32 torch_compile torch_compile_backend torch_compile_mode full_determinism "
        "auto_find_batch_size",
    ),
    (Refused("use --gradient_checkpointing true", _NO), "activation_checkpointing activation_checkpointing_kwargs"),
    (Refused("use --logging_steps", ("steps",)), "logging_strategy"),
    (
        Refused("leave it out: evaluations come every --eval_steps, or after each epoch", _NO),
        "eval_delay eval_on_start",
    ),
    (
        Refused("use --push_to_hub with --hub_model_id; the model is pushed once, when it is done", _NO),
        "hub_always_push hub_revision commit_message",
    ),
    (
        Refused("leave it out: a run is resumed exactly, with --resume_from_checkpoint", _NO),
        "ignore_data_skip restore_callback_states_from_checkpoint enable_jit_checkpoint",
    ),
    (Refused("set it in the environment: WANDB_PROJECT, SWANLAB_PROJECT, TRACKIO_PROJECT", _NO), "project"),
    (
        Refused("leave it out: trackers write into the run folder, --report_to names them", _NO),
        "trackio_space_id trackio_bucket_id trackio_static_space_id tensorboard_dir tensorboard_queue_size",
    ),
    (
        NotNeeded("what a run prints and logs is always the same"),
        "verbose log_level log_level_replica log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen "
        "skip_memory_metrics prediction_loss_only ignore_args_error",
    ),
    (NotNeeded("the command says what is done"), "do_train do_eval do_predict"),
    (
        NotNeeded("rows are rendered before the first step, and none is left out of an epoch", _NO),
        "dataloader_drop_last dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy",
    ),
    (
        NotNeeded("processes are set up by accelerate"),
        "local_rank ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph eval_do_concat_batches "
        "eval_use_gather_object enable_npu_model_patch liger_kernel_config",
    ),
    (NotNeeded("weights are always safetensors", ("true",)), "safe_serialization"),
)

REST: dict[str, Entry] = {name: entry for entry, names in GROUPS for name in names.split()}
