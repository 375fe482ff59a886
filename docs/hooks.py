"""What MkDocs does beside rendering: pages that lie at the repository's root."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Of the site; what else a page of the repository's root names has no place on it, and stays as text.
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
# Words of a table's cell that are too short to be parted.
_SHORT = re.compile(r"<code>([\w.:]{1,16})</code>(?=(?:(?!<td|<th).)*?</td>)", re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401 - MkDocs' own
    """Turn links between pages and files of the repository into links of the site."""
    at_root = page.file.src_uri in PAGES

    def link(found: re.Match[str]) -> str:
        text, path, part = found[1], found[2], found[3] or ""
        if "://" in path or path.startswith("mailto:"):
            return found[0]
        target = path.removeprefix("docs/") if at_root else _on_the_site(page.file.src_uri, path)
        if at_root and not path.startswith("docs/") and target not in PAGES:
            return text
        return f"[{text}]({target}{part})"

    return _LINK.sub(link, markdown)


def _on_the_site(page: str, path: str) -> str:
    """A page's link on the site, where what lies at the repository's root lies beside the pages of docs/."""
    folder = posixpath.dirname(page)
    whole = posixpath.normpath(posixpath.join("docs", folder, path))
    return path if whole.startswith("docs/") else posixpath.relpath(whole, folder or ".")


def on_page_content(html: str, **_: Any) -> str:
    """Mark the short words of code in tables, which the style sheet keeps whole where there is room."""
    return _SHORT.sub(r'<code class="short">\1</code>', html)
