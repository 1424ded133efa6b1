"""The fast path on torch, broken on purpose: kernels, capture, graphs, recompute, autocast, sinks.

See mutation_cases.py.  Where a small test sees a bug and a whole model would too, the small one is
named: it says what is wrong.
"""

from mutation import parity as _parity

_KERNELS = "nplm/backend/torch_kernels"
_BESIDE = (
    "test_torch_kernels.py::"
    "test_a_kernel_equals_torch_autograd_and_writes_to_nothing_it_was_given[{}]"
)  # fmt: skip
_LOW = (
    "test_torch_bfloat16.py::test_values_and_gradients_lie_within_torch_autocasts_envelope[{}]"
)  # fmt: skip
_SINK = (
    "test_torch_kernels.py::"
    "test_a_sink_adds_up_whatever_comes_first_in_float32_and_alters_nothing_that_is_lent"
)  # fmt: skip
_UPDATE = (
    "test_graphs.py::"
    "test_an_update_through_fixed_memory_is_the_update_and_a_new_rate_records_nothing"
)  # fmt: skip
_ANEW = "test_graphs.py::test_what_a_graph_holds_for_good_is_recorded_anew_when_it_changes[{}]"
_TORCHS = "test_recompute.py::test_gradients_and_the_random_stream_are_torch_checkpoints[{}]"
_RECOMPUTES = (
    "test_capture.py::"
    "test_a_region_that_recomputes_saves_its_inputs_only_and_has_the_same_gradients"
)  # fmt: skip
_PAIR = "test_capture.py::test_a_pair_runs_only_what_it_was_made_for[{}]"
_THERE = (
    "test_graphs.py::"
    "test_on_torch_a_gradient_that_is_there_is_added_to_and_one_that_is_watched_is_told"
)  # fmt: skip
_BLOCK = (
    "test_torch_bfloat16.py::"
    "test_autocast_is_switched_off_inside_of_itself_and_ends_with_its_block"
)  # fmt: skip

