"""Configuration of Sphinx; ``make docs`` builds the site in build/docs."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from sphinx.deprecation import RemovedInSphinx11Warning

from dicomnode.installation import read_version
from docs.generators import command_line, configuration, http, measurements

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# myst-parser 5.2 uses names that Sphinx 9 still has.
warnings.filterwarnings("ignore", category=RemovedInSphinx11Warning, module="myst_parser")

project = "dicomnode"
author = "the dicomnode authors"
release = version = read_version()
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["generators", "__init__.py"]
nitpicky = False
smartquotes = False

html_theme = "furo"
html_title = f"dicomnode {release}"
html_theme_options = {"announcement": "For research only. dicomnode is not a medical device."}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80

GENERATED = {
    "configuration": configuration.make_page,
    "command-line": command_line.make_page,
    "http": http.make_page,
    "measurements": measurements.make_page,
}
"""The generated parts: a page takes one in place of the line ``<!-- generated: NAME -->``."""

INCLUDED = {
    "CONFORMANCE.md": "reference/conformance",
    "CHANGELOG.md": "reference/changelog",
    "ARCHITECTURE.md": "explanation/architecture",
    "CONTRIBUTING.md": "explanation/contributing",
    "examples/site_pipeline": "howto/site-pipeline-example",
    "model_zoo/bundles/mri_prior/docs/README.md": "explanation/models/mri-prior",
    "model_zoo/bundles/anatomy/docs/README.md": "explanation/models/anatomy",
    "model_zoo/bundles/synthetic_dir/docs/README.md": "explanation/models/synthetic-dir",
    "model_zoo/bundles/standard_dose_pet/docs/README.md": "explanation/models/standard-dose-pet",
    "model_zoo/bundles/pet_synthesis/docs/README.md": "explanation/models/pet-synthesis",
}
"""Files outside docs/ that a page of the site includes: links to the file lead to the page."""
_MARKER = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_OUTSIDE_LINK = re.compile(r"\]\((?:\.\./)+([\w./-]+)(#[\w-]*)?\)")


def insert_generated(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the markers of generated parts in the source of a page."""
    source[0] = _MARKER.sub(lambda marker: GENERATED[marker[1]](), source[0])


def lead_links_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace links to files outside docs/ by links to the pages that include the files."""

    def replace(link: re.Match[str]) -> str:
        target = INCLUDED.get(link[1])
        return link[0] if target is None else f"](/{target}.md{link[2] or ''})"

    source[0] = _OUTSIDE_LINK.sub(replace, source[0])


def setup(app: Sphinx) -> None:
    """Register the changes to the sources of pages."""
    app.connect("source-read", insert_generated)
    app.connect("source-read", lead_links_to_pages)
