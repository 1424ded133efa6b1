"""Draws of the random stream, broken on purpose.  See mutation_cases.py."""

from mutation import parity as _parity

RANDOM = [
    _parity(
        "a strided tensor is filled by its indices",
        "nplm/ops/draws.py",
        "order, _ = order_of(self)\n",
        "order = tuple(range(self.ndim))\n",
        "test_random_tensors.py::test_a_tensor_of_any_layout_is_filled_in_the_order_of_its_memory",
    ),
    _parity(
        "normals of a strided tensor come in blocks",
        "nplm/ops/draws.py",
        "mean, std, self.dtype, contiguous)",
        "mean, std, self.dtype)",
        "test_random_tensors.py::test_a_tensor_of_any_layout_is_filled_in_the_order_of_its_memory",
    ),
    _parity(
        "a tensor like a transposed one is contiguous",
        "nplm/ops/draws.py",
        "order, _ = order_of(input)\n",
        "order = tuple(range(input.ndim))\n",
        "test_random_tensors.py::test_a_new_tensor_has_the_layout_of_the_one_it_is_like",
    ),
    _parity(
        "zeros_like forgets the layout",
        "nplm/ops/creation.py",
        "order, _ = order_of(input)\n    shape",
        "order = tuple(range(input.ndim))\n    shape",
        "test_random_tensors.py::test_a_new_tensor_has_the_layout_of_the_one_it_is_like",
    ),
    _parity(
        "later rounds of trunc_normal_ keep the gaps",
        "nplm/nn/init.py",
        "again = np.asarray(empty_like(tensor).normal_(",
        "again = np.asarray(tensor.normal_(",
        "test_random_tensors.py::test_a_tensor_of_any_layout_is_filled_in_the_order_of_its_memory",
    ),
    _parity(
        "probabilities are read in another order",
        "nplm/ops/draws.py",
        "self.shape).transpose(order)",
        "self.shape)",
        "test_random_tensors.py::test_a_tensor_of_probabilities_is_read_at_every_place",
    ),
    _parity(
        "probabilities in float32 take long words",
        "nplm/random/generator.py",
        "kind = _floating(p.dtype)",
        "kind = (_floating(p.dtype), F64)[1]",
        "test_random_tensors.py::test_a_tensor_of_probabilities_is_read_at_every_place",
    ),
    _parity(
        "a range of 2**28 takes one word",
        "nplm/random/generator.py",
        "if count < 2**28 else",
        "if count <= 2**28 else",
        "test_random_tensors.py::test_ranges_on_both_sides_of_28_bits_and_up_to_64",
    ),
    _parity(
        "all of 64 bits start at the lowest",
        "nplm/random/generator.py",
        "if count < 2**64:\n",
        "if count <= 2**64:\n            count = min(count, 2**64 - 1)\n",
        "test_random_tensors.py::test_ranges_on_both_sides_of_28_bits_and_up_to_64",
    ),
    _parity(
        "random_ of int64 takes one word",
        "nplm/random/generator.py",
        "self._long_words if kind.itemsize == 8 else self._words",
        "self._words",
        "test_random_tensors.py::test_integers_and_booleans_take_the_words_that_torch_takes",
    ),
    _parity(
        "random_ leaves out the largest",
        "nplm/random/generator.py",
        "np.uint64(last + 1)).astype",
        "np.uint64(last)).astype",
        "test_random_tensors.py::test_integers_and_booleans_take_the_words_that_torch_takes",
    ),
    _parity(
        "the two fractions of a pair change places",
        "nplm/random/generator.py",
        "pairs_of_normals(v=pairs[:, 0], u=pairs[:, 1])",
        "pairs_of_normals(v=pairs[:, 1], u=pairs[:, 0])",
        "test_random_sequences.py::"
        "test_thousands_of_draws_in_random_sequence_have_torchs_bits_and_end_at_its_place",
    ),
    _parity(
        "the second normal of a pair is dropped",
        "nplm/random/generator.py",
        "float(normals[n]) if len(normals) > n else None",
        "None",
        "test_random_sequences.py::"
        "test_thousands_of_draws_in_random_sequence_have_torchs_bits_and_end_at_its_place",
    ),
    _parity(
        "a tail of 16 is not drawn anew",
        "nplm/random/generator.py",
        "        if n % 16:  #",
        "        if False:  #",
        "test_random_sequences.py::"
        "test_thousands_of_draws_in_random_sequence_have_torchs_bits_and_end_at_its_place",
    ),
    _parity(
        "a kept normal is not handed to torch",
        "nplm/random/generator.py",
        "normal is not None, 0.0, False)",
        "False, 0.0, False)",
        "test_random_sequences.py::test_a_kept_normal_goes_from_torch_to_nplm_and_back",
    ),
    _parity(
        "a kept normal is not taken from torch",
        "nplm/random/generator.py",
        "kept = normal if has else None",
        "kept = None",
        "test_random_sequences.py::test_a_kept_normal_goes_from_torch_to_nplm_and_back",
    ),
    _parity(
        "the place in torch's state is one off",
        "nplm/random/generator.py",
        '"pos": N + 1 - left',
        '"pos": min(N, N + 2 - left)',
        "test_random_sequences.py::"
        "test_thousands_of_draws_in_random_sequence_have_torchs_bits_and_end_at_its_place",
    ),
    _parity(
        "multinomial reads columns as rows",
        "nplm/random/generator.py",
        "order = memory_order(rows.shape, rows.strides)",
        "order = (0, 1)",
        "test_random_tensors.py::test_multinomial_reads_rows_of_any_layout",
    ),
    _parity(
        "normal rounds once where torch rounds twice",
        "nplm/ops/draws.py",
        "drawn = (drawn * std).astype(drawn.dtype)\n    return place((drawn + mean)",
        "return place(random.fused_multiply_add(drawn, "
        "np.broadcast_to(std, shape) + 0.0, np.asarray(mean))"
        ".astype(given[0].dtype), given[0].device)\n    return place((drawn + mean)",
        "test_random_tensors.py::test_a_new_tensor_has_the_layout_of_the_one_it_is_like",
    ),
    _parity(
        "normal of means is shifted before it is scaled",
        "nplm/ops/draws.py",
        "drawn = (drawn * std).astype(drawn.dtype)",
        "drawn = ((drawn + mean) * std - mean).astype(drawn.dtype)",
        "test_random_tensors.py::test_a_new_tensor_has_the_layout_of_the_one_it_is_like",
    ),
    _parity(
        "a large permutation swaps with one of 0 .. i-1",
        "nplm/random/generator.py",
        "(places + np.uint64(1))",
        "np.maximum(places, np.uint64(1))",
        "test_random_sequences.py::test_a_large_permutation_holds_every_number_once",
    ),
    _parity(
        "a generator that is given is not used",
        "nplm/ops/draws.py",
        "return generator or random.default_generator",
        "return random.default_generator",
        "test_random_tensors.py::test_a_generator_that_is_given_is_the_only_one_that_moves",
    ),
    _parity(
        "dropout's mask is one place off",
        "nplm/random/generator.py",
        "return self.bernoulli(size, 1.0 - p)",
        "return np.roll(self.bernoulli(size, 1.0 - p), 1)",
        "test_random_sequences.py::"
        "test_thousands_of_draws_in_random_sequence_have_torchs_bits_and_end_at_its_place",
    ),
    _parity(
        "a step of 0 counts as the smallest",
        "nplm/random/layout.py",
        "if 0 in steps:\n                continue",
        "if False:\n                continue",
        "test_random_tensors.py::"
        "test_the_order_of_memory_is_that_of_a_tensor_that_torch_makes_like_it",
    ),
    _parity(
        "gaps count as contiguous",
        "nplm/random/layout.py",
        "abs(stride) != step",
        "abs(stride) < step",
        "test_random_tensors.py::"
        "test_the_order_of_memory_is_that_of_a_tensor_that_torch_makes_like_it",
    ),
    _parity(
        "a flipped view is filled backwards in blocks no more",
        "nplm/random/layout.py",
        "and abs(stride) != step",
        "and stride != step",
        "test_random_tensors.py::test_a_flipped_view_counts_as_the_copy_that_torch_makes",
    ),
]  # fmt: skip
