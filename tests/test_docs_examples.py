"""What the documentation shows is true: commands and options are there, Python names and arguments too, and marked examples run as they stand."""

import ast
import doctest
import inspect
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter

import pytest
import typer
import yaml
from documentation import PAGES, ROOT, read_page, words_of
from typer.testing import CliRunner
from workspace import make_home

import napari_stmdit
from napari_stmdit.cli import app

PROGRAM = typer.main.get_command(app)
OTHERS = {
    *("--gres", "--cpus-per-task", "--nthreads", "--memory-limit", "--port", "--num_processes", "--logdir"),
    *("--root", "--kills", "--group", "--editable", "--benchmark-only", "--strict"),
}
"""Options that pages name and that belong to other programs, or to scripts of this repository."""
READ = [read_page(path) for path in PAGES]


def options_of(command):
    named = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    return {name for name in named if name.startswith("-")} | {"--help"}


def parsed(words):
    """Parse a command as the program itself would, and do nothing."""
    assert words, "names no command"
    if words[0].startswith("-"):
        assert set(words) <= options_of(PROGRAM), words
        return
    assert words[0] in PROGRAM.commands, f"there is no command {words[0]!r}"
    if "--help" not in words:
        PROGRAM.commands[words[0]].make_context(words[0], words[1:])


def said(error):
    """What the parser would print; its errors say it elsewhere than others do."""
    return error.format_message() if hasattr(error, "format_message") else str(error)


def command_lines(page):
    for block in page.blocks:
        for line in block.commands:
            words = words_of(line)
            if words[:1] == ["stmdit"]:
                yield block.place, words[1:]
            elif "napari_stmdit.cli" in words:
                yield block.place, words[words.index("napari_stmdit.cli") + 1 :]


def faults_of_commands(page):
    faults = []
    for place, words in command_lines(page):
        try:
            parsed(words)
        except Exception as error:  # noqa: BLE001 # whatever the parser says is the fault
            faults.append(f"{place}: stmdit {' '.join(words)}: {said(error)}")
    every = {name for command in PROGRAM.commands.values() for name in options_of(command)} | OTHERS
    for place, text in page.words:
        first, *rest = text.split()
        known = every
        if first == "stmdit" and rest and not rest[0].startswith("-"):
            if rest[0] not in PROGRAM.commands:
                faults.append(f"{place}: `{text}`: there is no such command")
                continue
            known = options_of(PROGRAM.commands[rest[0]])
        elif first == "stmdit":
            known = options_of(PROGRAM)
        elif not first.startswith("--"):
            continue
        faults += [
            f"{place}: `{text}`: there is no option {option}"
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
            if option not in known
        ]
    return faults


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_every_command_that_is_shown_is_one(page):
    assert faults_of_commands(page) == []


def test_a_wrong_command_is_found(tmp_path):
    """The check itself can fail: in blocks, in prose, in what is optional."""
    text = "```\nstmdit synthesise outs\nstmdit inspect FILE [--sideways X]\nstmdit synthesize outs  # no output\nstmdit info --json\n```\n"
    page = tmp_path / "page.md"
    page.write_text(text + "Use `stmdit demo --fast`, `stmdit fly` or `--wing-span 3`, not `--seed`.\n")
    faults = faults_of_commands(read_page(page, tmp_path))
    assert len(faults) == 6, faults
    assert [
        part
        for part in ("synthesise", "--sideways", "output", "--fast", "fly", "--wing-span")
        if part not in "\n".join(faults)
    ] == []


def test_every_make_target_that_is_shown_is_one():
    makefile = (ROOT / "Makefile").read_text()
    shown = {
        words_of(line)[1]
        for page in READ
        for block in page.blocks
        for line in block.commands
        if line.startswith("make ")
    }
    assert {"demo", "test"} <= shown
    assert [target for target in sorted(shown) if not re.search(rf"^{target}:", makefile, re.M)] == []


SPACES = ("edits", "regions")
NAMED = re.compile(r"st\.((?:(?:edits|regions)\.)?\w+)")


@cache
def public():
    """Return public name -> what it is, those of namespaces with a dot."""
    found = {name: getattr(napari_stmdit, name) for name in napari_stmdit.__all__ if name not in SPACES}
    for space in SPACES:
        for name, value in vars(getattr(napari_stmdit, space)).items():
            if inspect.isclass(value) and value.__module__ == f"napari_stmdit.{space}" and name[0] != "_":
                found[f"{space}.{name}"] = value
    return found


