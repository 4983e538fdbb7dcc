"""The documentation as tests see it: pages, blocks of code with what is to be done with them, commands and options that prose names.

A block is run where the line before it says ``<!-- runs -->`` (``<!-- runs: NAME -->``: where the package NAME is there), and written to a file where it says
``<!-- file: NAME -->``.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    sorted(
        path
        for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
        if "_build" not in path.parts
    )
)
SHELL = ("", "sh", "bash", "console")
MARK = re.compile(r"<!-- (runs|file)(?:: (\S+))? -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and its mark (``runs``, ``file`` or nothing) with a name."""

    place: str
    language: str
    text: str
    mark: str = ""
    name: str = ""

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Lines of a shell block with their places, continued ones joined."""
        if self.language not in SHELL:
            return []
        page, _, fence = self.place.rpartition(":")
        found, begun, place = [], "", ""
        for number, line in enumerate(f"{self.text}\n".splitlines(), int(fence) + 1):
            place = place if begun else f"{page}:{number}"
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            if begun:
                found.append((place, begun.removeprefix("$ ")))
            begun = ""
        return found

    @property
    def commands(self) -> list[str]:
        """Lines of a shell block, continued ones joined."""
        return [line for _, line in self.lines]


@dataclass(frozen=True)
class Page:
    """A page: its name from the root, its blocks, and what stands in code font in its prose, as (place, text)."""

    name: str
    blocks: tuple[Block, ...]
    words: tuple[tuple[str, str], ...]

    @property
    def runs(self) -> bool:
        return any(block.mark == "runs" for block in self.blocks)


def read_page(path: Path, root: Path = ROOT) -> Page:
    name, blocks, words = path.relative_to(root).as_posix(), [], []
    mark: re.Match[str] | None = None
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        place = f"{name}:{token.map[0] + 1}" if token.map else name
        if token.type == "html_block":
            mark = MARK.search(token.content)
            continue
        if token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else ""
            marked = (mark[1], mark[2] or "") if mark else ("", "")
            blocks.append(Block(place, language, token.content, *marked))
        words += [(place, part.content) for part in token.children or () if part.type == "code_inline"]
        mark = None
    return Page(name, tuple(blocks), tuple(words))


def words_of(line: str) -> list[str]:
    """Split a line of a shell as it is meant: no comment, no redirection, what is optional counts."""
    words = shlex.split(line.split(" > ")[0].removesuffix("&"), comments=True)
    plain = (
        word if word.startswith("[") == word.endswith("]") and not word.startswith("[--") else word.strip("[]")
        for word in words
    )
    return [word for word in plain if word not in ("|", "...")]
