"""Reports, and the levels ops and layers, broken on purpose.  See mutation_cases.py."""

from mutation import parity as _parity

R, S, P, A = (f"nplm/parity/{n}.py" for n in ("report", "summary", "page", "page_assets"))
REPORT = [
    _parity(f"report: {name}", file, old, new, f"test_report.py::test_{test}")
    for name, file, old, new, test in [
        ("phases in another order", S, "{phase: Tally() for phase in PHASES}",
         "{phase: Tally() for phase in PHASES[::-1]}",
         "the_table_has_a_line_a_phase_in_causal_order"),
        ("absent phases hidden", R,
         "if absent := [phase for phase in tallies if phase not in rows]:", "if absent := []:",
         "what_was_not_compared_is_named"),
        ("empty is equal", S,
         'return "equal" if comparison.measured else "nothing compared"', 'return "equal"',
         "nothing_compared_proves_nothing"),
        ("missing places not counted", S, "    for place in diverged:\n", "    for place in ():\n",
         "a_divergence_that_was_not_measured_is_counted"),
        ("sides swapped", S, "(divergence.actual, divergence.expected)):",
         "(divergence.expected, divergence.actual)):",
         "the_verdict_of_a_diverged_run_says_where_and_what_to_look_at"),
        ("81 columns", R, "room = WIDTH - sum", "room = WIDTH + 1 - sum",
         "the_table_fits_80_columns_whatever_the_names"),
        ("infinity in JSON", R, "names.get(value, float(value))", "float(value)",
         "json_is_strict_and_survives_a_round_trip"),
        ("names not escaped", P, "return escape(plainly(text))", "return plainly(text)",
         "a_name_that_closes_the_script_stays_text"),
        ("any script may run", P, "script-src '{_hash(SCRIPT)}'", "script-src 'unsafe-inline'",
         "the_page_is_safe_and_whole_whatever_the_names"),
        ("a style from elsewhere", A, 'STYLE = """\n',
         'STYLE = """\n@import "//fonts.example/f.css";\n',
         "the_page_is_safe_and_whole_whatever_the_names"),
        ("first divergence left to the script", P, "        *_first(comparison),\n", "",
         "the_page_says_everything_without_a_script"),
        ("imports torch", R, "import numpy as np\n", "import numpy as np\nimport torch\n",
         "reports_need_no_torch"),
    ]
]  # fmt: skip

LEVELS = [
    _parity("a reason is not asked for", "nplm/parity/three_way.py",
            "limit = known.limit if known else RATIO", "limit = 1e9",
            "test_parity_ops.py::"
            "test_the_verdict_asks_for_a_reason_above_two_and_a_reason_is_stale_below"),
    _parity("cumsum has no reason", "nplm/parity/ops.py",
            '"cumsum": Reason(60', '"exp2": Reason(60',
            "test_parity_ops.py::test_every_op_is_within_its_budgets"),
    _parity("layers: layer_norm forgets the mean", "nplm/ops/norm.py",
            "dx = inv * (dn - mean_dn - n *", "dx = inv * (dn - n *",
            "test_parity_layers.py::"
            "test_every_layer_is_within_its_budgets_and_every_reason_is_needed"),
]  # fmt: skip
