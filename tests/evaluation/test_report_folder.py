"""An evaluation replaces no report but its own."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from storage_trees import TREES, content, plant

from napari_stmdit.errors import StoreError
from napari_stmdit.evaluation import results as evaluating
from napari_stmdit.evaluation.demo import run_demo
from napari_stmdit.evaluation.results import evaluate_result


def fails_where(folder, monkeypatch, said, **how):
    """The evaluation of a store is refused before any patch is read, and the folder stays as it was."""
    before = content(folder)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "read_patches", lambda *_: pytest.fail("it began to work"))
        with pytest.raises(StoreError, match=said):
            evaluate_result(output=folder, **how)
    assert content(folder) == before


def test_results_of_a_store_do_not_replace_the_report_of_something_else(study, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("of a checkpoint's evaluation, or nobody knows of what")
    fails_where(tmp_path, monkeypatch, "holds report.html, not made by this evaluation", result=study.store)
    fails_where(tmp_path, monkeypatch, "not made by this evaluation", result=study.store, resume=True)


def test_patches_of_an_evaluation_that_was_stopped_keep_another_out(study, tmp_path, monkeypatch):
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "0123.npz").write_bytes(b"hours")
    fails_where(tmp_path, monkeypatch, "holds an evaluation already; add --resume", result=study.store)


def test_the_same_evaluation_replaces_its_report_where_it_is_asked_to(study, tmp_path, monkeypatch):
    wish = {"result": study.store, "runs": ("measured", "null"), "draws": 100}
    evaluate_result(output=tmp_path, **wish)
    fails_where(tmp_path, monkeypatch, "holds an evaluation already; add --resume", **wish)
    fails_where(
        tmp_path, monkeypatch, "not made by this evaluation", result=study.store, runs=("measured",), resume=True
    )
    found = evaluate_result(output=tmp_path, resume=True, **{**wish, "draws": 150})  # judged anew
    assert found.complete
    (tmp_path / "report.html").write_text("annotated by hand")
    fails_where(tmp_path, monkeypatch, r"report\.html, changed since this evaluation made it", resume=True, **wish)


def _holds_patches(out):
    """A folder of that name, or a link to one, with anything in it; a file called like it is in nobody's way."""
    stacks = out / "stacks"
    return stacks.is_dir() and any(stacks.iterdir())


@example(tree={"stacks": ("link", ".")})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_whatever_is_in_the_folder_stays_as_it_is(tree, tmp_path_factory, monkeypatch):
    from napari_stmdit.evaluation.report import check_report

    folder = tmp_path_factory.mktemp("way")
    (folder / "elsewhere").mkdir()
    plant(folder / "out", tree)
    before = content(folder)
    about = {"kind": "result", "sections": [], "results": {}}
    held = isinstance(tree, dict) and (tree.keys() & {"report.html", "report.json"} or _holds_patches(folder / "out"))
    try:
        check_report(folder / "out", about, resume=False)
    except StoreError:
        assert held or isinstance(tree, tuple)
    else:
        assert not held
    assert content(folder) == before
    shown = {"OUT.zarr", "comparison.png", "report.json", "report.md"}
    if tree[0] == "link" if isinstance(tree, tuple) else not tree.keys() & shown:
        return  # free, or a link to a folder that is: the demo would begin
    with monkeypatch.context() as patch:
        patch.setattr("napari_stmdit.evaluation.demo.synthesize", lambda *_, **__: pytest.fail("it began to work"))
        with pytest.raises(StoreError):
            run_demo(folder / "out")
    assert content(folder) == before
