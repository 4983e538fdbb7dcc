"""Random things in the place of an output, and the content of everything below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import strategies as st

NAMES = st.sampled_from(
    ["a.txt", "thesis.tex", "report.html", "report.json", "training.json", "transformer", "stacks", ".made_by.json"]
    + ["model_index.json", "comparison.png", "report.md", "OUT.zarr"]
)
LEAVES = st.one_of(
    st.sampled_from(["mine", '{"work": "x", "files": {}}', ""]).map(lambda text: ("file", text)),
    st.sampled_from(["elsewhere", "../outside", "."]).map(lambda target: ("link", target)),
)
TREES = st.one_of(
    LEAVES,
    st.dictionaries(NAMES, st.one_of(LEAVES, st.dictionaries(NAMES, LEAVES, max_size=2)), max_size=3),
)
"""A file, a link, or a folder of such."""


def plant(place: Path, tree: object) -> None:
    """Make a tree at a place."""
    if isinstance(tree, dict):
        place.mkdir(parents=True)
        for name, inner in tree.items():
            plant(place / name, inner)
    elif tree[0] == "link":
        place.symlink_to(tree[1])
    else:
        place.write_text(tree[1])


def content(folder: Path) -> dict[str, object]:
    """Return what lies below a folder: the bytes of files, the targets of links, and which folders there are."""
    found: dict[str, object] = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            key = path.relative_to(folder).as_posix()
            found[key] = os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
    return found