PYTHON = [block for page in READ for block in page.blocks if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_that_is_shown_names_what_is_there(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("napari_stmdit"):
            module = import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
        if isinstance(node, ast.Attribute) and (named := NAMED.fullmatch(ast.unparse(node))) and named[1] not in SPACES:
            assert named[1] in public(), named[0]
        if isinstance(node, ast.Call) and (called := NAMED.fullmatch(ast.unparse(node.func))):
            taken = inspect.signature(public()[called[1]]).parameters
            assert [word.arg for word in node.keywords if word.arg and word.arg not in taken] == [], called[0]


@pytest.mark.parametrize("folder", ["docs", "docs/evidence", "benchmarks"])
def test_scripts_import_what_is_there(folder):
    """They run for hours, elsewhere and seldom: a name that was changed would be noticed late."""
    gone = [
        f"{script.name}: {node.module}.{alias.name}"
        for script in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("napari_stmdit")
        for alias in node.names
        if not is_there(node.module, alias.name)
    ]
    assert not gone


def is_there(module, name):
    """Whether a module has a name, or is a package with a module of that name."""
    found = import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)


def test_yaml_that_is_shown_is_yaml():
    blocks = [block for page in READ for block in page.blocks if block.language == "yaml"]
    assert len(blocks) > 5
    for block in blocks:
        assert yaml.safe_load(block.text) is not None, block.place


@pytest.fixture
def made_short(monkeypatch, tmp_path):
    """The same examples on less: a small brush in the demo; eight crops and two steps in the training."""
    monkeypatch.chdir(tmp_path)
    for name, um in (("FULL_UM", 20.0), ("END_UM", 40.0), ("SIDE_UM", 200.0)):
        monkeypatch.setattr(f"napari_stmdit.evaluation.demo.{name}", um)
    fewer = {"crops": 8, "steps": 2, "validate_every": 2, "sample_every": 2, "warmup": 1, "batch": 1, "small_batch": 1}

    done = []

    def shorten(page):
        path = tmp_path / "finetune.yaml"
        if page == TRAINING and path.exists() and not done:
            done.append(page)
            text = path.read_text()
            for name, value in fewer.items():
                text, found = re.subn(rf"^  {name}: \S+", f"  {name}: {value}", text, flags=re.M)
                assert found == 1, name
            path.write_text(re.sub(r"^card:", "card:\n  steps: 2", text, flags=re.M))

    return shorten


RUN = [page for page in READ if page.runs]


TRAINING = "docs/guides/training.md"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if page.name != TRAINING], ids=lambda page: page.name)
def test_marked_examples_run(page, made_short, tmp_path):
    run_page(page, made_short, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("demo", ["small", pytest.param("bundled", marks=pytest.mark.nightly)])
def test_the_examples_of_a_training_run(demo, made_short, tmp_path, monkeypatch):
    """From a small checkpoint of the name ``demo``; nightly from the bundled one."""
    if demo == "small":
        monkeypatch.setenv("STMDIT_HOME", str(make_home(tmp_path / "home")))
    (page,) = (page for page in RUN if page.name == TRAINING)
    run_page(page, made_short, tmp_path)


def run_page(page, made_short, tmp_path):
    """Run a page in a folder of its own, its blocks in their order."""
    names: dict[str, object] = {"__name__": "__example__"}
    for block in page.blocks:
        if block.mark == "file":
            (tmp_path / block.name).write_text(block.text)
        elif block.mark == "runs" and block.language == "python":
            if block.name:
                pytest.importorskip(block.name)
            exec(compile(block.text, block.place, "exec"), names)
        elif block.mark == "runs":
            for line in block.commands:
                run_line(line, tmp_path, block.place)
        made_short(page.name)


def run_line(line, folder, place):
    words = words_of(line)
    assert words[0] == "stmdit", f"{place}: only stmdit is run here, got {line}"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, f"{place}: {line}\n{done.output}\n{done.exception!r}"
    if " > " in line:
        (folder / line.split(" > ")[1].strip()).write_text(done.stdout)


def test_the_pages_for_beginners_are_run():
    run = {page.name for page in RUN}
    assert {"docs/start.md", "docs/guides/synthesizing.md", "docs/guides/training.md", "docs/guides/datasets.md"} <= run


def test_every_public_name_is_on_the_page_of_the_interface():
    text = (ROOT / "docs" / "api.md").read_text()
    marks = re.findall(r"^\.\. (currentmodule|auto\w+):: (\S+)$", text, re.M)
    shown, space = set(), ""
    for mark, name in marks:
        if mark == "currentmodule":
            space = name.removeprefix("napari_stmdit").lstrip(".")
        elif not name.startswith("napari_stmdit."):
            shown.add(f"{space}.{name}" if space else name)
    assert shown == public().keys() - {"__version__"}


def test_names_of_before_lead_to_those_of_now():
    """Until version 0.2; with a warning."""
    olds = napari_stmdit._OLD
    for old, new in olds.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is now napari_stmdit.{new}"):
            assert getattr(napari_stmdit, old) is attrgetter(new)(napari_stmdit)
    assert {"KnockOutEdit", "AllSpots", "export_result"} <= olds.keys() and not olds.keys() & public().keys()
    with pytest.raises(AttributeError):
        _ = napari_stmdit.nothing


def test_examples_in_docstrings_run(monkeypatch, tmp_path):
    """Those of all public names, with a section, a checkpoint and a result at hand."""
    monkeypatch.chdir(tmp_path)
    section, checkpoint = napari_stmdit.open_sample_section(), napari_stmdit.load_checkpoint("demo")
    edit = napari_stmdit.edits.Towards(target_profile="adipose")
    request = napari_stmdit.Request(region=napari_stmdit.regions.SampleOfSpots(count=2), edits=(edit,), steps=2)
    result = napari_stmdit.synthesize(section, request, checkpoint)
    at_hand = {"st": napari_stmdit, "section": section, "checkpoint": checkpoint, "result": result}
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder(exclude_empty=True)
    found = [
        example
        for name, one in public().items()
        if callable(one)
        for example in finder.find(one, name, globs=at_hand)
        if example.examples
    ]
    for example in found:
        runner.run(example)
    assert len(found) >= 6 and runner.failures == 0
