"""The mutations that mutations.py applies: one for every house test, and those of parity tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change of one file, and the test that must notice it."""

    name: str
    file: str
    old: str | None  # text to replace, once; None: `new` is appended (to a new file if need be)
    new: str
    test: str  # pytest's node id


def _house(name: str, file: str, old: str | None, new: str, test: str) -> Mutation:
    return Mutation(f"house: {name}", file, old, new, f"parity_tests/test_house.py::test_{test}")


def _parity(name: str, file: str, old: str, new: str, test: str) -> Mutation:
    return Mutation(name, file, old, new, f"parity_tests/{test}")


LONG_FUNCTION = "\n\ndef far_too_long():\n" + "    x = 1\n" * 61
HOUSE = [
    _house("ops import train", "nplm/ops/linear.py", None, "\nfrom nplm.train import step\n",
           "every_import_goes_in_an_allowed_direction"),
    _house("a new room without a rule", "nplm/extra.py", None, '"""New."""\n',
           "every_import_goes_in_an_allowed_direction"),
    _house("nn imports torch", "nplm/nn/init.py", None, "\nimport torch\n",
           "torch_is_imported_only_in_its_own_rooms"),
    _house("graph imports the backend", "nplm/autograd/graph.py", None,
           "\nfrom nplm import backend\n", "graph_reads_alone_and_is_short"),
    _house("a kernel imports an op", "nplm/backend/numpy_kernels.py", None,
           '"""Kernels."""\nfrom nplm.ops import linear\n', "kernel_modules_import_only_op"),
    _house("a file of 400 more lines", "nplm/ops/norm.py", None, "\n# more" * 400,
           "no_file_and_no_function_is_longer_than_its_cap"),
    _house("a function of 61 lines", "nplm/ops/norm.py", None, LONG_FUNCTION,
           "no_file_and_no_function_is_longer_than_its_cap"),
    _house("an exception for a file that is gone", "parity_tests/house.py",
           "CAP_EXCEPTIONS: dict[str, str] = {}",
           'CAP_EXCEPTIONS: dict[str, str] = {"nplm/gone.py": "why"}',
           "every_cap_exception_is_still_needed"),
    _house("a file without a docstring", "nplm/ops/extra.py", None, "x = 1\n",
           "every_file_opens_with_a_short_docstring"),
    _house("300 lines more to read", "nplm/train/step.py", None, "\nx = 1" * 300,
           "the_reading_order_fits_an_evening"),
    _house("the README leaves out a file to read", "README.md", "`nplm/autograd/op.py`", "op",
           "the_readme_gives_the_same_reading_order"),
    _house("a file that the tree does not list", "docs/unlisted.md", None, "# Unlisted\n",
           "the_readme_tree_lists_every_file"),
    _house("an export named like its module", "nplm/ops/__init__.py", None,
           "\nfrom nplm.ops.dropout import dropout\n",
           "no_module_has_the_name_of_something_its_package_exports"),
    _house("import nplm loads tqdm", "nplm/__init__.py", None, "\nimport tqdm\n",
           "importing_nplm_loads_no_third_party_module_but_numpy"),
    _house("the loop needs safetensors", "nplm/train/loop.py", None, "\nimport safetensors\n",
           "training_in_memory_works_with_numpy_alone"),
]  # fmt: skip

