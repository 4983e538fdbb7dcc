"""How a broken input is declared and tried: one copy of the tiny section, one change, one outcome that was written down before."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from standins import CropModel, card_for
from tiny import TINY_GENES

LIMIT_S = 20.0
"""Most that one case may take; they take milliseconds."""

Base = Literal["outs", "store", "nothing"]


@dataclass
class Scene:
    """What one case is run on.

    Attributes
    ----------
    root
        An empty folder of the case; everything that it reads lies in it.
    section
        What is opened: a copy of the tiny section, as a Space Ranger folder or a store.
    fullres, mpp, coordinate_system
        As `open_section` takes them.
    options
        Its options for plain slides.
    region, edits, request_file
        Files as the command line takes them.
    wishes
        Fields of the request.
    output, run
        Where to save, outside ``root``; None does not save.
    other
        Called instead of opening a section, for what is read without one.
    """

    root: Path
    section: Any
    outside: Path
    fullres: Any = None
    mpp: Any = None
    coordinate_system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    region: Path | None = None
    edits: Path | None = None
    request_file: Path | None = None
    wishes: dict[str, Any] = field(default_factory=dict)
    output: Path | None = None
    run: str | None = None
    other: Callable[[], object] | None = None


@dataclass(frozen=True)
class Refused:
    """The case must end in this very class of error, and its message must say this."""

    error: str
    says: str | Sequence[str]


@dataclass(frozen=True)
class Works:
    """The case must work, and what it tells of the result must contain this."""

    tells: str | Sequence[str] = ""


@dataclass(frozen=True)
class Case:
    """One input: its family and name, what it starts from, the change, and what must come of it."""

    family: str
    name: str
    base: Base
    change: Callable[[Scene], object]
    expected: Refused | Works

    @property
    def key(self) -> str:
        return f"{self.family}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What came of a case: ``works`` or the class of an error, its message, and whether the input is as it was."""

    case: Case
    ended: str
    message: str
    unchanged: bool
    ours: bool

    @property
    def as_expected(self) -> bool:
        wanted = self.case.expected
        says = wanted.says if isinstance(wanted, Refused) else wanted.tells
        texts = [says] if isinstance(says, str) else list(says)
        kind = wanted.error if isinstance(wanted, Refused) else "works"
        return self.ours and self.unchanged and self.ended == kind and all(text in self.message for text in texts)


class Model(CropModel):
    """Returns the real crop of a patch, or grey where no crop was asked for."""

    def images(self, batch: Any) -> Any:
        side = self.card.patch_px
        return np.full((len(batch.patches), side, side, 3), 128, np.uint8) if batch.crops is None else batch.crops


class Hang(BaseException):
    """A case took longer than `LIMIT_S`; no ``except Exception`` of the code under test may swallow it."""


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds; kill the process with every stack shown where even that is not heard."""

    def ring(*_: object) -> None:
        raise Hang(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree_hash(root: Path) -> str:
    """Hash every path below a folder with its kind, mode bits, time of change and content; links by their target."""
    total = hashlib.blake2b()
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            total.update(path + b"%o %d" % (state.st_mode, state.st_mtime_ns))
            if os.path.islink(path):
                total.update(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    total.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return total.hexdigest()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the scenes, in memory where there is room: thousands of folders are made and removed."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 200e6
    with tempfile.TemporaryDirectory(prefix="stmdit-fuzz-", dir=memory if roomy else None) as place:
        yield Path(place)


class Workshop:
    """Makes scenes: copies of the tiny section in folders of their own."""

    def __init__(self, outs: Path, store: Path, scratch: Path) -> None:
        self._base = {"outs": outs, "store": store}
        self._scratch = scratch
        self._count = 0
        self._section: Any = None

    def scene(self, case: Case) -> Scene:
        self._count += 1
        place = self._scratch / f"{self._count:04d}"
        root = place / "in"
        root.mkdir(parents=True)
        section: Any = None
        if case.base != "nothing":
            section = root / self._base[case.base].name
            shutil.copytree(self._base[case.base], section, copy_function=shutil.copyfile)
        scene = Scene(root, section, place / "out")
        case.change(scene)
        return scene

    @property
    def section(self) -> Any:
        """The tiny section, opened once, for cases whose fault lies elsewhere."""
        if self._section is None:
            from napari_stmdit.tissue.open import open_section

            self._section = open_section(self._base["outs"])
        return self._section

    def attempt(self, case: Case) -> Outcome:
        """Run a case through the public API and say what came of it."""
        from napari_stmdit.errors import StmditError

        scene = self.scene(case)
        before = tree_hash(scene.root)
        ours = True
        try:
            with watchdog(LIMIT_S):
                ended, message = "works", self._run(scene)
        except StmditError as error:
            ended, message = type(error).__name__, str(error)
        except Hang as error:
            ended, message, ours = "hang", str(error), False
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ended, message, ours = type(error).__name__, str(error), False
        outcome = Outcome(case, ended, message, tree_hash(scene.root) == before, ours)
        _open_up(scene.root)
        shutil.rmtree(scene.root.parent, ignore_errors=True)
        return outcome

    def _run(self, scene: Scene) -> str:
        from napari_stmdit.synthesis.requests import make_request, read_edit_file, read_request, with_edits
        from napari_stmdit.synthesis.session import synthesize
        from napari_stmdit.tissue.geometry import polygons_from_geojson
        from napari_stmdit.tissue.open import open_section
        from napari_stmdit.tissue.store import check_writable

        if scene.other is not None:
            return str(scene.other())
        wishes = {} if scene.request_file is None else read_request(scene.request_file).model_dump()
        if scene.region is not None:
            wishes["region"] = polygons_from_geojson(scene.region).model_dump()
        if scene.request_file is None:
            wishes = {"region": {"kind": "sample", "count": 1}, **wishes}
        wishes |= scene.wishes
        request = make_request(wishes)
        if scene.edits is not None:
            request = with_edits(request, read_edit_file(scene.edits))
        section = self.section
        if scene.section is not None:
            more = {"coordinate_system": scene.coordinate_system, **scene.options}
            section = open_section(scene.section, scene.fullres, scene.mpp, **more)
        if scene.output is not None:
            check_writable(scene.output, section)
        result = synthesize(section, request, Model(card_for(TINY_GENES)))
        if scene.output is not None:
            result.save(scene.output, scene.run)
        return _told(result)


def _told(result: Any) -> str:
    section = result.section
    return "; ".join(
        [
            f"{len(result.done)} of {len(section.spots)} spots",
            f"{section.calibration.mpp:.4g} um/px by {section.calibration.source}",
            f"mean {result.patches.mean():.0f}",
            *section.notes,
            *result.plan.notes,
        ]
    )


def _open_up(root: Path) -> None:
    """Give folders that a case made read-only back, so that they can be removed."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)


