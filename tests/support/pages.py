"""The pages that people read, and the blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("index", "quickstart", "tune", "hosts", "memory")),
]
PAGES += sorted(set(ROOT.glob("docs/**/*.md")) - set(PAGES))
"""In the order in which they are read: a command of a later page may need what one of an earlier page made."""

WITH_AUTOTVM = "autotvm"
WITH_KERNEL_TUNER = "kernel_tuner"
WITH_TVM = ("tvm", "meta_schedule", "chameleon.measure", "chameleon.memory")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # relative to the root
    language: str
    text: str

    @property
    def needs(self) -> str:
        """Which host its Python imports: `autotvm`, `kernel_tuner`, `tvm` or none."""
        if self.language != "python":
            return ""
        for name in (WITH_AUTOTVM, WITH_KERNEL_TUNER):
            if name in self.text:
                return name
        return "tvm" * any(name in self.text for name in WITH_TVM)


def blocks_in(page: str, content: str) -> list[Block]:
    """All fenced blocks, in their order."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", content, flags=re.DOTALL | re.MULTILINE)
    return [Block(page, language, text) for language, text in found]


def blocks(language: str = "", page: str = "", needs: str | None = None) -> list[Block]:
    """The blocks of all pages, or of one, in one language, or all, that need this host, or any."""
    found = [b for path in PAGES for b in blocks_in(path.relative_to(ROOT).as_posix(), path.read_text())]
    return [
        b
        for b in found
        if language in ("", b.language) and page in ("", b.page) and (needs is None or b.needs == needs)
    ]


def commands(page: str = "") -> list[str]:
    """The commands of the pages, each once, without comments."""
    text = "".join(b.text for b in blocks("bash", page)).replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def pages_with_python(needs: str) -> list[str]:
    """The pages that have Python for this host, besides the README, whose blocks have tests of their own."""
    return [p for p in dict.fromkeys(b.page for b in blocks("python", needs=needs)) if p != "README.md"]


def execute(page: str, needs: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run the page's Python that needs this host, one block after the other in one namespace, which is returned."""
    scope = dict(given)
    for block in blocks("python", page, needs):
        exec(compile(block.text, page, "exec"), scope)  # the project's own page
    return scope
