"""What the package asks of others, and what its documentation says of its tests."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_dependencies_have_lower_bounds_alone():
    extras = [one for wanted in PROJECT["optional-dependencies"].values() for one in wanted]
    for requirement in [*PROJECT["dependencies"], *extras]:
        bounds = requirement.split(";")[0]
        assert ">=" in bounds and not re.search(r"<|==|~=", bounds), requirement


def test_no_qt_is_required():
    names = {re.split(r"[\[<>=!;~ ]", requirement)[0].lower() for requirement in PROJECT["dependencies"]}
    assert not names & {"pyside6", "pyside6_essentials", "pyqt6", "pyqt5", "torchvision", "timm"}
    assert not any("[" in requirement for requirement in PROJECT["dependencies"])  # napari[all] would bring one


def test_every_test_that_the_documentation_names_is_there():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = set()
    for page in pages:
        named |= set(re.findall(r"`(?:tests/)?([\w/]+\.py)::(test_\w+)`", page.read_text(encoding="utf-8")))
    assert len(named) > 20
    for file, test in sorted(named):
        path = ROOT / "tests" / file
        assert path.is_file(), f"{file} is named and not there"
        assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{file} has no {test}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built here as a release builds it, but without a network."""
    pytest.importorskip("hatchling")
    pytest.importorskip("hatch_fancy_pypi_readme")
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = place.glob("*.whl")
    return path


def test_the_wheel_is_small_and_has_all_that_it_needs(wheel):
    assert wheel.stat().st_size < 40 * 10**6
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the package")
    wanted = {line.removeprefix("src/") for line in tracked.stdout.splitlines() if (ROOT / line).is_file()}
    assert len(wanted) > 200 and wanted - there == set()
    assert {
        name for name in there - wanted if ".dist-info/" not in name and not (ROOT / "src" / name).is_file()
    } == set()
    for name in (
        "napari.yaml", "py.typed", "data/demo_checkpoint/transformer/diffusion_pytorch_model.safetensors", "data/finetune.yaml",
        "data/sample_section/slide.jpg", "data/programs.yaml", "data/zoo.yaml", "data/sections.yaml",
    ):  # fmt: skip
        assert f"napari_stmdit/{name}" in there, name
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in there)
    assert not any(re.search(r"__pycache__|\.pyc$|/tests?/", name) for name in there)


def test_the_wheel_declares_the_plugin_and_the_program(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        declared = archive.read(name).decode()
    assert "[napari.manifest]\nnapari-stmdit = napari_stmdit:napari.yaml" in declared
    assert "stmdit = napari_stmdit.cli:main" in declared


def test_the_page_on_pypi_and_the_hub_links_to_what_it_shows(wheel):
    """Both show the README without the repository around it: pictures and links have to be absolute, and to lead to files that are there."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(name))
    assert said["Description-Content-Type"] == "text/markdown" and "Framework :: napari" in said.get_all("Classifier")
    targets = re.findall(r"\]\(([^)\s]+)\)", said.get_payload())
    assert len(targets) > 10 and all(target.startswith("https://") for target in targets)
    own = [
        t
        for t in targets
        if t.startswith(("https://github.com/napari-stmdit/", "https://raw.githubusercontent.com/napari-stmdit/"))
    ]
    files = [ROOT / target.split("/main/")[1].split("#")[0] for target in own if "/main/" in target]
    assert len(files) > 8 and [str(path) for path in files if not path.is_file()] == []
    assert [t for t in targets if t.endswith(".png") and not t.startswith("https://raw.")] == []


def test_the_manifest_is_one_that_napari_takes():
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(ROOT / "src" / "napari_stmdit" / "napari.yaml")
    manifest.validate_imports()
    assert (
        manifest.name == PROJECT["name"]
        and (ROOT / "napari.yaml").resolve() == ROOT / "src" / "napari_stmdit" / "napari.yaml"
    )
    assert manifest.contributions.widgets and manifest.contributions.readers and manifest.contributions.sample_data


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    names = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # conda-forge's matplotlib brings a Qt
    found = {part.split()[0]: part.split()[1] for part in recipe["requirements"]["run"]}
    del found["python"]
    wanted = dict(re.match(r"([\w.-]+)(.*)", requirement).groups() for requirement in PROJECT["dependencies"])
    assert {names.get(name, name): bound for name, bound in found.items()} == wanted
    assert recipe["context"]["version"] == PROJECT["version"] and recipe["about"]["license"] == PROJECT["license"]


def test_the_metadata_beside_the_package_agree_with_it():
    scverse = yaml.safe_load((ROOT / "packaging" / "scverse" / "napari-stmdit" / "meta.yaml").read_text())
    needed = "name description project_home documentation_home install license tags version category primary_category contact"
    assert set(needed.split()) <= set(scverse)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for said in (scverse, citation):
        assert said["version"] == PROJECT["version"] and said["license"] == PROJECT["license"]
    assert scverse["documentation_home"].rstrip("/") == PROJECT["urls"]["Documentation"]
    assert citation["cff-version"] == "1.2.0" and all(one["title"] and one["authors"] for one in citation["references"])


def test_workflows_and_forms_are_read():
    folder = ROOT / ".github"
    flows = {path.name: yaml.safe_load(path.read_text()) for path in (folder / "workflows").glob("*.yml")}
    matrix = flows["test.yml"]["jobs"]["test"]["strategy"]["matrix"]
    said = [one.rsplit(" :: ", 1)[1] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert matrix["python"] == said and len(matrix["system"]) == 3
    published = flows["release.yml"]["jobs"]["publish"]
    assert published["permissions"] == {"id-token": "write"} and {"build", "try", "test"} == set(published["needs"])
    assert "secrets." not in "".join(path.read_text() for path in (folder / "workflows").glob("*.yml"))
    form = yaml.safe_load((folder / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert any("stmdit info" in part["attributes"].get("label", "") for part in form["body"])


def test_every_file_on_the_map_is_there():
    """A path is a word in code font with a slash or a file's ending; it is looked for in its row's room, from the package and from the root."""
    lost, package = [], ROOT / "src" / "napari_stmdit"
    for line in (ROOT / "docs" / "map.md").read_text(encoding="utf-8").splitlines():
        words = re.findall(r"`([^`\s]+)`", line)
        rooms = [package / words[0]] if words and words[0].endswith("/") else []
        for word in words:
            if re.fullmatch(r"[\w./*-]+(/|\.(py|md|ya?ml|tsv|toml|j2))", word) and not any(
                list(base.glob(word.rstrip("/"))) for base in (*rooms, ROOT, package, ROOT / "docs" / "evidence")
            ):
                lost.append(word)
    assert lost == []
