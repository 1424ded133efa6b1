"""What an op may ask of its arrays and of their namespace `xp`: this list and nothing else.

Read it before you write an op. NumPy and torch differ in everything that is missing here (`max`,
`transpose`, `astype`, `take`, `.T`, `.size`, negative steps); a spy in the tests holds every op to
the list. If an op has to know its backend, a function is missing: add it to both namespaces.
"""

# Attributes and methods of an array. `shape` may be compared with a tuple, `dtype` only with
# another array's; `reshape` takes a tuple; an index is made of slices, integers, None, Ellipsis.
ATTRIBUTES = frozenset({"shape", "dtype", "ndim", "reshape"})

OPERATORS = frozenset(f"__{name}__" for name in [
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv",
    "itruediv", "neg", "pow", "rpow", "eq", "ne", "lt", "le", "gt", "ge", "and", "rand", "or",
    "ror", "getitem", "setitem",
])  # fmt: skip

# name(arguments): what differs between the two libraries, where something does
FUNCTIONS = {
    # making arrays: dtype and device of `like`, unless a dtype is given
    "zeros": "(shape, like, dtype=None)",
    "ones": "(shape, like, dtype=None)",
    "full": "(shape, value, like, dtype=None)",
    "copy": "(x): the same values in contiguous memory of their own",
    # dtypes
    "astype": "(x, dtype): x itself when it has that dtype",
    "is_floating": "(x) -> bool",
    "promote": "(*operands): arrays cast to torch's common dtype; Python numbers stay",
    "to_float": "(x): integers and bools cast to the default dtype, as torch's exp and div do",
    # elementwise
    "exp": "(x)",
    "log": "(x)",
    "sqrt": "(x)",
    "tanh": "(x)",
    "sin": "(x)",
    "cos": "(x)",
    "erf": "(x)",
    "abs": "(x)",
    "sign": "(x)",
    "sigmoid": "(x): no overflow for large negative x",
    "maximum": "(x, y): NaN wins",
    "minimum": "(x, y): NaN wins",
    "where": "(condition, x, y)",
    "isnan": "(x)",
    # reductions: axis is None, an int or a tuple of them
    "sum": "(x, axis=None, keepdims=False)",
    "mean": "(x, axis=None, keepdims=False)",
    "amax": "(x, axis=None, keepdims=False)",
    "amin": "(x, axis=None, keepdims=False)",
    "any": "(x, axis=None, keepdims=False)",
    "all": "(x, axis=None, keepdims=False)",
    "argmax": "(x, axis=None, keepdims=False): the first of equals",
    "argmin": "(x, axis=None, keepdims=False): the first of equals",
    "cumsum": "(x, axis)",
    # products
    "matmul": "(x, y)",
    # shape
    "transpose": "(x, axes): every axis named",
    "swapaxes": "(x, a, b)",
    "broadcast_to": "(x, shape): a read-only view",
    "concat": "(xs, axis)",
    "flip": "(x, axis)",
    "tril": "(x, k)",
    "triu": "(x, k)",
    # indexing
    "getitem": "(x, key): any index that torch takes",
    "add_at": "(shape, key, values): zeros of `shape` with values added at `key`, repeats counted",
    "gather": "(x, index, axis): y[i][j] = x[index[i][j]][j] for axis 0",
    "scatter_add": "(shape, index, values, axis): the adjoint of gather",
    "take_rows": "(table, ids): table[ids] for integer ids of any shape",
    "sum_rows": "(values, ids, n): row r of (n, C) is the sum of the values whose id is r",
}
