"""Which tests wait: another variant or a neighbour holds nearly the same property in the quick half.

The quick half of the tests is what every change waits for. `python -m pytest -m slow` runs the others.
"""

# {file: {tests that are slow, …}, …}
SLOW = {
    "data/test_toys.py": {"test_dry_run_and_every_process", "test_samples_are_points_and_pictures_show_them"},
    "evaluation/test_diagnose.py": {"test_one_image_is_reached_on_straight_lines"},
    "evaluation/test_evaluate.py": {
        "test_a_full_disk_is_one_line",
        "test_classes_that_were_asked_for",
        "test_samples_of_other_settings_lie_beside_each_other",
        "test_scores_of_other_settings_do_not_replace_the_score",
    },
    "evaluation/test_score.py": {"test_stats_and_audit_on_the_command_line"},
    "evaluation/test_searched_schedule.py": {"test_a_run_is_scored_on_its_searched_grid"},
    "exchange/test_export.py": {
        "test_a_guide_stays_behind",
        "test_an_image_conditional_network",
        "test_imported_weights_are_exported_as_imported",
        "test_sampling_from_the_exported_folder",
    },
    "exchange/test_import.py": {"test_a_training_state", "test_moving_averages_of_pfgm", "test_the_command_line"},
    "flow/test_field.py": {
        "test_derivatives_among_copies",
        "test_memory_of_the_streamed_field_does_not_grow_with_the_data",
        "test_the_exact_denoiser_streams_where_it_must",
        "test_transformed_by_jax",
    },
    "flow/test_guidance.py": {
        "test_dropped_labels_and_their_targets",
        "test_the_labelled_field_of_digits_gives_digits_of_that_class",
    },
    "inference/test_generator_inference.py": {"test_log_likelihood", "test_reversible_gives_the_same_bytes"},
    "inference/test_generator_restore.py": {"test_an_operator_of_ones_own"},
    "inference/test_likelihood.py": {
        "test_density_integrates_to_one",
        "test_hutchinson_is_unbiased_and_says_its_error",
        "test_point_charges",
    },
    "inference/test_image_conditional.py": {"test_training_tells_it"},
    "lessons/test_lessons.py": {
        "test_lines_end_at_their_charges",
        "test_without_z_the_disk_collapses_and_with_z_it_does_not",
    },
    "metrics/test_classifier.py": {"test_the_seed_decides"},
    "metrics/test_metrics.py": {"test_importing_the_metrics_does_not_import_sklearn"},
    "metrics/test_intervals.py": {"test_intervals_cover_what_the_metric_gives_on_average"},
    "test_generator.py": {
        "test_a_large_set_in_parts",
        "test_guidance_is_that_of_the_network_without_its_label",
        "test_guidance_of_a_solver_that_draws_noise",
        "test_per_sample_steps_do_not_depend_on_the_batch",
        "test_progress_changes_nothing_and_reaches_the_end",
        "test_settings_in_place_of_the_runs_own",
        "test_the_states_of_the_first_samples_come_from_the_same_solve",
        "test_trajectory_runs_from_the_prior_to_the_data",
    },
    "test_launch_tpu.py": {
        "test_babysitting_ends_at_a_mistake_and_after_five_failures",
        "test_babysitting_outlives_preemption_a_lost_worker_and_a_failed_setup",
    },
    "test_main.py": {
        "test_a_guide_from_a_folder",
        "test_dry_run_says_what_it_would_do_and_writes_nothing",
        "test_samples_of_classes_with_guidance",
    },
    "test_recipes.py": {"test_a_step_at_every_size", "test_dry_run_without_the_file"},
    "training/test_advise.py": {"test_the_mode_in_earnest"},
    "training/test_averages.py": {"test_a_run_keeps_them_and_is_used_at_any_length"},
    "training/test_microbatch.py": {"test_parts_see_the_whole_large_batch"},
    "training/test_not_finite.py": {"test_a_run_ends_at_such_a_step_and_says_what_it_was"},
    "training/test_saver.py": {"test_training_does_not_wait_for_the_disk"},
    "training/test_train.py": {
        "test_a_death_between_checkpoint_and_evaluation_is_made_good",
        "test_a_death_between_checkpoint_and_picture_is_made_good",
        "test_a_folder_that_vanishes_is_one_line_and_a_bug_keeps_its_traceback",
        "test_a_full_disk_is_one_line_and_the_last_checkpoint_stays",
        "test_a_longer_run_continues_a_finished_one",
        "test_a_run_starts_from_other_weights",
        "test_a_stop_while_a_picture_is_drawn_saves_nothing_twice",
        "test_a_stop_while_the_network_is_evaluated_leaves_it_and_saves",
        "test_a_streamed_run_is_a_resident_one",
        "test_eight_devices_give_the_gradient_of_one_in_float32",
        "test_speed_counts_the_time_that_a_log_line_takes",
        "test_the_checkpoint_with_the_lowest_validation_loss_is_kept",
        "test_validation_loss_counts_each_example_once_whatever_the_padding",
    },
    "training/test_tune.py": {"test_stages_follow_the_step"},
}