PARITY = [
    _parity("the quotient's gradient has the wrong sign", 'nplm/ops/elementwise.py',
             'unbroadcast(xp, -dx * z, y)',
             'unbroadcast(xp, dx * z, y)',
             'test_ops_parity.py::test_values_and_gradients_equal_torch[cpu-div]'),
    _parity("layer_norm's gradient forgets the mean", 'nplm/ops/norm.py',
             'dx = inv * (dn - mean_dn - n *',
             'dx = inv * (dn - n *',
             'test_ops_parity.py::test_gradients_equal_finite_differences[cpu-layer_norm]'),
    _parity('the causal mask hides a token from itself', 'nplm/ops/attention.py',
             '-math.inf, scores), 1)',
             '-math.inf, scores), 0)',
             'test_functional.py::test_scaled_dot_product_attention_equals_torch[cpu]'),
    _parity('ignored rows are multiplied, not chosen', 'nplm/ops/loss.py',
             'return xp.where(counted, dy, xp.zeros((), dy))',
             'return xp.astype(counted, dy.dtype) * dy',
             'test_functional.py::test_a_batch_without_a_target_has_a_mean_of_nan_and_no_gradient[cpu-0.0]'),
    _parity('a borrowed gradient is written', 'nplm/autograd/graph.py',
             'arrived[edge] = arrived[edge] + gradient',
             'arrived[edge] += gradient',
             'test_autograd.py::test_a_borrowed_gradient_is_not_changed_by_what_others_add[cpu]'),
    _parity('a leaf is served at its first edge', 'nplm/autograd/graph.py',
             'edges_left[edge[0]] == 0 and isinstance',
             'isinstance',
             'test_autograd.py::test_a_hook_fires_once_a_backward_when_the_last_of_several_edges_has_arrived[cpu]'),
    _parity('closures outlive backward', 'nplm/autograd/graph.py',
             'backward, node.backward = node.backward, None',
             'backward = node.backward',
             'test_autograd.py::test_no_activation_survives_backward'),
    _parity('repeated indices count once', 'nplm/backend/numpy.py',
             'np.add.at(out[basic], advanced, values)',
             'out[basic][advanced] += values',
             'test_torch_api.py::test_any_index_that_torch_takes_picks_the_same_elements[cpu]'),
    _parity('sigmoid grows to float64', 'nplm/backend/numpy.py',
             'return np.where(x >= 0, 1, e) / (1 + e)',
             'return np.where(x >= 0, np.float64(1), e) / (1 + e)',
             'test_ops_parity.py::test_no_dtype_grows[cpu-sigmoid]'),
    _parity('silu asks for more than the contract', 'nplm/ops/activation.py',
             'return x * s, lambda',
             'return (x.T * s.T).T, lambda',
             'test_contract.py::test_an_op_asks_only_for_what_the_contract_lists[silu]'),
    _parity('a replaced buffer stays transient', 'nplm/nn/registry.py',
             '        self._transient.discard(name)',
             '        pass',
             'test_module.py::test_a_parameter_that_replaces_a_transient_buffer_is_saved'),
    _parity('moved weights share memory', 'nplm/nn/moving.py',
             '(xp.copy(array) if xp is not before else array), xp',
             'array, xp',
             'test_module.py::test_moved_values_share_no_memory_with_the_old'),
    _parity('load_state_dict names keys in another order', 'nplm/nn/loading.py',
             '    return sorted(names, key=place)',
             '    return list(names)',
             'test_module_state.py::test_load_state_dict_answers_in_the_words_of_torch[unexpected-True]'),
    _parity('Linear starts with another slope', 'nplm/nn/layers.py',
             'init.kaiming_uniform_(self.weight, a=math.sqrt(5))',
             'init.kaiming_uniform_(self.weight)',
             'test_init.py::test_fresh_weights_are_the_bits_of_torch[cpu-Linear-float32]'),
    _parity('clipping without its epsilon', 'nplm/nn/utils.py',
             '(1.0 / (total_norm + 1e-6)',
             '(1.0 / total_norm',
             'test_clipping.py::test_a_norm_of_the_limit_is_scaled_by_a_little_less_than_one[cpu]'),
    _parity('rotary frequencies off by a factor in the exponent', 'nplm/nn/attention.py',
             '(-1.0 / D)',
             '(-0.5 / D)',
             'test_decoder.py::test_logits_loss_and_every_gradient_equal_the_twin[cpu-llama]'),
    _parity('the decoder drops a dropout', 'nplm/models/decoder.py',
             '        x = self.dropout(x)',
             '        x = x + 0',
             'test_decoder.py::test_logits_loss_and_every_gradient_equal_the_twin[cpu-gpt2-dropout]'),
    _parity("Adam's second moment is not corrected", 'nplm/optim/adam.py',
             'bias2 = 1 - beta2 ** steps[i]',
             'bias2 = 1.0',
             'test_run.py::test_sixty_updates_stay_with_the_torch_twin[cpu-gpt2]'),
    _parity('weight decay is not decoupled', 'nplm/optim/adam.py',
             'weight_decay != 0 and decoupled_weight_decay:',
             'weight_decay != 0 and not decoupled_weight_decay:',
             'test_run.py::test_sixty_updates_stay_with_the_torch_twin[torch:cpu-llama]'),
    _parity('a window is divided by its micro-batches', 'nplm/train/accumulation.py',
             'share = 1 / total if',
             'share = 1 / (count * len(window)) if',
             'test_train.py::test_accumulated_gradients_equal_the_large_batch[cpu]'),
    _parity('the warm-up starts at zero', 'nplm/optim/schedules.py',
             '            return (step + 1) / (warmup_steps + 1)',
             '            return step / (warmup_steps + 1)',
             'test_run.py::test_sixty_updates_stay_with_the_torch_twin[cpu-llama]'),
]  # fmt: skip

