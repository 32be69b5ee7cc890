"""The names of ms-swift 4.6's argument classes, each where it stands first."""

from __future__ import annotations

NAMES: dict[str, str] = {
    "AppArguments": """
        base_url studio_title is_multimodal lang verbose stream
    """,
    "BaseArguments": """
        tuner_backend tuner_type adapters external_plugins custom_register_path seed model_kwargs
        enable_npu_model_patch load_args load_data_args packing packing_length packing_num_proc packing_strategy
        lazy_tokenize use_hf hub_token ddp_timeout ddp_backend ignore_args_error use_swift_lora
    """,
    "DataArguments": """
        dataset val_dataset cached_dataset cached_val_dataset split_dataset_ratio data_seed dataset_num_proc
        load_from_cache_file dataset_shuffle val_dataset_shuffle streaming interleave_prob stopping_strategy
        shuffle_buffer_size download_mode columns strict remove_unused_columns disable_auto_column_mapping
        model_name model_author custom_dataset_info decision_drop_instructions decision_subsample_options
        decision_state_as_text decision_shuffle_fields
    """,
    "GenerationArguments": """
        max_new_tokens temperature top_k top_p repetition_penalty num_beams stop_words logprobs top_logprobs
        structured_outputs_regex
    """,
    "ModelArguments": """
        model model_type model_revision task_type torch_dtype attn_impl experts_impl new_special_tokens
        num_labels problem_type rope_scaling device_map max_memory max_model_len local_repo_path init_strategy
    """,
    "QuantizeArguments": """
        quant_method quant_bits hqq_axis bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant
        bnb_4bit_quant_storage
    """,
    "TemplateArguments": """
        template system max_length truncation_strategy max_pixels agent_template norm_bbox use_chat_template
        padding_side padding_free loss_scale sequence_parallel_size is_binary_loss_scale template_backend
        response_prefix enable_thinking preserve_thinking add_non_thinking_prefix disable_ignore_empty_think
    """,
    "DeployArguments": """
        host port api_key ssl_keyfile ssl_certfile owned_by served_model_name log_interval log_level
        max_logprobs vllm_use_async_engine
    """,
    "RolloutArguments": """
        use_gym_env multi_turn_scheduler max_turns vllm_enable_lora vllm_max_lora_rank gym_env context_manager
    """,
    "EvalArguments": """
        eval_dataset eval_limit eval_dataset_args eval_generation_config eval_output_dir eval_backend
        local_dataset eval_num_proc extra_eval_args eval_url
    """,
    "ExportArguments": """
        output_dir quant_n_samples quant_batch_size group_size to_cached_dataset template_mode to_ollama
        to_mcore to_hf mcore_model mcore_adapter thread_count test_convert_precision test_convert_dtype
        save_missing_weights push_to_hub hub_model_id hub_private_repo commit_message to_peft_format exist_ok
    """,
    "LmdeployArguments": """
        lmdeploy_tp lmdeploy_session_len lmdeploy_cache_max_entry_count lmdeploy_quant_policy
        lmdeploy_vision_batch_size
    """,
    "SglangArguments": """
        sglang_tp_size sglang_pp_size sglang_dp_size sglang_ep_size sglang_enable_ep_moe
        sglang_mem_fraction_static sglang_context_length sglang_disable_cuda_graph sglang_quantization
        sglang_kv_cache_dtype sglang_enable_dp_attention sglang_disable_custom_all_reduce
        sglang_speculative_algorithm sglang_speculative_num_steps sglang_speculative_eagle_topk
        sglang_speculative_num_draft_tokens
    """,
    "InferArguments": """
        infer_backend result_path write_batch_size metric max_batch_size val_dataset_sample
        reranker_use_activation
    """,
    "MergeArguments": """
        merge_lora safe_serialization max_shard_size
    """,
    "RewardModelArguments": """
        reward_model reward_adapters reward_model_type reward_model_revision reward_template
    """,
    "TeacherModelArguments": """
        teacher_model teacher_adapters teacher_model_type teacher_model_revision teacher_deepspeed
        teacher_model_server offload_teacher_model
    """,
    "PPOArguments": """
        num_ppo_epochs whiten_rewards kl_coef cliprange vf_coef cliprange_value gamma lam num_mini_batches
        local_rollout_forward_batch_size num_sample_generations response_length missing_eos_penalty
    """,
    "GRPOArguments": """
        num_generations reward_funcs reward_weights log_completions num_iterations
    """,
    "RLHFArguments": """
        rlhf_type ref_model ref_adapters ref_model_type ref_model_revision beta label_smoothing
        max_completion_length rpo_alpha ld_alpha discopop_tau loss_type loss_weights cpo_alpha simpo_gamma
        desirable_weight undesirable_weight center_rewards_coefficient sft_alpha lmbda seq_kd gkd_logits_topk
    """,
    "SamplingArguments": """
        prm_model orm_model sampler_type sampler_engine output_file resume override_exist_file
        num_return_sequences num_sampling_batch_size num_sampling_batches n_best_to_keep data_range
        prm_threshold easy_query_threshold engine_kwargs cache_files
    """,
    "SwanlabArguments": """
        swanlab_token swanlab_project swanlab_workspace swanlab_exp_name swanlab_notification_method
        swanlab_webhook_url swanlab_secret swanlab_sender_email swanlab_receiver_email swanlab_smtp_server
        swanlab_smtp_port swanlab_email_language swanlab_mode
    """,
    "SftArguments": """
        add_version create_checkpoint_symlink learning_rate eval_strategy fp16 bf16 zero_hpz_partition_size
        deepspeed_autotp_size fsdp
    """,
    "TunerArguments": """
        freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters
        trainable_parameters_regex freeze_llm freeze_vit freeze_aligner target_modules target_regex
        target_parameters modules_to_save lora_rank lora_alpha lora_dropout lora_bias lora_dtype lorap_lr_ratio
        use_rslora use_dora lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale
        lora_ga_stable_gamma init_weights fourier_n_frequency fourier_scaling boft_block_size boft_block_num
        boft_n_butterfly_factor boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial
        adapter_act adapter_length adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT
        adalora_beta1 adalora_beta2 adalora_orth_reg_weight llamapro_num_new_blocks llamapro_num_groups
        reft_layer_key reft_layers reft_rank reft_intervention_type reft_args
    """,
    "WebUIArguments": """
        server_name server_port share
    """,
    "MegatronExportArguments": """
        attention_backend recompute_granularity
    """,
    "RLHFMegatronArgumentsMixin": """
        mcore_ref_model mcore_ref_adapter reference_free f_divergence_type calculate_KL teacher_tag_key
        teacher_kl_coef generation_batch_size steps_per_generation num_generations_eval
        importance_sampling_level tau_pos tau_neg real_tau fipo_decay_rate fipo_clip_range fipo_clip_high_only
        fipo_safety_threshold epsilon epsilon_high delta use_vllm use_ray vllm_mode vllm_enable_prefix_caching
        vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_max_model_len vllm_enforce_eager
        vllm_limit_mm_per_prompt vllm_disable_cascade_attn vllm_max_num_seqs vllm_mm_processor_cache_gb
        vllm_engine_kwargs sleep_level offload_optimizer offload_model offload_bridge vllm_server_base_url
        vllm_server_host vllm_server_port vllm_server_timeout vllm_server_group_port cosine_min_len_value_wrong
        cosine_max_len_value_wrong cosine_min_len_value_correct cosine_max_len_value_correct cosine_max_len
        repetition_n_grams repetition_max_penalty soft_max_length soft_cache_length dynamic_sample
        max_resample_times overlong_filter scale_rewards advantage_estimator kl_in_reward
        wandb_log_unique_prompts rollout_importance_sampling_mode rollout_importance_sampling_threshold
        log_rollout_offpolicy_metrics off_policy_sequence_mask_delta log_entropy top_entropy_quantile
        router_replay_mode reward_model_plugin sync_ref_model ref_model_sync_steps ref_model_mixup_alpha
        async_generate move_model_batches completion_length_limit_scope vllm_server_pass_dataset
    """,
    "MegatronArguments": """
        micro_batch_size global_batch_size recompute_method recompute_num_layers recompute_modules train_iters
        num_train_epochs masked_softmax_fusion bias_dropout_fusion bias_activation_fusion apply_rope_fusion
        gradient_accumulation_fusion cross_entropy_loss_fusion cross_entropy_fusion_impl
        calculate_per_token_loss optimizer optimizer_cpu_offload optimizer_offload_fraction optimizer_cuda_graph
        use_precision_aware_optimizer main_grads_dtype main_params_dtype exp_avg_dtype exp_avg_sq_dtype
        manual_gc manual_gc_steps manual_gc_eval train_dataloader_shuffle dataloader_num_workers
        dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context data_sharding group_by_length te_rng_tracker
        data_parallel_random_init mlp_padding_free lr_warmup_init lr lr_decay_style lr_decay_iters
        lr_warmup_iters lr_warmup_fraction min_lr lr_wsd_decay_style lr_wsd_decay_iters weight_decay
        weight_decay_incr_style start_weight_decay end_weight_decay clip_grad adam_beta1 adam_beta2 adam_eps
        sgd_momentum muon_momentum muon_split_qkv muon_use_nesterov muon_scale_mode muon_fp32_matmul_prec
        muon_coefficient_type muon_num_ns_steps muon_tp_mode muon_extra_scale_factor muon_scalar_optimizer
        muon_lr muon_min_lr save_steps no_save_optim no_save_rng no_load_optim no_load_rng finetune
        perform_initialization use_cpu_initialization async_save save_total_limit metric_for_best_model
        greater_is_better use_persistent_ckpt_worker dist_ckpt_save_pre_mcore_014
        dist_ckpt_optim_fully_reshardable distrib_optim_fully_reshardable_mem_efficient local_rank
        use_distributed_optimizer use_megatron_fsdp strict_fsdp_dtensor_load data_parallel_sharding_strategy
        tensor_model_parallel_size pipeline_model_parallel_size decoder_first_pipeline_num_layers
        decoder_last_pipeline_num_layers account_for_embedding_in_pipeline_split
        account_for_loss_in_pipeline_split overlap_p2p_comm batch_p2p_comm align_param_gather sequence_parallel
        context_parallel_size cp_comm_type cp_partition_mode sequence_packing_scheduler tp_comm_overlap
        overlap_grad_reduce overlap_param_gather overlap_param_gather_with_optimizer_step align_grad_reduce
        nccl_comm_warmup virtual_pipeline_model_parallel_size microbatch_group_size_per_vp_stage
        pipeline_model_parallel_layout expert_model_parallel_size expert_tensor_parallel_size report_to
        logging_steps tensorboard_dir tensorboard_queue_size wandb_project wandb_exp_name eval_iters eval_steps
        fp8_format fp8_recipe fp8_param_gather fp8_amax_history_len fp8_amax_compute_algo fp4_format fp4_recipe
        fp4_param_gather apply_query_key_layer_scaling attention_softmax_in_fp32
        accumulate_allreduce_grads_in_fp32 moe_router_load_balancing_type moe_router_dtype
        moe_token_dispatcher_type moe_enable_deepep moe_grouped_gemm moe_permute_fusion moe_aux_loss_coeff
        moe_z_loss_coeff moe_shared_expert_overlap moe_layer_recompute moe_expert_capacity_factor
        moe_pad_expert_input_to_capacity moe_token_drop_policy engram_tokenizer_map mtp_num_layers
        mtp_loss_scaling_factor mtp_decoder_input_detach mtp_shared_weights bridge_backend save_safetensors
        vit_gradient_checkpointing vit_gradient_checkpointing_kwargs vit_attn_impl vit_lr aligner_lr
        dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss apply_dsa_kernel_fusion csa_dense_mode use_fused_mhc
        mhc_recompute_layer_num megatron_extra_kwargs language_model_only check_model apply_wd_to_qk_layernorm
        linear_decoupled_in_proj enable_dft_loss enable_channel_loss mrl_dims save_strategy callbacks
    """,
    "MegatronBaseArguments": """
        skip_megatron_init
    """,
    "RayArguments": """
        ray_exp_name device_groups
    """,
    "VllmArguments": """
        vllm_pipeline_parallel_size vllm_enable_expert_parallel vllm_disable_custom_all_reduce vllm_quantization
        vllm_reasoning_parser vllm_speculative_config vllm_data_parallel_size
    """,
    "RolloutTrainerArgumentsMixin": """
        min_p enable_flattened_weight_sync
    """,
    "GRPOArgumentsMixin": """
        chord_sft_dataset chord_sft_per_device_train_batch_size chord_enable_phi_function chord_mu_warmup_steps
        chord_mu_decay_steps chord_mu_peak chord_mu_valley advantage_reweight rlsd_lambda
        rlsd_reweight_clip_range rlsd_lambda_warmup_steps rlsd_lambda_decay_steps rlsd_negative_only
        sdar_loss_coef sdar_gate_beta
    """,
    "TrainArgumentsMixin": """
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
        gradient_checkpointing gradient_checkpointing_kwargs logging_first_step router_aux_loss_coef
        lr_scheduler_type lr_scheduler_kwargs use_liger_kernel acc_strategy max_epochs use_logits_to_keep
        ds3_gather_for_generation resume_only_model eval_metric early_stop_interval eval_use_evalscope
        use_galore galore_target_modules galore_rank galore_update_proj_gap galore_scale galore_proj_type
        galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant galore_proj_bits
        galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size lisa_activated_layers
        lisa_step_interval use_flash_ckpt logging_dir warmup_ratio
    """,
}
