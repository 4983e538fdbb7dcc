"""Where things lie: names, links, rights, and places to write to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzz.harness import Scene, Works, cases, section_error, setting, store_error, write

FINE = Works("1 of 30 spots")
ABSENT = section_error("there is no file or folder")


def moved(name: str):
    """Put the section into a folder of another name."""

    def apply(scene: Scene) -> None:
        target = scene.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scene.section = scene.section.rename(target)

    return apply


def at(path):
    return setting(section=lambda s: path(s) if callable(path) else path)


def locked(scene: Scene) -> None:
    """Take the right to write from every file and folder."""
    for folder, _, files in os.walk(scene.root):
        for name in files:
            os.chmod(Path(folder) / name, 0o444)
        os.chmod(folder, 0o555)


def linked(scene: Scene) -> None:
    (scene.root / "link").symlink_to(scene.section, target_is_directory=True)
    scene.section = scene.root / "link"


def loop(scene: Scene) -> None:
    (scene.root / "a").symlink_to("b")
    (scene.root / "b").symlink_to("a")
    scene.section = scene.root / "a"


def inner_loop(scene: Scene) -> None:
    (scene.section / "again").symlink_to(scene.section, target_is_directory=True)


def linked_files(scene: Scene) -> None:
    far = scene.root / "far"
    far.mkdir()
    for file in [f for f in scene.section.rglob("*") if f.is_file()]:
        target = far / file.name
        shutil.move(file, target)
        file.symlink_to(target)


def in_outs(scene: Scene) -> None:
    outs = scene.root / "outs"
    scene.section.rename(outs)
    scene.section = scene.root


SECTIONS = cases(
    "paths",
    "outs",
    [
        *(
            (f"a folder called {name!r}", moved(name), FINE)
            for name in (
                "Gewebe Müller ß",
                "组织切片",
                "секция №1",
                "🧬",
                "a b  c",
                "new\nline",
                "-rf",
                "--help",
                "$(touch pwned)",
                "a;b&c",
                "'quotes\"",
                "x" * 200,
                "stmdit_1",
                "con",
                "a.zarr",
                "square_008um",
                "deep/" * 30 + "x",
            )
        ),
        ("a folder whose name is no UTF-8", moved(os.fsdecode(b"caf\xe9")), FINE),
        ("a path with ..", at(lambda s: s.section / ".." / s.section.name), FINE),
        ("a path as text", at(lambda s: str(s.section)), FINE),
        ("a path with a slash behind", at(lambda s: str(s.section) + "/"), FINE),
        ("the folder above outs", in_outs, FINE),
        ("read-only files and folders", locked, FINE),
        ("a link to the folder", linked, FINE),
        ("links to the files", linked_files, FINE),
        ("links in a circle", loop, ABSENT),
        ("a link in the section to the section", inner_loop, FINE),
        ("a link to nothing", lambda s: ((s.root / "l").symlink_to("nowhere"), at(s.root / "l")(s)), ABSENT),
        ("missing", at(lambda s: s.root / "nothing"), ABSENT),
        ("../../..", at(lambda s: s.section / "../../../nothing"), ABSENT),
        ("a NUL in the path", at("a\0b"), section_error("null byte")),
        ("a path of 5000 letters", at("s" * 5000), section_error("File name too long")),
        ("a path through a file", at(lambda s: s.section / "slide.png" / "x"), ABSENT),
        ("home of nobody", at("~nosuchuser/x"), section_error("~nosuchuser")),
        ("an empty path", at(""), section_error("expected a Space Ranger folder")),
        ("a device", at("/dev/null"), section_error("is a file")),
        ("an address", at("https://example.org/section.zarr"), ABSENT),
        ("a bucket", at("s3://bucket/section.zarr"), ABSENT),
        (
            "an empty folder",
            lambda s: ((s.root / "empty").mkdir(), at(s.root / "empty")(s)),
            section_error("no tissue section"),
        ),
        *(
            (
                f"a file {name}",
                lambda s, n=name: ((s.root / n).write_bytes(b"x"), at(s.root / n)(s)),
                section_error(says),
            )
            for name, says in (
                ("x.cloupe", "Loupe"),
                ("x.zip", "unpack"),
                ("x.tar.gz", "unpack"),
                ("x.h5", "counts file alone"),
                ("x.h5ad", "x.h5ad"),
                ("x.PNG", "cannot be read as an image"),
                ("x.svs", "cannot be read as TIFF"),
                ("x.rds", "give a folder"),
                ("x", "give a folder"),
                ("x.zarr", "give a folder"),
            )
        ),
        ("a number in the place of a path", at(7), section_error("expected a path")),
        ("a list in the place of a path", setting(section=[]), section_error("expected a path")),
        ("a note that it is synthetic", write("SYNTHETIC.json", '{"note": "dice"}'), Works("synthetic: dice")),
        *(
            (
                f"a note that it is synthetic: {text!r}",
                write("SYNTHETIC.json", text),
                section_error("SYNTHETIC.json", "cannot be read"),
            )
            for text in ("", "7", "[]", '{"note": 7}', "[" * 100_000)
        ),
        ("a file in the section that is no part of it", write("notes.txt", "hello"), FINE),
        ("a folder in the section called x.png", lambda s: (s.section / "x.png").mkdir(), FINE),
    ],
)


def into(path, run: str | None = None):
    def apply(scene: Scene) -> None:
        scene.outside.mkdir(exist_ok=True)
        scene.output = path(scene)
        scene.run = run

    return apply


def _other_section(scene: Scene) -> None:
    import numpy as np

    from napari_stmdit.tissue.open import open_sample_section
    from napari_stmdit.tissue.store import write_result

    scene.outside.mkdir()
    scene.output = scene.outside / "o.zarr"
    write_result(scene.output, np.zeros((8, 8, 4), np.uint8), np.eye(3), open_sample_section(), None, {})


OUTPUTS = cases(
    "outputs",
    "nothing",
    [
        ("a new store", into(lambda s: s.outside / "o.zarr"), FINE),
        ("a new store with letters from elsewhere", into(lambda s: s.outside / "Müller 组织.zarr"), FINE),
        ("an empty folder", into(lambda s: (s.outside / "o.zarr").mkdir() or s.outside / "o.zarr"), FINE),
        (
            "a folder of other things",
            into(lambda s: (s.outside / "x").write_text("") and None or s.outside),
            store_error("no SpatialData store"),
        ),
        (
            "a file",
            into(lambda s: (s.outside / "o").write_text("x") and s.outside / "o"),
            store_error("no SpatialData store"),
        ),
        (
            "below a file",
            into(lambda s: (s.outside / "o").write_text("x") and s.outside / "o" / "p.zarr"),
            store_error("no folder that you may write to"),
        ),
        ("below a device", into(lambda s: Path("/dev/null/o.zarr")), store_error("no folder that you may write to")),
        ("in a file system that takes nothing", into(lambda s: Path("/proc/o.zarr")), store_error("/proc/o.zarr")),
        ("another section's store", _other_section, store_error("holds another section")),
        (
            "a link to nothing",
            into(lambda s: (s.outside / "l").symlink_to(s.outside / "nowhere") or s.outside / "l"),
            store_error("link"),
        ),
        (
            "a link in a circle",
            into(lambda s: (s.outside / "l").symlink_to("l") or s.outside / "l"),
            store_error("link"),
        ),
        ("a name of 5000 letters", into(lambda s: s.outside / ("o" * 5000)), store_error("File name too long")),
        ("a NUL in the name", into(lambda s: s.outside / "a\0b"), store_error("null")),
        ("home of nobody", into(lambda s: Path("~nosuchuser/o.zarr")), store_error("~nosuchuser")),
        *(
            (f"a run called {run!r}", into(lambda s: s.outside / "o.zarr", run), store_error("other characters than"))
            for run in ("../x", "a/b", "a b", "x\n", "\x1b", "", "é", "a\0")
        ),
        ("a run called ..", into(lambda s: s.outside / "o.zarr", ".."), FINE),
        ("a run of 300 letters", into(lambda s: s.outside / "o.zarr", "r" * 300), store_error("o.zarr")),
    ],
)
CASES = [*SECTIONS, *OUTPUTS]