TORCH = [
    _parity("torch: a bias's gradient comes back in bfloat16", f"{_KERNELS}/linear.py",
            "dy.sum(0, dtype=dtype)", "dy.sum(0)", _LOW.format("linear")),
    _parity("torch: a sink gets the row of padding", f"{_KERNELS}/linear.py",
            "isinstance(needs[1], TorchSink) and padding_idx is None",
            "isinstance(needs[1], TorchSink)",
            "test_torch_kernels.py::test_a_row_of_padding_gets_no_gradient_in_a_sink_either[1]"),
    _parity("torch: aten adds up a norm's gradients in bfloat16", f"{_KERNELS}/norm.py",
            "by_hand = x.dtype == torch.bfloat16 and not x.is_cuda", "by_hand = False",
            "test_torch_bfloat16.py::test_sums_over_two_thousand_rows_are_made_in_float32"),
    _parity("torch: eps is divided by the number of channels", f"{_KERNELS}/norm.py",
            ".div_(C).add_(eps)", ".add_(eps).div_(C)", _BESIDE.format("rms_norm-0")),
    _parity("torch: a shared key gets the gradient of one head", f"{_KERNELS}/attention.py",
            "dx.unflatten(1, (G, H // G)).sum(2)", "dx.unflatten(1, (G, H // G))[:, :, 0]",
            "test_torch_kernels.py::"
            "test_heads_in_groups_and_other_lengths_equal_the_reference[2-6-True]"),
    _parity("torch: a refused shape is asked for again", f"{_KERNELS}/attention.py",
            "            remember(name, q, k, causal, error)\n            continue",
            "            continue",
            "test_torch_kernels.py::"
            "test_a_kernel_that_refuses_a_shape_is_passed_over_and_not_asked_again[forward]"),
    _parity("torch: SwiGLU's halves change places", f"{_KERNELS}/activation.py",
            "dgate, dup = whole.chunk(2, -1)", "dup, dgate = whole.chunk(2, -1)",
            "test_torch_kernels.py::test_swiglu_hands_the_layer_below_one_array"),
    _parity("torch: halves of two arrays are taken for one", f"{_KERNELS}/shape.py",
            "whole if whole is other and in_order", "whole if in_order",
            "test_torch_kernels.py::test_halves_of_two_arrays_are_not_taken_for_one"),
    _parity("torch: dropout is scaled by what it drops", f"{_KERNELS}/dropout.py",
            "keep, 1 / (1 - p))", "keep, 1 / p)", _LOW.format("dropout")),
    _parity("torch: a head's chunks are added up in bfloat16", f"{_KERNELS}/head.py",
            "dweight = product(dlogits.t(), rows, dtypes[1])",
            "dweight = product(dlogits.t(), rows, x.dtype)",
            "test_torch_bfloat16.py::"
            "test_a_heads_chunks_of_rows_in_bfloat16_are_added_up_in_float32"),
    _parity("torch: every chunk of losses has the first targets", f"{_KERNELS}/head.py",
            "        here = targets.narrow(0, i, n)\n        losses",
            "        here = targets.narrow(0, 0, n)\n        losses",
            "test_torch_kernels.py::"
            "test_losses_of_single_tokens_are_made_in_chunks_where_nothing_is_recorded"),
    _parity("torch: only the first rows become a gradient", f"{_KERNELS}/loss.py",
            "for i in range(0, N, step):", "for i in range(0, min(N, step), step):",
            "test_torch_kernels.py::test_rows_that_are_worked_off_in_parts_are_all_worked_off"),
    _parity("torch: a copy of a weight is never made again", f"{_KERNELS}/precision.py",
            "if version[0] != x._version:", "if False:",
            "test_torch_bfloat16.py::"
            "test_a_copy_is_made_once_and_again_only_after_an_update"),
    _parity("torch: a copy is made in another place", f"{_KERNELS}/precision.py",
            "            copy.copy_(x)\n", "            return x.to(torch.bfloat16)\n",
            "test_torch_bfloat16.py::"
            "test_a_copy_is_made_once_and_again_only_after_an_update"),
    _parity("torch: a sink overwrites", f"{_KERNELS}/sinks.py",
            "self.array += gradient", "self.array.copy_(gradient)", f"{_SINK}[False]"),
    _parity("torch: a sink takes what is lent", f"{_KERNELS}/sinks.py",
            "gradient.clone() if first else gradient", "gradient", f"{_SINK}[False]"),
    _parity("torch: a sink's sum has the dtype of the first", f"{_KERNELS}/sinks.py",
            "self.array = gradient.to(self.dtype)", "self.array = gradient", f"{_SINK}[False]"),
    _parity("torch: a sink adds a repeated row once", f"{_KERNELS}/sinks.py",
            "self.array.index_add_(0, ids, values.to(self.dtype))",
            "self.array[ids] += values.to(self.dtype)", f"{_SINK}[True]"),
    _parity("torch: Adam's kernel has one count for all", f"{_KERNELS}/updates.py",
            "else counts[t] for t in steps", "else counts[steps[0]] for t in steps",
            "test_torch_updates.py::"
            "test_fused_adam_equals_the_reference_with_counts_of_its_own_for_each"),
    _parity("torch: norms are rounded to bfloat16", f"{_KERNELS}/updates.py",
            "x.is_floating_point() and x.dtype != torch.bfloat16 for x",
            "x.is_floating_point() for x",
            "test_torch_updates.py::test_norms_of_bfloat16_are_left_to_the_reference"),
    _parity("torch: an in-place write crosses the cut of a pair", "nplm/backend/capture.py",
            "torch.func.functionalize(joint)", "joint",
            "test_capture.py::test_a_write_in_place_inside_a_backward_does_not_spoil_the_gradients"),
    _parity("torch: a pair takes dy before what it saved", "nplm/backend/capture.py",
            "[*saved, dy.contiguous()]", "[dy.contiguous(), *saved]", _RECOMPUTES),
    _parity("torch: a pair takes dy in any layout", "nplm/backend/capture.py",
            "[*saved, dy.contiguous()]", "[*saved, dy]", _RECOMPUTES),
    _parity("torch: a pair by torch.compile is no news", "nplm/backend/capture.py",
            'note = f"torch {torch.__version__} has other private parts ({error})"', "pass",
            "test_capture.py::test_a_torch_without_the_private_parts_"
            "gets_pairs_by_torch_compile_with_one_warning"),
    _parity("torch: a pair is known without its dtypes", "nplm/train/capturing.py",
            "x.stride(), x.dtype, x.device)", "x.stride(), x.device)", _PAIR.format("dtype-anew0")),
    _parity("torch: a pair is known without the gradients it gives", "nplm/train/capturing.py",
            " needs, flags.autocast,", " flags.autocast,",
            "test_capture.py::test_a_frozen_weight_gets_no_gradient_from_a_region"),
    _parity("torch: a pair's gradients arrive twice", "nplm/train/capturing.py",
            "                    gradients[i] = None\n", "", _PAIR.format("dtype-anew0")),
    _parity("torch: the reference is a pair", "nplm/train/capturing.py",
            " or not flags.recording or flags.reference:", " or not flags.recording:",
            "test_capture.py::test_the_reference_and_what_is_not_recorded_run_no_pair"),
    _parity("torch: a level falls back in silence", "nplm/train/capturing.py",
            'warnings.warn(f"capture: {self.level} falls back to {to}: {why}", stacklevel=3)',
            "pass",
            "test_capture.py::test_a_block_with_a_buffer_runs_op_by_op_with_one_warning"),
    _parity("torch: a buffer's value is compiled in", "nplm/train/capturing.py",
            "if next(iter(module.buffers()), None) is not None:", "if False:",
            "test_capture.py::test_a_block_with_a_buffer_runs_op_by_op_with_one_warning"),
    _parity("torch: a graph is known without its precision", "nplm/train/graphs.py",
            "first.inputs.shape, flags.autocast,", "first.inputs.shape,", _ANEW.format("autocast")),
    _parity("torch: a graph is known without its addresses", "nplm/train/graphs.py",
            "(p.array.data_ptr(), p.requires_grad)", "(p.requires_grad,)", _ANEW.format("move")),
    _parity("torch: a graph keeps the rate as a constant", "nplm/train/graphs.py",
            '        lr.fill_(group["lr"])\n',
            '        lr.fill_(group["lr"]) if not lr else None\n', _UPDATE),
    _parity("torch: an update forgets its count", "nplm/train/graphs.py",
            "counts.copy_(tensor(steps,", "counts.copy_(tensor([1.0] * len(steps),", _UPDATE),
    _parity("torch: a window's loss is overwritten by the next", "nplm/train/graphs.py",
            "Tensor(step.total.xp.copy(step.total.array))", "step.total",
            "test_graphs.py::test_the_loss_of_a_window_outlives_the_next_window"),
    _parity("torch: a replayed update is not counted", "nplm/train/graphs.py",
            "        written(arrays[0])\n", "",
            "test_graphs.py::test_copies_of_weights_are_made_anew_after_a_replayed_update"),
    _parity("torch: an update by hand is no news", "nplm/train/graphs.py",
            'self.tell(f"the update is not recorded: {error}")', "pass",
            "test_graphs.py::"
            "test_an_update_that_refuses_to_be_recorded_says_so_once_and_is_made_by_hand"),
    _parity("torch: a watched gradient goes into a graph", "nplm/train/graphs.py",
            "p.grad is None and not p.hooks for p", "p.grad is None for p",
            "test_graphs.py::"
            "test_a_window_of_several_shapes_or_with_watched_gradients_is_not_recorded"),
    _parity("torch: a window's loss is that of its last batch", "nplm/train/torch_steps.py",
            "total = part if total is None else total + part", "total = part", _THERE),
    _parity("torch: a gradient that is there is thrown away", "nplm/train/torch_steps.py",
            "if p.grad is None and not p.hooks]", "if not p.hooks]", _THERE),
    _parity("torch: a second run draws from where the stream is", "nplm/utils/checkpoint.py",
            "        self._go_to(self.start)\n", "", _TORCHS.format("drawing")),
    _parity("torch: a captured block keeps what it would recompute", "nplm/utils/checkpoint.py",
            "compiled(args, recompute=True)", "compiled(args, recompute=False)",
            _PAIR.format("recompute-anew1")),
    _parity("torch: autocast cannot be switched off", "nplm/autograd/autocast.py",
            "flags.autocast, enabled\n", "flags.autocast, True\n", _BLOCK),
    _parity("torch: autocast goes on after its block", "nplm/autograd/autocast.py",
            "        flags.autocast = before\n", "        pass\n", _BLOCK),
    _parity("torch: a shard's next place is its neighbour's", "nplm/autograd/sinks.py",
            "self.place += shared.n\n", "self.place += 1\n",
            "test_sinks.py::test_a_store_gives_shards_what_no_kernel_has_written"),
]  # fmt: skip
