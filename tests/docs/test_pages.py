"""What holds for every page: links lead somewhere, lines are short, every command is described, the figure is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from chameleon.cli import app, main
from scripts.docs.site_links import on_page_markdown
from tests.support.pages import PAGES, ROOT, blocks

LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
LINE_LENGTH = 119
WRITTEN = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "results" / "README.md"]
APP: Any = typer.main.get_command(app)
NOT_IN_THE_FIGURE = {"deploy", "doctor", "exchange", "page", "presets", "testing"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sections() -> dict[str, str]:
    """The text of docs/cli.md by heading; what stands before the first belongs to the whole application."""
    first, *others = (ROOT / "docs" / "cli.md").read_text().split("\n## ")
    return {"chameleon": first} | {s.partition("\n")[0]: s for s in others}


def options_of(command: Any) -> set[str]:
    """All names of all options, such as `--rewrite` and `--no-rewrite`; of a group, those of its commands as well."""
    options = [p for p in command.params if p.param_type_name == "option"]
    names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    return names.union(*map(options_of, parts_of(command))) if command is not APP else names


def parts_of(command: Any) -> list[Any]:
    """The commands of a group."""
    return list(getattr(command, "commands", {}).values())


def words(text: str) -> set[str]:
    """The words in code spans."""
    return {word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()}


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", link)]
    assert not [link for link in targets if not (page.parent / link).exists()]


def test_the_links_are_found() -> None:
    assert LINK.findall("see [a](b.md#c), [d\n e](../f.md) and [g](https://h)") == ["b.md", "../f.md", "https://h"]
    assert len(LINK.findall((ROOT / "README.md").read_text())) > 10


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    assert not [line for line in page.read_text().splitlines() if len(line) > LINE_LENGTH]


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("command", APP.commands)
def test_a_command_is_described_with_all_its_options(command: str) -> None:
    assert not options_of(APP.commands[command]) - words(sections()[f"chameleon {command}"])


def test_the_page_of_commands_has_no_others() -> None:
    described = sections()
    assert set(described) == {"chameleon"} | {f"chameleon {name}" for name in APP.commands}
    assert options_of(APP) <= words(described["chameleon"])
    known = {"--help"}.union(*map(options_of, (APP, *APP.commands.values())))
    written = {word for text in described.values() for word in words(text) if word.startswith("--")}
    assert not written - known


def test_the_commands_of_a_group_are_described() -> None:
    for name, command in APP.commands.items():
        assert {part.name for part in parts_of(command)} <= words(sections()[f"chameleon {name}"])


@pytest.mark.parametrize(
    "command", ["", *APP.commands, *(f"{name} {p.name}" for name, c in APP.commands.items() for p in parts_of(c))]
)
def test_help_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_the_figure_shows_the_folders() -> None:
    figure = blocks("text", "README.md")[0].text
    boxes = set(re.findall(r"─ (\w+) ─", figure))
    folders = {p.parent.name for p in (ROOT / "chameleon").glob("*/__init__.py")} - NOT_IN_THE_FIGURE
    assert boxes == folders | {"tuners"}


def test_on_the_site_a_link_out_of_the_pages_is_a_name() -> None:
    class Page:
        class file:
            src_uri = "measurements/search.md"

    text = "see [results](../../results/README.md), [words](../glossary.md) and [there](https://x/y)"
    expected = "see results (`results/README.md`), [words](../glossary.md) and [there](https://x/y)"
    assert on_page_markdown(text, Page()) == expected
