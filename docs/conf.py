"""The documentation site: Sphinx reads build/site, which tools/site.py collects."""

import tomllib
from pathlib import Path

_HERE = Path(__file__).parent
_PROJECT = tomllib.loads((_HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "cart_grpc"
version = release = _PROJECT["version"]
language = "en"
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
highlight_language = "text"
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_title = f"cart_grpc {version}"
html_static_path = [str(_HERE / "static")]
html_css_files = ["site.css"]
html_favicon = str(_HERE / "static" / "mark.svg")
html_logo = str(_HERE / "static" / "mark.svg")
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
