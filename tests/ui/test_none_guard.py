"""None survives Qt bindings that take its references away."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gui

MANY = """
import sys
{guard}
from qtpy.QtCore import QObject
probe = QObject()
for _ in range(min(sys.getrefcount(None), 2_000_000) + 1000):
    probe.setObjectName("x")
print("alive")
"""


def call_often(guard):
    return subprocess.run([sys.executable, "-c", MANY.format(guard=guard)], capture_output=True, text=True)


def test_none_survives_with_the_guard():
    done = call_often("from napari_stmdit.ui.widgets.none_guard import guard_none; guard_none()")
    assert done.stdout == "alive\n", done.stderr


def test_the_fault_is_real_where_it_is_found():
    from napari_stmdit.ui.widgets.none_guard import guard_none

    if not guard_none():
        pytest.skip("this Qt binding, or this Python, does not have the fault")
    assert "deallocating None" in call_often("").stderr
    assert sys.getrefcount(None) > 1 << 39
