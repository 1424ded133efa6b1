"""torch.utils: what is here is `nplm.utils.data`, the names of `nplm.data` under torch's path."""

from nplm.utils import data
