"""What the package asks of others, and what its documentation says of its tests."""

import re
import tomllib
from pathlib import Path

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