# {file: {test: {patterns of its variants that are quick; all others are slow, …}, …}, …}
QUICK = {
    "exchange/test_import.py": {"test_networks_of_edm_denoise_as_in_pytorch": {"ve"}},
    "flow/test_diffusion.py": {
        "test_second_moment_against_float64": {"256-1", "256-1000000.0", "7-3.5", "7-inf", "None-128"}
    },
    "flow/test_field.py": {
        "test_float32_derivatives_are_finite": {"128-None"},
        "test_derivatives_against_finite_differences": {"3.5-7"},
        "test_float32_field_against_float64": {"1", "inf"},
        "test_hundreds_of_copies_of_an_image": {"*-exact-*", "*-noisy-*"},
        "test_a_query_that_is_not_finite_has_no_finite_field": {"-inf-100", "nan-None"},
    },
    "flow/test_flow.py": {
        "test_samples_are_the_charges_in_their_proportions": {"dpmpp_3m-*", "heun-*", "rk45-*-inf"},
        "test_the_flow_carries_the_noised_law": {"1-heun-*", "128-heun-*", "inf-rk45-*"},
        "test_all_solvers_agree_in_the_limit": {"inf"},
        "test_order_of_equal_steps_in_log_sigma": {"rk45-gaussian-4.7-5.3", "tsit5-points-4.7-6.0"},
        "test_order_of_fixed_steps": {"*-gaussian"},
    },
    "inference/test_generator_restore.py": {"test_noiseless_measurements_are_met": {"superres"}},
    "inference/test_latents.py": {
        "test_solvers_run_backwards": {"heun-128.0", "rk45-128.0", "ipndm-128.0", "dpmpp_2m-128.0"}
    },
    "inference/test_restoration.py": {"test_few_sweeps_of_split_gibbs_end_where_the_data_are": {"7-*"}},
    "models/test_networks.py": {
        "test_labels_augmentation_and_dropout_by_example": {"dit", "ncsnpp"},
        "test_remat_keeps_less_for_the_same_gradient": {"dit", "ncsnpp"},
    },
    "models/test_parity_networks.py": {
        "test_published_network": {"edm_ncsnpp"},
        "test_parameter_counts": {
            "ddpmpp-32-changes0-55732739",
            "ncsnpp-32-changes2-56400643",
            "ncsnv2-32-changes7-29694083",
        },
    },
    "sampling/test_adaptive.py": {
        "test_float32_states_where_float64_is_enabled": {"[!rt]*"},
        "test_a_sample_with_its_own_steps_does_not_depend_on_its_batch": {"rk45"},
        "test_samples_do_not_depend_on_the_number_of_devices": {"options2"},
        "test_own_steps_cost_at_most_a_quarter_more_calls": {"tsit5-128"},
        "test_rk45_against_scipy": {"1", "inf"},
        "test_evaluations_counted_are_the_calls_made": {
            "rk45-denoise-options0",
            "rk45-jump-options7",
            "tsit5-denoise-options5",
        },
        "test_stops_where_the_field_is_not_finite": {"rk45-nan-options0", "tsit5-inf-options2"},
        "test_frames": {"False"},
    },
    "sampling/test_consistency.py": {
        "test_flow_map_is_that_of_scipy": {"1"},
        "test_every_evaluation_keeps_the_laws": {"1-*", "inf-*"},
    },
    "sampling/test_posterior_trace.py": {"test_noise_by_the_curve_is_nearly_that_of_the_exact_field": {"sde-*"}},
    "sampling/test_reverse_sde.py": {"test_marginals": {"1-2.0"}},
    "sampling/test_search.py": {"test_a_searched_grid_leads_nearer_to_the_flow_s_end": {"inf"}},
    "sampling/test_stochastic.py": {
        "test_mean_and_covariance_are_those_of_the_formulas": {
            "ddpm-ancestral-options18",
            "ddpm-ancestral-options19",
            "ddpm-predictor_corrector-options21",
            "edm-heun-options22",
            "subvp-euler_maruyama-options11",
            "ve-ddim-options14",
            "ve-predictor_corrector-options17",
            "vp-ancestral-options0",
            "vp-ddim-options3",
            "vp-euler_maruyama-options4",
            "vp-heun-options8",
            "vp-predictor_corrector-options7",
        }
    },
    "storage/test_torch_files_damage.py": {
        "test_damage_never_escapes_as_another_error": {
            "checkpoint-legacy.pth",
            "checkpoint.pth",
            "imported.py",
            "inception.npz",
            "inception.py",
            "network.pkl",
            "network_pfgm_ddpmpp.npz",
            "networks.py",
            "plain.pkl",
            "training-state.pt",
            "x.safetensors",
        }
    },
    "test_generator.py": {
        "test_another_D_changes_the_prior_alone": {"inf"},
        "test_a_sample_has_noise_of_its_own": {"ddpm-ancestral"},
    },
    "test_recipes.py": {
        "test_recipe": {
            "cifar10:process=edm,network=ddpmpp,conditional",
            "cifar10:process=edm,network=ncsnpp",
            "cifar10:process=pfgm,network=ddpmpp",
            "cifar10:process=pfgmpp,network=ddpmpp",
            "cifar10:process=pfgmpp,network=ncsnpp,D=2048",
            "cifar10:process=subvp,network=ddpmpp",
            "cifar10:process=subvp,network=ddpmpp_deep",
            "cifar10:process=subvp,network=ncsnpp",
            "cifar10:process=subvp,network=ncsnpp_deep",
            "cifar10:process=ve,network=ncsnv2",
            "lsun_bedroom256:process=pfgm,network=ddpmpp",
        },
    },
    "training/test_microbatch.py": {"test_parts_are_the_whole_in_float64_over_twenty_steps": {"mlp-8"}},
    "training/test_not_finite.py": {"test_a_step_that_is_not_finite_changes_nothing_nor_do_those_after_it": {"loss"}},
    "training/test_train.py": {"test_eight_devices_train_as_one_in_float64": {"mlp-posterior mean, labels"}},
}
