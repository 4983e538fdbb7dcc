"""Every `stmdit` command that a page shows is run: the marked blocks by `test_docs_examples`, the others here, page by page from top to bottom.

At every run those that show a command or an option for the first time; nightly, all of them.

They run in this process, in a folder of small real files under the pages' names (`workspace`), with options added that only make them
shorter. Workers are real ones of dask: one process, which serves every line that asks for workers or a scheduler.
"""

from __future__ import annotations

import re
import shutil
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
import typer.testing
from documentation import PAGES, Page, read_page, words_of
from killing import forked_workers
from public import publish
from typer.testing import CliRunner
from workspace import make_home, make_workspace, online, served, write_files

from napari_stmdit.cli import app
from napari_stmdit.downloads.places import download_directory
from napari_stmdit.errors import StmditError
from napari_stmdit.model.foreign.inspect import inspect_checkpoint

PROGRAM = typer.main.get_command(app)
READ = [read_page(path) for path in PAGES]
NOT_RUN = {
    r"^accelerate launch ": "starts a launcher and four processes; what these run, `stmdit train`, is run in one",
    r"^stmdit demo .*--view$": "opens a viewer, which ends when a person closes it; without --view it is run",
}
"""Lines that cannot run here, as patterns, and why."""
SHORTER = {
    "synthesize": ("--steps", "2"),
    "evaluate": ("--spots", "24", "--seeds", "1", "--steps", "1", "--genes", "5", "--draws", "100"),
    "evaluate-result": ("--draws", "100"),
    "bench": ("--seconds", "0.05", "--rounds", "1", "--batches", "1", "--steps", "1"),
}
"""Options that are added to a command; they count instead of the page's own."""
SHORTER_ADAPTATION = ("--minutes", "0.001", "--workers", "1")
"""That of `stmdit train --section`."""
SHORTER_EDITS = ("--pairs", "8", "--steps", "1", "--draws", "100")
"""Those of `stmdit evaluate --parts counterfactual`, which heeds no others."""
SCHEDULER = "tcp://head:8786"
"""What pages call the address of a scheduler."""


def shown(page: Page) -> list[tuple[str, str, str]]:
    """Lines that call `stmdit`, in whatever way, as (place, line, mark of their block), and commands in prose, marked so."""
    lines = [
        (place, line, block.mark)
        for block in page.blocks
        for place, line in block.lines
        if words_of(line)[:1] == ["stmdit"] or "napari_stmdit.cli" in line
    ]
    return lines + [(place, text, "prose") for place, text in page.words if is_whole(text)]


def is_whole(text: str) -> bool:
    """Whether code in prose is a command with its arguments, and not a command's name or a part of it."""
    words = text.split()
    if words[:1] != ["stmdit"] or len(words) < 3 or "..." in words:
        return False
    try:
        PROGRAM.commands[words[1]].make_context(words[1], words[2:])
    except Exception:  # noqa: BLE001 # what is wrong with it, `test_docs_examples` says
        return False
    return True


def left_out(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in NOT_RUN)


def to_run(page: Page) -> list[tuple[str, str, str]]:
    return [(place, line, mark) for place, line, mark in shown(page) if mark != "runs" and not left_out(line)]


WITH_COMMANDS = [page for page in READ if to_run(page)]


def firsts() -> set[str]:
    """Places of the lines that show a command, or an option of it, which no line before them shows, and of downloads, which others need."""
    found, known = set(), set()
    for page in WITH_COMMANDS:
        for place, line, _ in to_run(page):
            command, *rest = words_of(line)[1:]
            new = {(command, word) for word in ["", *rest] if word[:2] in ("", "--")} - known
            known |= new
            found |= {place} if new or command == "download" else set()
    return found


FIRSTS = firsts()
WITH_FIRSTS = [page for page in WITH_COMMANDS if any(place in FIRSTS for place, _, _ in to_run(page))]


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory, monkeypatch_module):
    """The prepared folder, the user's data, and the hub; nothing is downloaded yet but what pages say was downloaded before."""
    patch = monkeypatch_module
    place = tmp_path_factory.mktemp("docs")
    patch.setenv("STMDIT_HOME", str(make_home(place / "home")))
    (place / "workspace").mkdir()
    make_workspace(place / "workspace", READ)
    # a person sits at the keyboard, who is asked for consent and gives it
    keyboard = typer.testing._NamedTextIOWrapper
    patch.setattr(keyboard, "isatty", lambda stream: stream.name == "<stdin>", raising=False)
    _small_base(patch)
    with served() as hub:
        online(patch, hub)
        publish(hub, patch, place / "workspace" / "SECTION")
        for name in ("stmdit-adaln-ddpm-p06", "pixcell-256"):
            assert faults_of(f"download {name} --yes".split(), "before all pages", "download") == []
        patch.chdir(place / "workspace")
        first = "synthesize SECTION --sample 24 --steps 1 --output OUT.zarr"
        assert faults_of(first.split(), "before all pages", first) == []
        yield place / "workspace"


def _small_base(patch: pytest.MonkeyPatch) -> None:
    """The random model of `stmdit bench --base` with two blocks; a small region that `stmdit bench` edits, and no processes for it."""
    from workspace import SMALL_VAE

    from napari_stmdit.bench import comparisons, stages

    def another_test(*_: object) -> None:
        raise StmditError("its two processes are started in bench/test_bench")

    patch.setattr(comparisons, "SIDE_UM", 250.0)
    patch.setattr(comparisons, "waiting", another_test)
    for name, value in {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}.items():
        patch.setitem(stages.BASE_SIZES, name, value)
    for name, value in SMALL_VAE.items():
        patch.setitem(stages.SD3_VAE, name, value)


