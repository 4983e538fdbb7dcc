"""Triton and Mesa each bring an LLVM, and the second one ends the process."""

import importlib.util
import subprocess
import sys

import pytest

from napari_stmdit.model import leave_triton_out

DRAWS_AND_LOADS = """
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QApplication
app, widget = QApplication([]), QOpenGLWidget()
widget.show()
for _ in range(30):
    app.processEvents()
import napari_stmdit.model.autoencoder
import torch._dynamo
"""


@pytest.mark.parametrize(
    ("line", "there", "left"),
    [
        ("7f00-7f01 r-xp 00000000 fe:00 42 /usr/lib/libLLVM-15.so.1", {}, True),
        ("7f00-7f01 r-xp 00000000 fe:00 42 /usr/lib/libLLVM-15.so.1", {"triton": sys}, False),
        ("7f00-7f01 r-xp 00000000 fe:00 42 /usr/lib/libGLX_nvidia.so.0", {}, False),
        (None, {}, False),
    ],
)
def test_it_is_left_out_beside_mesas_llvm_alone(line, there, left, tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    if line is not None:
        maps.write_text(line)
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "triton"} | there)
    leave_triton_out(maps)
    assert ("triton" in sys.modules and sys.modules["triton"] is None) == left


@pytest.mark.gui
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="this torch has no triton")
def test_a_program_that_draws_loads_the_networks():
    subprocess.run([sys.executable, "-c", DRAWS_AND_LOADS], check=True, timeout=120)
