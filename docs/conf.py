"""Sphinx: `sphinx-build -W docs OUT` makes these pages HTML.  Needs the extra `docs`."""

import nplm

project = "nplm"
version = release = nplm.__version__
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]  # $...$, as GitHub shows it
myst_fence_as_directive = ["math"]  # and ```math
myst_heading_anchors = 3  # links to headings, as on GitHub
html_theme = "furo"
html_title = "nplm"
html_show_copyright = False
exclude_patterns = ["_build"]