STRATEGIES = [
    _parity("a tie counts as an improvement", "nplm/train/early_stopping.py",
            "loss < self.best_val_loss - self.delta",
            "loss <= self.best_val_loss - self.delta",
            "test_early_stopping.py::test_every_call_leaves_what_the_class_of_the_books_leaves"),
    _parity("the best weights are kept by reference", "nplm/train/early_stopping.py",
            "name: np.array(value) for name, value in weights.items()}\n        self.kept",
            "name: value for name, value in weights.items()}\n        self.kept",
            "test_early_stopping.py::test_the_best_weights_come_back_to_the_last_bit"),
    _parity("patience is one call longer", "nplm/train/early_stopping.py",
            "PATIENCE if counter >= self.patience",
            "PATIENCE if counter > self.patience",
            "test_listings.py::test_early_stopping_at_the_same_epoch_with_the_same_weights"),
    _parity("StepLR drops one epoch early", "nplm/optim/lr_scheduler/factors.py",
            "self.last_epoch % self.step_size != 0",
            "(self.last_epoch + 1) % self.step_size != 0",
            "test_listings.py::test_step_lr_once_an_epoch"),
    _parity("every micro-batch is divided by its own targets", "nplm/train/accumulation.py",
            "share = 1 / total if", "share = 1 / count if",
            "test_strategies_run.py::test_the_float64_run_is_that_of_the_twin"),
    _parity("dropout's mask is one place off", "nplm/random/generator.py",
            "return self.bernoulli(size, 1.0 - p)",
            "return np.roll(self.bernoulli(size, 1.0 - p), 1)",
            "test_strategies_run.py::test_the_float64_run_is_that_of_the_twin"),
]  # fmt: skip

DATA = [
    _parity("no seed is drawn for torch's workers", "nplm/data/dataloader.py",
            "stream_of(self.generator).random_int63()  # torch's seed for its workers",
            "pass",
            "test_dataloader.py::test_the_loader_reads_in_torchs_order_and_leaves_the_streams_where_"
            "torch_does"),
    _parity("one index too few is replayed", "nplm/data/cursor.py",
            'range(state["batches"])', 'range(state["batches"] - 1)',
            "test_resumption.py::test_a_loader_resumed_at_any_batch_of_three_epochs_reads_on_as_if_"
            "never_stopped"),
    _parity("bytes that are no character are dropped", "nplm/data/tokenizer.py",
            'codec = ("utf-8", "replace")', 'codec = ("utf-8", "ignore")',
            "test_tokenizer.py::test_any_bytes_decode_and_in_pieces_as_whole"),
    _parity("hidden folders are read", "nplm/files/folders.py",
            'folders[:] = [name for name in folders if name[0] != "."]', "pass",
            "test_data.py::test_a_folder_is_read_as_its_text_files_in_the_order_of_their_paths"),
]  # fmt: skip

COMMAND_LINE = [
    _parity("an unknown setting of a file is ignored", "nplm/train/tables.py",
            "problems.append(f\"unknown setting {where!r}{hint}\")", "pass",
            "test_settings.py::test_every_unknown_name_of_a_file_is_said_at_once"),
    _parity("the plan forgets attention's weights", "nplm/train/report.py",
            "looks = config.n_head * config.context", "looks = 0 * config.context",
            "test_job.py::test_the_plans_memory_is_what_a_step_allocates"),
    _parity("an epoch's schedule moves with every update", "nplm/train/job.py",
            "scheduler_unit=c.schedule.unit", 'scheduler_unit="step"',
            "test_job.py::test_a_step_schedule_drops_after_epochs"),
    _parity("a run ignores its stopper", "nplm/train/job.py",
            "return stopped or state.step", "return state.step",
            "test_job.py::test_early_stopping_ends_the_run_says_why_and_keeps_the_best"),
    _parity("a page shows an older source", "nplm/optim/schedules.py",
            "        if step < warmup_steps:", "        if step <= warmup_steps:",
            "test_docs.py::test_every_piece_of_source_on_the_pages_is_the_source"),
    _parity("a page shows another number", "docs/early_stopping.md",
            "at update 340", "at update 360",
            "test_docs.py::test_every_number_of_a_run_is_the_measured_one_under_its_name"
            "[early_stopping]"),
]  # fmt: skip

