"""What the processes of `killing` have imported before they are forked."""

# ruff: noqa: E402 # garbage is looked for as in conftest

import gc

gc.disable()

import diffusers  # noqa: F401
import spatialdata  # noqa: F401
import torch  # noqa: F401
import zarr  # noqa: F401

import napari_stmdit.assemble
import napari_stmdit.cli
import napari_stmdit.model.folder
import napari_stmdit.model.pipeline
import napari_stmdit.model.sampling
import napari_stmdit.synthesis.result
import napari_stmdit.tissue.open  # noqa: F401

gc.freeze()
gc.set_threshold(20_000, 20, 50)
gc.enable()
