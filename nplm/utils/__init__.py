"""torch.utils: what is here is `nplm.utils.checkpoint`, activations that are computed again, and
`nplm.utils.data`, the names of `nplm.data` under torch's path.
"""

from nplm.utils import checkpoint, data
