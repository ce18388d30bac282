"""How ``make docs`` builds the API reference; see Sphinx's own documentation for each name."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

project = "Sharewright"
version = release = _PROJECT["version"]
extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"{project} {version}: API reference"
html_show_copyright = False

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

# A reference to anything of ours has to lead somewhere; those to other projects stay words.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|enum|pathlib|netaddr|nacl|pydantic|_pytest)\..*|tuple\[.*"),
    ("py:class", r"worker\.testing\.calls\.Answer"),  # a type variable
]