@pytest.fixture(scope="module")
def scheduler(surroundings, monkeypatch_module):
    """The address of a scheduler with one real worker, which also stands for the workers that a command would start."""
    distributed = pytest.importorskip("distributed")
    from napari_stmdit.scale.cluster import local_client

    with forked_workers(), local_client(1, "cpu") as client:
        address = client.scheduler.address

        @contextmanager
        def same(workers: int, device: str = "auto"):
            with distributed.Client(address, set_as_default=False) as other:
                yield other

        monkeypatch_module.setattr("napari_stmdit.scale.cluster.local_client", same)
        yield address


def faults_of(words: list[str], place: str, line: str) -> list[str]:
    """Run a command as a user would; where it fails, what it said, with its place."""
    done = CliRunner().invoke(app, words, input="y\n")
    if done.exit_code == 0:
        return []
    error = done.exception
    why = str(error) if isinstance(error, StmditError) else "".join(traceback.format_exception(error))
    return [f"{place}: {line}\nran as: stmdit {' '.join(words)}\nexit code {done.exit_code}\n{done.output}{why}"]


def made_anew(words: list[str], mark: str) -> None:
    """Remove what an earlier line made and this one would find done: it is to do its work. Prose names ways, not one after another."""
    if mark == "prose":
        shutil.rmtree("stmdit-evaluation", ignore_errors=True)
    if words[0] == "batch":
        shutil.rmtree("results", ignore_errors=True)
    if words[0] == "download" and len(words) > 1:
        shutil.rmtree(download_directory(words[1].replace("stmdit:", "stmdit-")), ignore_errors=True)


def shorter(words: list[str]) -> tuple[str, ...]:
    """Options that make a command shorter."""
    if words[0] == "evaluate" and "counterfactual" in words:
        return SHORTER_EDITS
    if words[0] == "bench" and len(words) > 1:
        return (*SHORTER["bench"], "--checkpoint", "none")  # the line without options measures it
    if words[0] == "train" and "--section" in words:
        return SHORTER_ADAPTATION
    return SHORTER.get(words[0], ())


def faults_of_page(page: Page, address: str = "", places: set[str] | None = None) -> list[str]:
    """Run a page's lines, or those at these places."""
    faults = []
    for place, line, mark in to_run(page):
        if places is not None and place not in places:
            continue
        words = [address if word == SCHEDULER else word for word in words_of(line)[1:]]
        made_anew(words, mark)
        faults += faults_of([*words, *shorter(words)], place, line)
    return faults


@pytest.fixture
def run_page(surroundings, tmp_path, monkeypatch, request):
    """Run a page, or its lines at some places, in a folder of its own."""

    def run(page: Page, places: set[str] | None = None) -> None:
        shutil.copytree(surroundings, tmp_path / "here")
        monkeypatch.chdir(tmp_path / "here")
        write_files(page, Path())
        lines = [line for place, line, _ in to_run(page) if places is None or place in places]
        shared = any("--workers" in line or "--scheduler" in line for line in lines)
        address = request.getfixturevalue("scheduler") if shared else ""
        assert (faults := faults_of_page(page, address, places)) == [], "\n\n".join(["", *faults])

    return run


@pytest.mark.parametrize("page", WITH_FIRSTS, ids=lambda page: page.name)
def test_every_command_runs_with_every_option_that_is_shown(page, run_page):
    run_page(page, FIRSTS)


@pytest.mark.nightly
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_that_is_shown_runs(page, run_page):
    run_page(page)


@pytest.mark.slow
def test_a_command_that_does_not_run_is_told_with_its_place(surroundings, tmp_path, monkeypatch):
    """The check itself can fail: a wrong option, a file that is not there, a name that nobody gave."""
    monkeypatch.chdir(surroundings)
    text = "# A page\n\n```\nstmdit inspect model.pt \\\n    --sideways\nstmdit inspect nothing.pt\nstmdit info\n```\n"
    (tmp_path / "page.md").write_text(text)
    option, file = faults_of_page(read_page(tmp_path / "page.md", tmp_path))
    assert option.startswith("page.md:4: stmdit inspect model.pt") and "No such option" in option
    assert file.startswith("page.md:6: stmdit inspect nothing.pt") and "nothing.pt" in file.splitlines()[-1]


@pytest.mark.slow
def test_the_mapping_that_is_shown_places_every_tensor(surroundings):
    """A rule of the page that fits no tensor would be no fault of `stmdit inspect`, which lists what is open."""
    found = inspect_checkpoint(surroundings / "theirs.pt", None, surroundings / "mapping.yaml")
    assert [line for line in found.missing if "no rule" in line] == []
    assert list(found.ignored) == ["head.weight"]


def test_few_lines_are_left_out_and_each_is_shown():
    lines = [line for page in READ for _, line, _ in shown(page)]
    assert len(NOT_RUN) <= 4
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)] == []
    assert all(NOT_RUN.values())
    assert len([line for page in READ for line in to_run(page)]) > 25
    assert {"README.md", "docs/guides/checkpoints.md", "docs/guides/clusters.md"} <= {
        page.name for page in WITH_COMMANDS
    }
