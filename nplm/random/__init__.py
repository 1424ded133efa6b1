"""How torch draws random numbers on the CPU, in NumPy: one Mersenne Twister, and for every
distribution the rule that turns its 32-bit words into values, down to the last rounding.
parity_tests/test_random.py and its neighbours hold it against PyTorch, bit by bit.
"""

from nplm.random.generator import BLOCK, SMALL_PERM, Generator
from nplm.random.layout import is_contiguous, memory_order
from nplm.random.rounding import _halves, _sum_to_odd, _two_sum, fused_multiply_add

# The stream that all share, unpredictable until it is seeded.   torch.manual_seed, torch.random.*
default_generator = Generator()
default_generator.seed()
manual_seed = default_generator.manual_seed
initial_seed = default_generator.initial_seed
get_rng_state = default_generator.get_state
set_rng_state = default_generator.set_state