SECOND_STEPS = [
    _parity("plateau stops a call early", "nplm/train/stopping_rules.py",
            "return bad(memory, memory.patience + 1)", "return bad(memory)",
            "test_stopping_rules.py::test_every_call_stops_and_keeps_as_the_tool_does_and_the_best_"
            "weights_come_back[plateau]"),
    _parity("a scheduler trusts any learning rate after a load", "nplm/optim/lr_scheduler/base.py",
            'if float(saved) != float(group["lr"]):', "if False:",
            "test_scheduler_resume.py::test_every_order_of_restoring_is_right_or_refused"),
    _parity("a plateau's fall of eps is made", "nplm/optim/lr_scheduler/plateau.py",
            "if old - new > self.eps", "if old - new >= self.eps",
            "test_scheduler_rates.py::test_a_fall_by_no_more_than_eps_is_not_made"),
    _parity("an average is rounded twice", "nplm/optim/swa_utils.py",
            "fused = high + _sum_to_odd(low_error, high_error)",
            "fused = high + (low_error + high_error)",
            "test_swa.py::test_a_step_beside_a_tie_is_rounded_once"),
    _parity("bfloat16 is rounded one bit off", "nplm/optim/muon.py",
            "large = 2.0**45 * wide", "large = 2.0**44 * wide",
            "test_optimizers_muon.py::"
            "test_rounding_to_bfloat16_is_torchs_for_random_bits_and_for_all_ties[cpu]"),
    _parity("a line search accepts less", "nplm/optim/lbfgs.py",
            "c2: float = 0.9", "c2: float = 0.1",
            "test_optimizers_lbfgs.py::"
            "test_a_strong_wolfe_run_goes_where_torchs_goes[float64-network-cpu]"),
    _parity("clipping divides once", "nplm/nn/utils.py",
            "(1.0 / (total_norm + 1e-6) * max_norm)", "(max_norm / (total_norm + 1e-6))",
            "test_clipping.py::test_clipping_by_a_given_norm_has_torchs_bits[cpu-1]"),
]  # fmt: skip

RUNS = [
    _parity("a new folder is renamed and not synced", "nplm/files/manifest.py",
            "            sync_directory(final.parent)\n            _read_back(final)",
            "            _read_back(final)",
            "test_file_faults.py::"
            "test_whenever_the_power_fails_the_old_or_the_new_state_comes_back_whole"),
    _parity("a manifest is not sealed", "nplm/files/manifest.py",
            "    if version > 1 and data != _seal(version, entries):", "    if False:",
            "test_damaged_checkpoints.py::test_every_truncation_of_every_file_is_refused"),
    _parity("a failed removal leaves a folder under another name", "nplm/files/folders.py",
            "            system.rename(doomed, path)\n", "",
            "test_file_faults.py::"
            "test_whichever_call_fails_what_was_there_stays_and_a_second_try_succeeds"),
    _parity("a name may stand twice in a header", "nplm/files/single.py",
            "object_pairs_hook=_unique", "object_pairs_hook=dict",
            "test_hostile_files.py::"
            "test_a_file_of_tensors_that_was_made_wrong_is_refused_with_file_and_tensor"),
    _parity("metrics are not cut back", "nplm/train/run.py",
            "                files.cut_lines(", "                (lambda *_: None)(",
            "test_resume.py::test_two_hundred_kills_at_random_moments_lose_nothing"),
    _parity("the random stream is not restored", "nplm/train/resume.py",
            "        random.default_generator.set_state((", "        dict((",
            "test_resume.py::test_a_resumption_with_every_component_is_not"),
    _parity("a signal ends nothing", "nplm/train/job.py",
            "or interruption.received is not None", "or False",
            "test_resume_faults.py::"
            "test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on"),
    _parity("a run is not locked", "nplm/train/job.py",
            "with files.lock(folder.path), blas_threads", "with blas_threads",
            "test_resume_faults.py::"
            "test_a_run_that_another_process_holds_is_refused_in_the_library_too"),
    _parity("a checkpoint rotated away is damage", "nplm/cli/check.py",
            "if step in checkpoint_steps(found.run):", "if True:",
            "test_verbs.py::test_a_checkpoint_rotated_away_while_it_is_read_is_no_damage"),
    _parity("the doctor accepts any gradient", "nplm/cli/doctor.py",
            "if not _close(slope, measured, FINITE_DIFFERENCES):", "if False:",
            "test_doctor.py::test_a_wrong_gradient_is_a_failure"),
    _parity("NaN can be the best of a run", "nplm/train/history.py",
            "if not math.isnan(x)}", "}",
            "test_compare.py::test_a_nan_validation_is_shown_and_never_the_best"),
]  # fmt: skip

MUTATIONS = [*HOUSE, *PARITY, *STRATEGIES, *DATA, *COMMAND_LINE, *SECOND_STEPS, *RUNS]
