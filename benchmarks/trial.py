"""Repeats the nine jobs of a user's trial by real pointer and key events, and writes clicks, seconds and pictures.

    python benchmarks/trial.py OUT [--section FOLDER] [--sizes 1366x768 1920x1080] [--themes dark light] [--scales 1 1.5] [--jobs 1 2]

Each combination of size, theme and UI scale is a viewer in a process of its own, with settings and caches of its own: under
``xvfb-run`` where it is there, else on the screen. Controls are found by the names that screen readers read, so that the script holds
wherever they lie. Jobs go on after one that fails, and say why. Writes OUT/trial.json, OUT/trial.md and a picture a job. Seconds are
wall-clock ones of this machine; the processor's, and its load, stand beside them.

1 the example, from the menu: the first edited picture  2 an own section, and a double click on a spot  3 colour by a gene
4 a lasso  5 a knock-out for the selection, and Run  6 painting, and Run on what is painted  7 before and after, side by side
8 a spot closely  9 wrong moves: keys that delete, Escape in a lasso, the wheel over every control, Run twice

With ``--ready`` two others, in a viewer that has done nothing yet: 1 the bundled section, from the click until all is ready
2 fourteen patches in the dock, and by the command line
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.resources import files
from pathlib import Path

FIRST_CLICKS, FIRST_S = 3, 10.0
READY_S, PATCHES, RATIO = 7.0, 14, 1.15
WAIT_S = 600.0


class Hand:
    """A user's hand: presses what has a name, types, and counts the clicks."""

    def __init__(self, viewer):
        from mouse import Mouse

        self.viewer, self.window, self.clicks = viewer, viewer.window._qt_window, 0
        self.mouse = Mouse(viewer)

    def find(self, name):
        """Return the control of a name that is in sight, or can be scrolled to."""
        from qtpy.QtWidgets import QWidget

        named = [w for w in self.window.findChildren(QWidget) if w.accessibleName() == name]
        shown = [w for w in named if w.isVisible()]
        if not shown:
            raise LookupError(f"no control named {name!r} is shown" + (" (a hidden one is there)" if named else ""))
        self.scroll_to(shown[0])
        return shown[0]

    def scroll_to(self, control):
        from qtpy.QtWidgets import QScrollArea

        part = control.parentWidget()
        while part is not None and not isinstance(part, QScrollArea):
            part = part.parentWidget()
        if part is not None:
            part.ensureWidgetVisible(control)
            wait(0.05)

    def press(self, name):
        from qtpy.QtCore import QPoint, Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QCheckBox

        control = self.find(name)
        if not control.isEnabled():
            raise LookupError(f"{name!r} is disabled: {control.toolTip()}")
        x = 8 if isinstance(control, QCheckBox) else control.width() // 2
        QTest.mouseClick(control, Qt.MouseButton.LeftButton, pos=QPoint(x, control.height() // 2))
        self.clicks += 1
        wait(0.05)

    def answer(self, text):
        """Press a button of the question that is asked."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QApplication, QMessageBox

        if not until(lambda: isinstance(QApplication.activeModalWidget(), QMessageBox), 10):
            raise LookupError(f"nothing is asked that {text!r} would answer")
        button = next(b for b in QApplication.activeModalWidget().buttons() if b.text() == text)
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        self.clicks += 1
        wait(0.05)

    def unfold(self, title):
        control = self.find(f"{title}, fold or unfold")
        if not control.isChecked():
            self.press(f"{title}, fold or unfold")

    def type(self, name, text):
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        field = self.find(name)
        self.press(name)
        field.selectAll()
        QTest.keyClicks(field, text)
        QTest.keyClick(field, Qt.Key.Key_Return)
        wait(0.2)

    def choose(self, name, text):
        """Choose an entry of a list by the keys."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        box = self.find(name)
        box.setFocus()
        QTest.keyClick(box, Qt.Key.Key_Home)
        for _ in range(box.count()):
            if box.currentText() == text:
                return
            QTest.keyClick(box, Qt.Key.Key_Down)
        raise LookupError(f"{name!r} offers no {text!r}, but {[box.itemText(k) for k in range(box.count())]}")

    def menu(self, title, entry):
        """Open a menu of the window, and choose an entry: two clicks."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        bar = self.window.menuBar()
        head = next(a for a in bar.actions() if a.text().replace("&", "") == title)
        QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=bar.actionGeometry(head).center())
        self.clicks += 1
        wait(0.2)
        menu = head.menu()
        action = next(a for a in menu.actions() if entry in a.text())
        QTest.mouseClick(menu, Qt.MouseButton.LeftButton, pos=menu.actionGeometry(action).center())
        self.clicks += 1
        wait(0.05)


def wait(seconds):
    until(lambda: False, seconds)


def until(condition, seconds=WAIT_S):
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())


class Trial:
    """The nine jobs in one viewer."""

    def __init__(self, out, size, theme, scale, section):
        import napari

        self.out, self.own, self.jobs, self.bench = out, section, [], None
        self.viewer = napari.Viewer(show=True, show_welcome_screen=False)
        self.viewer.theme = theme
        self.viewer.window._qt_window.setGeometry(0, 0, int(size[0] / scale), int(size[1] / scale))
        wait(1)
        self.hand = Hand(self.viewer)

    @property
    def state(self):
        from napari_stmdit.ui.widgets.dock import Workbench

        if self.bench is None:
            self.bench = next(iter(self.hand.window.findChildren(Workbench)))
        return self.bench.state

    def job(self, number, title, do):
        from napari.utils.notifications import notification_manager

        before, start, at_work = self.hand.clicks, time.perf_counter(), time.process_time()
        seen, found = len(notification_manager.records), {"job": number, "title": title, "fault": ""}
        try:
            found |= do() or {}
        except Exception as error:  # noqa: BLE001 - the next job goes on, and this one says why it ended
            found["fault"] = f"{type(error).__name__}: {error}".splitlines()[0]
            traceback.print_exc()
        found["clicks"] = self.hand.clicks - before
        found["seconds"], found["processor_s"] = (
            round(time.perf_counter() - start, 1),
            round(time.process_time() - at_work, 1),
        )
        errors = [r for r in notification_manager.records[seen:] if str(r.severity) == "error"]
        if errors and not found["fault"]:
            found["fault"] = f"napari shows an error: {errors[0].message}".splitlines()[0]
        found["load"] = round(os.getloadavg()[0], 1)
        wait(0.5)
        picture = self.out / f"job{number}.png"
        self.viewer.window.screenshot(str(picture), canvas_only=False, flash=False)
        found["picture"] = f"{self.out.name}/{picture.name}"
        self.jobs.append(found)

    def ran(self, count):
        state = self.state
        if not until(lambda: len(state.results) > count and not state.status.busy and not state.busy):
            raise TimeoutError(f"no new result: {state.message.text}")

    def places(self):
        section = self.state.section
        return section.spots.yx * section.calibration.mpp

    def middle(self):
        """Return the place of the spot nearest to the middle of all of them."""
        import numpy as np

        world = self.places()
        return world[np.argmin(((world - world.mean(axis=0)) ** 2).sum(axis=1))]

    def whole_section(self):
        self.viewer.reset_view()
        wait(0.3)

    # --- the jobs

    def example(self):
        from napari_stmdit.ui.manifest import DOCK

        self.hand.menu("Plugins", DOCK)
        self.hand.press("Show me on an example")
        shown, state, since = time.perf_counter(), self.state, {}
        for name, there in (
            ("section_s", lambda: state.section is not None),
            ("checkpoint_s", lambda: state.checkpoint is not None),
            ("run_begins_s", lambda: state.status.busy),
        ):
            until(lambda there=there: there() or state.message.kind == "error")
            since[name] = round(time.perf_counter() - shown, 1)
        self.ran(0)
        clicks = self.hand.clicks
        return since | {
            "after_last_click_s": round(time.perf_counter() - shown, 1),
            "within_clicks": clicks <= FIRST_CLICKS,
            "target_s": FIRST_S,
            "said": self.state.message.text,
        }

    def own_section(self):
        self.hand.press("Open another section")
        before = self.state.section
        if self.own is None:
            self.hand.press("Open the sample section")
        else:
            self.hand.type("Section", str(self.own))
        self.hand.answer("Replace it")  # the example is not saved
        state = self.state
        if not until(
            lambda: (
                state.section is not None
                and state.section is not before
                and state.checkpoint is not None
                and not state.busy
            )
        ):
            raise TimeoutError(f"the section did not open: {state.message.text}")
        ready, count = time.perf_counter(), len(state.results)
        from qtpy.QtCore import QEvent

        spot = self.middle()
        self.hand.mouse.click(spot)
        self.hand.mouse.send(QEvent.Type.MouseButtonDblClick, spot)
        self.hand.mouse.send(QEvent.Type.MouseButtonRelease, spot)
        self.hand.clicks += 2
        self.ran(count)
        return {"spot_to_picture_s": round(time.perf_counter() - ready, 1)}

    def colour(self):
        genes = set(self.state.section.spots.genes.symbols.tolist())
        gene = next((g for g in ("ERBB2", "KRT8", "EPCAM") if g in genes), min(genes))
        self.hand.press("1  Choose")
        self.hand.type("Colour by", gene)
        if self.state.colouring.gene != gene:
            raise AssertionError(f"the spots show {self.state.colouring.gene!r}, not {gene!r}")

    def lasso(self):
        import numpy as np

        self.whole_section()
        self.hand.press("1  Choose")
        self.hand.press("Lasso")
        start, angle = time.perf_counter(), np.linspace(0, 2 * np.pi, 40)
        self.hand.mouse.draw(self.middle() + 165 * np.column_stack([np.sin(angle), np.cos(angle)]))
        self.hand.clicks += 1
        wait(0.1)
        if not self.state.selected:
            raise AssertionError("the lasso selected nothing")
        return {"selected": len(self.state.selected), "drawn_s": round(time.perf_counter() - start, 2)}

    def knock_out(self):
        self.hand.press("2  Change")
        self.hand.type("Genes and programs", "ERBB2")
        self.hand.choose("Operation", "Knock out")
        self.hand.press("Apply to selected spots")
        count = len(self.state.results)
        self.hand.press("Run")
        self.ran(count)
        return {"said": self.state.message.text}

    def paint(self):
        import numpy as np

        self.whole_section()
        self.hand.press("1  Choose")
        self.hand.press("Clear the selection")
        self.hand.press("2  Change")
        self.hand.press("New edit")
        self.hand.type("Genes and programs", "COL1A1, COL1A2")
        self.hand.press("Paint with the brush")
        middle, half = self.middle(), np.array([0.0, 150.0])
        self.hand.mouse.draw(np.linspace(middle - half, middle + half, 12))
        self.hand.clicks += 1
        count, painted = len(self.state.results), len(self.state.painted)
        self.hand.press("Run")
        self.ran(count)
        return {"painted": painted}

    def compare(self):
        self.hand.press("3  See")
        self.hand.press("Compare with baseline")
        state = self.state
        if not until(lambda: state.comparison is not None and not state.status.busy):
            raise TimeoutError(f"no comparison: {state.message.text}")
        self.hand.press("Side")
        wait(0.5)

    def closely(self):
        self.hand.press("Off")
        self.whole_section()
        self.hand.press("1  Choose")
        self.hand.press("Click")
        self.hand.mouse.click(self.middle())
        self.hand.clicks += 1
        self.hand.press("3  See")
        self.hand.unfold("Spot close-up")
        state = self.state
        if not until(lambda: state.close_up is not None, 60):
            raise TimeoutError("no close-up")

    def wrong_moves(self):
        import numpy as np
        from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
        from qtpy.QtGui import QWheelEvent
        from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QSlider

        state, hand = self.state, self.hand
        layer = self.bench.presenter.view.spots
        hand.press("1  Choose")
        hand.press("Click")
        hand.mouse.click(self.middle())
        hand.clicks += 1
        spots = np.array(layer.data)
        for key in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace, Qt.Key.Key_1, Qt.Key.Key_2, Qt.Key.Key_5):
            hand.mouse.press(key)
        if not np.array_equal(layer.data, spots):
            raise AssertionError("keys changed the measured spots")
        hand.press("Lasso")
        chosen, angle = state.selected, np.linspace(0, 3, 12)
        path = self.middle() + 300 * np.column_stack([np.sin(angle), np.cos(angle)])
        hand.mouse.send(QEvent.Type.MouseButtonPress, path[0])
        for place in path[1:]:
            hand.mouse.send(QEvent.Type.MouseMove, place)
        hand.mouse.press(Qt.Key.Key_Escape)
        hand.mouse.send(QEvent.Type.MouseButtonRelease, path[-1])
        if state.selected != chosen:
            raise AssertionError("Escape in a lasso changed the selection")
        request, controls = state.request, 0
        self.viewer.window._qt_viewer.canvas.native.setFocus()
        for step in ("1  Choose", "2  Change", "3  See"):
            hand.press(step)
            for kind in (QAbstractSpinBox, QComboBox, QSlider):
                for control in self.bench.findChildren(kind):
                    if control.isVisible():
                        at = QPointF(control.rect().center())
                        to = QPointF(control.mapToGlobal(control.rect().center()))
                        turned = QPoint(0, -120)
                        event = QWheelEvent(
                            *(at, to, QPoint(), turned, Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier),
                            *(Qt.ScrollPhase.NoScrollPhase, False),
                        )
                        QApplication.sendEvent(control, event)
                        controls += 1
        if state.request != request:
            raise AssertionError("the wheel changed the request")
        hand.press("1  Choose")
        hand.press("Click")
        count = len(state.results)
        hand.press("Run")
        self.ran(count - 1)
        if len(state.results) == count:
            return {"wheeled": controls}
        again = len(state.results)
        hand.press("Run")
        until(lambda: not state.status.busy)
        if len(state.results) != again:
            raise AssertionError("the same request was run twice")
        return {"wheeled": controls}

    # --- from a viewer that has done nothing yet

    def ready(self):
        from napari_stmdit.ui.manifest import DOCK

        self.hand.menu("Plugins", DOCK)
        self.hand.press("Open the sample section")
        start, state = time.perf_counter(), self.state
        if not until(lambda: state.section is not None and state.checkpoint is not None and not state.busy):
            raise TimeoutError(f"the section did not open: {state.message.text}")
        return {"after_click_s": round(time.perf_counter() - start, 1), "target_s": READY_S}

    def beside_the_command_line(self):
        import numpy as np

        ids, away = self.state.section.spots.ids, ((self.places() - self.middle()) ** 2).sum(axis=1)
        spots = ids[np.argsort(away)[:PATCHES]].tolist()
        self.bench.presenter.select(spots)
        self.hand.press("Run")
        start = time.perf_counter()
        self.ran(0)
        dock = time.perf_counter() - start
        with tempfile.TemporaryDirectory(prefix="stmdit-trial-") as folder:
            section = files("napari_stmdit") / "data" / "sample_section"
            command = [
                sys.executable,
                "-m",
                "napari_stmdit.cli",
                "synthesize",
                str(section),
                "--spots",
                ",".join(spots),
            ]
            command += ["--output", f"{folder}/out.zarr", "--json"]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        line = json.loads(said)["seconds"]  # without imports and loading
        found = {"dock_s": round(dock, 1), "command_line_s": round(line, 1)}
        return found | {"ratio": round(dock / line, 2), "target_ratio": RATIO}

    def run(self, ready, numbers):
        first = (
            ("the bundled section, until all is ready", self.ready),
            (f"{PATCHES} patches beside the command line", self.beside_the_command_line),
        )
        trial = (
            ("the example: first edited picture", self.example),
            ("own section, double click on a spot", self.own_section),
            ("colour by a gene", self.colour),
            ("lasso", self.lasso),
            ("knock-out and Run", self.knock_out),
            ("paint and Run", self.paint),
            ("compare side by side", self.compare),
            ("a spot closely", self.closely),
            ("wrong moves", self.wrong_moves),
        )
        for number, (title, do) in enumerate(first if ready else trial, start=1):
            if not numbers or number in numbers:
                self.job(number, title, do)
        return self.jobs


def combination(out, size, theme, scale, chosen):
    """Run the trial of one combination in a process of its own; return its jobs."""
    name = f"{size}-{theme}-{scale:g}"
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stmdit-trial-") as scratch:
        new = {
            "NAPARI_CONFIG": f"{scratch}/settings.yaml",
            "XDG_CACHE_HOME": f"{scratch}/cache",
            "QT_SCALE_FACTOR": f"{scale:g}",
        }
        new |= {
            "XDG_DATA_HOME": f"{scratch}/data",
            "XDG_CONFIG_HOME": f"{scratch}/config",
            "XDG_STATE_HOME": f"{scratch}/state",
        }
        command = [sys.executable, __file__, str(out), "--one", size, theme, f"{scale:g}"]
        command += [] if chosen.section is None else ["--section", str(chosen.section)]
        command += ["--ready"] if chosen.ready else []
        command += ["--jobs", *map(str, chosen.jobs)] if chosen.jobs else []
        if shutil.which("xvfb-run"):
            command = ["xvfb-run", "-a", "-s", f"-screen 0 {size}x24", *command]
        subprocess.run(command, env={**os.environ, **new}, check=False)
    file = folder / "jobs.json"
    jobs = (
        json.loads(file.read_text()) if file.is_file() else [{"job": 0, "title": "the viewer", "fault": "ended early"}]
    )
    return {"combination": name, "jobs": jobs}


MEASURED = (
    *(
        "section_s",
        "checkpoint_s",
        "run_begins_s",
        "after_last_click_s",
        "after_click_s",
        "target_s",
        "spot_to_picture_s",
        "drawn_s",
    ),
    *("dock_s", "command_line_s", "ratio", "target_ratio"),
)
"""What a row of the table says of a job beside its clicks and seconds."""


def table(found):
    """Return the trial as a Markdown table: clicks, seconds (processor's) of each job, what was measured, or what went wrong."""
    lines = ["| combination | job | clicks | seconds | processor, s | load | |", "|---|---|---|---|---|---|---|"]
    for one in found:
        for job in one["jobs"]:
            parts = (job.get(key, "") for key in ("clicks", "seconds", "processor_s", "load"))
            words = " | ".join(str(part) for part in parts)
            more = ", ".join(f"{key} {job[key]}" for key in MEASURED if key in job)
            lines.append(
                f"| {one['combination']} | {job['job']} {job['title']} | {words} | {job['fault'] or more or 'done'} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--section", type=Path, default=None, help="an own section for job 2; the bundled one otherwise"
    )
    parser.add_argument("--sizes", nargs="+", default=["1366x768", "1920x1080"])
    parser.add_argument("--themes", nargs="+", default=["dark", "light"])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--jobs", nargs="+", type=int, default=[], help="numbers of the jobs to do; all by default")
    parser.add_argument("--ready", action="store_true", help="the two jobs of a viewer that has done nothing yet")
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    if chosen.one is not None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        size, theme, scale = chosen.one
        folder = out / f"{size}-{theme}-{float(scale):g}"
        jobs = Trial(folder, tuple(map(int, size.split("x"))), theme, float(scale), chosen.section).run(
            chosen.ready, chosen.jobs
        )
        (folder / "jobs.json").write_text(json.dumps(jobs, indent=2))
        os._exit(0)  # napari asks before it closes
    combinations = [(s, t, u) for s in chosen.sizes for t in chosen.themes for u in chosen.scales]
    found = [combination(out, *one, chosen) for one in combinations]
    (out / "trial.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / "trial.md").write_text(table(found))
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
