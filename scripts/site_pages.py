"""A hook of MkDocs: pages that are not in `docs/`, and links to them.

On the site, `README.md` is the first page, and `CHANGELOG.md` and the like stand beside those of `docs/`.
Programs in `examples/` are files of the site. So links that leave `docs/` have another target there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files  # type: ignore[import-not-found]

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = {
    "README.md": "index.md",
    **{name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")},
}
DIAGRAM: Final = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)  # its program would be loaded from elsewhere


def on_files(files: Files, config: Any) -> Files:
    """Add what is outside of `docs/`."""
    for source, target in PAGES.items():
        text = DIAGRAM.sub("", (ROOT / source).read_text())
        files.append(File.generated(config, target, content=relinked(text, from_root=True)))
    for example in sorted((ROOT / "examples").glob("*.*")):
        files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of a page of `docs/` that leave it."""
    return markdown if page.file.src_uri in PAGES.values() else relinked(markdown, from_root=False)


def relinked(markdown: str, *, from_root: bool) -> str:
    """Return a page with links as they are on the site, where `docs/` is the root."""
    if from_root:
        return markdown.replace("](docs/", "](").replace("](README.md", "](index.md")
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown.replace("](../examples/", "](examples/")
