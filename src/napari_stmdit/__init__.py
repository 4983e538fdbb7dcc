"""Virtual tissue synthesis from spatial transcriptomics, in napari.

The public names are loaded when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("napari-stmdit")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "AddEdit": "intent",
    "AllSpots": "intent",
    "Calibration": "types",
    "Checkpoint": "assemble",
    "CheckpointCard": "intent",
    "EvaluationRequest": "evaluation.cases",
    "Guidance": "intent",
    "KnockOutEdit": "intent",
    "Patch": "types",
    "PatchResult": "types",
    "Plan": "types",
    "Polygons": "intent",
    "Request": "intent",
    "Result": "synthesis.result",
    "SampleOfSpots": "intent",
    "ScaleEdit": "intent",
    "Section": "types",
    "SetQuantileEdit": "intent",
    "SpotList": "intent",
    "SpotProfile": "intent",
    "SpotTable": "types",
    "StmditError": "errors",
    "SwapEdit": "intent",
    "TableEdit": "intent",
    "TowardsEdit": "intent",
    "adapt": "training.adapt",
    "check_alignment": "tissue.alignment",
    "compare_groups": "expression.groups",
    "convert_checkpoint": "assemble",
    "evaluate": "evaluation.evaluate",
    "evaluate_result": "evaluation.results",
    "export_dataset": "dataset.export",
    "export_result": "synthesis.result",
    "load_checkpoint": "assemble",
    "load_transformer": "model.checkpoint",
    "open_sample_section": "tissue.open",
    "open_section": "tissue.open",
    "measure_edit": "evaluation.selection",
    "plan": "synthesis.plan",
    "run": "synthesis.session",
    "synthesize": "synthesis.session",
    "write_figure": "evaluation.paper_figure",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from .assemble import Checkpoint as Checkpoint
    from .assemble import convert_checkpoint as convert_checkpoint
    from .assemble import load_checkpoint as load_checkpoint
    from .dataset.export import export_dataset as export_dataset
    from .errors import StmditError as StmditError
    from .evaluation.cases import EvaluationRequest as EvaluationRequest
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.paper_figure import write_figure as write_figure
    from .evaluation.results import evaluate_result as evaluate_result
    from .evaluation.selection import measure_edit as measure_edit
    from .expression.groups import compare_groups as compare_groups
    from .intent import AddEdit as AddEdit
    from .intent import AllSpots as AllSpots
    from .intent import CheckpointCard as CheckpointCard
    from .intent import Guidance as Guidance
    from .intent import KnockOutEdit as KnockOutEdit
    from .intent import Polygons as Polygons
    from .intent import Request as Request
    from .intent import SampleOfSpots as SampleOfSpots
    from .intent import ScaleEdit as ScaleEdit
    from .intent import SetQuantileEdit as SetQuantileEdit
    from .intent import SpotList as SpotList
    from .intent import SpotProfile as SpotProfile
    from .intent import SwapEdit as SwapEdit
    from .intent import TableEdit as TableEdit
    from .intent import TowardsEdit as TowardsEdit
    from .model.checkpoint import load_transformer as load_transformer
    from .synthesis.plan import plan as plan
    from .synthesis.result import Result as Result
    from .synthesis.result import export_result as export_result
    from .synthesis.session import run as run
    from .synthesis.session import synthesize as synthesize
    from .tissue.alignment import check_alignment as check_alignment
    from .tissue.open import open_sample_section as open_sample_section
    from .tissue.open import open_section as open_section
    from .training.adapt import adapt as adapt
    from .types import Calibration as Calibration
    from .types import Patch as Patch
    from .types import PatchResult as PatchResult
    from .types import Plan as Plan
    from .types import Section as Section
    from .types import SpotTable as SpotTable


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
