"""A hook of mkdocs: a link to a file of the repository that is no page becomes the file's name.

In the repository such links work, and a test follows them. On the site there is nothing behind them.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(([^):#]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page, whose name is relative to the folder of the pages."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def named(link: re.Match[str]) -> str:
        text, path = link[1], posixpath.normpath(posixpath.join(folder, link[2]))
        return link[0] if path.startswith("docs/") else f"{text} (`{path}`)"

    return LINK.sub(named, markdown)