# ------------------------------------------------------------------------------------------------- changes


def write(path: str, content: str | bytes) -> Callable[[Scene], object]:
    """Replace a file of the section, or add one."""

    def change(scene: Scene) -> None:
        file = scene.section / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def edit_text(path: str, change: Callable[[str], str]) -> Callable[[Scene], object]:
    """Rewrite a text file of the section."""
    return lambda scene: (scene.section / path).write_text(change((scene.section / path).read_text()))


def edit_json(path: str, **values: Any) -> Callable[[Scene], object]:
    """Set keys of a JSON file of the section; `MISSING` removes one."""

    def change(scene: Scene) -> None:
        file = scene.section / path
        content = json.loads(file.read_text()) | values
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not MISSING}))

    return change


def truncate(path: str, share: float) -> Callable[[Scene], object]:
    """Cut a file of the section to a share of its size."""

    def change(scene: Scene) -> None:
        file = scene.section / path
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return change


def remove(*paths: str) -> Callable[[Scene], object]:
    """Remove files or folders of the section."""

    def change(scene: Scene) -> None:
        for path in paths:
            target = scene.section / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def both(*changes: Callable[[Scene], object]) -> Callable[[Scene], object]:
    """Make several changes."""
    return lambda scene: [change(scene) for change in changes]


def link(path: str, target: str) -> Callable[[Scene], object]:
    """Put a symbolic link in the place of a file or folder of the section."""

    def change(scene: Scene) -> None:
        file = scene.section / path
        if file.is_dir():
            shutil.rmtree(file)
        elif file.exists():
            file.unlink()
        file.symlink_to(target)

    return change


def given(kind: str, content: str | bytes, name: str | None = None) -> Callable[[Scene], object]:
    """Write the file of a region, edits or a request, and give it."""
    names = {"region": "region.geojson", "edits": "edits.yaml", "request_file": "request.yaml"}

    def change(scene: Scene) -> None:
        file = scene.root / (name or names[kind])
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        setattr(scene, kind, file)

    return change


def asking(**wishes: Any) -> Callable[[Scene], object]:
    """Ask for something in the request."""
    return lambda scene: scene.wishes.update(wishes)


def setting(**values: Any) -> Callable[[Scene], object]:
    """Set fields of the scene; a callable gets the scene and returns the value."""

    def change(scene: Scene) -> None:
        for name, value in values.items():
            setattr(scene, name, value(scene) if callable(value) else value)

    return change


def nothing(scene: Scene) -> None:
    """Change nothing."""


class _Missing:
    pass


MISSING = _Missing()


def section_error(*says: str) -> Refused:
    return Refused("SectionError", says)


def request_error(*says: str) -> Refused:
    return Refused("RequestError", says)


def store_error(*says: str) -> Refused:
    return Refused("StoreError", says)


def cases(
    family: str, base: Base, table: Sequence[tuple[str, Callable[[Scene], object], Refused | Works]]
) -> list[Case]:
    """Turn rows of (name, change, expected) into the cases of a family."""
    return [Case(family, name, base, change, expected) for name, change, expected in table]
