"""Expression of the colon of animal d14, of which there are no counts: predicted from its factors, or these themselves.

    python docs/evidence/colon_d14.py --root DATA --output d14_predicted.h5ad
    python docs/evidence/colon_d14.py --root DATA --checkpoint trained-on-the-factors-of-d0 --output FOLDER

The second swaps the factors of spots of d14, with a checkpoint that was trained on d0 with `--factors d0_naive.h5ad::nmf20`. First it
encodes all 3,630 spots. Finished crops are kept in the folder, and figures are printed.

The first makes a table for checkpoints of genes. Both animals have 20 factors of a joint factorisation (their authors' own). Ridge
regression on d0, without the quarter that demo_colon.yaml holds out, learns what log(1 + counts per 10,000) goes with which factors; the
same factors of d14 then give its expression. What the factors do not hold is lost, and every figure on d14 is one of such expression.
Prints how well the regression reads the quarter left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from napari_stmdit import load_checkpoint, open_section
from napari_stmdit.cli._common import ProgressBar
from napari_stmdit.evaluation.cases import MIN_SPOTS, EvaluationRequest
from napari_stmdit.evaluation.counterfactual import CounterfactualCheck
from napari_stmdit.progress import BATCH, finish

PENALTY = 10.0
PER = 1e4


def main() -> None:
    """Swap factors with a checkpoint; or fit on d0, check on its quarter, and write the table of d14."""
    options = parse()
    if options.checkpoint is not None:
        print(json.dumps(swaps(options), indent=1))
        return
    d0, d14 = (anndata.read_h5ad(options.root / f"visium_mouse_colon/{name}.h5ad") for name in ("d0_naive", "d14_DSS"))
    counts = np.asarray(d0.X.todense(), dtype=np.float64)
    wanted = np.log1p(counts * PER / counts.sum(axis=1, keepdims=True))
    x, y = d0.obsm["spatial"].T
    width, height = options.size
    left_out = (x >= width / 2) & (y >= height / 2)
    slope, mean, centre = fit(np.asarray(d0.obsm["nmf20"])[~left_out], wanted[~left_out])

    def predict(factors: np.ndarray) -> np.ndarray:
        return np.maximum((factors - centre) @ slope + mean, 0)

    found = predict(np.asarray(d0.obsm["nmf20"])[left_out])
    spread = wanted[left_out].std(axis=0)
    r = np.array(
        [
            np.corrcoef(a, b)[0, 1] if b.std() > 0 and a.std() > 0 else 0
            for a, b in zip(found.T, wanted[left_out].T, strict=True)
        ]
    )
    most = np.argsort(-spread)[:1000]
    print(
        f"d0, {left_out.sum()} spots left out: median r of the 1,000 genes that vary most {np.median(r[most]):.2f}, of all {np.median(r):.2f}"
    )
    table = anndata.AnnData(
        predict(np.asarray(d14.obsm["nmf20"])).astype(np.float32),
        obs=pd.DataFrame(index=d14.obs_names),
        var=pd.DataFrame(index=d0.var_names),
        obsm={"spatial": np.asarray(d14.obsm["spatial"])},
    )
    table.write_h5ad(options.output)


def swaps(options: argparse.Namespace) -> dict[str, object]:
    """Return the figures of swaps of factors between spots of d14, with the control."""
    colon = options.root / "visium_mouse_colon"
    section = open_section(
        colon / "d14_DSS.h5ad",
        fullres=colon / "d14_DSS_spaceranger1" / "d14_DSS_HE.jpg",
        mpp=0.971,
        factors=f"{colon / 'd14_DSS.h5ad'}::nmf20",
    )
    model = load_checkpoint(options.checkpoint, device="cpu")
    request = EvaluationRequest(parts=("counterfactual",), pairs=options.pairs)
    check = CounterfactualCheck(section, model, request, options.output, BATCH, checks=("swaps",))
    with ProgressBar("swapping factors") as bar:
        found = finish(check.run(), bar)
    return {"checkpoint": model.provenance["sha256"], **(found or {})}


def fit(factors: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regress (n, g) on (n, k): slopes (k, g), means (g,) and the centre of the factors (k,)."""
    centre, mean = factors.mean(axis=0), wanted.mean(axis=0)
    x = factors - centre
    slope = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (wanted - mean))
    return slope, mean, centre


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(7936, 8192), help="width and height of d0's slide in pixels"
    )
    parser.add_argument("--checkpoint", help="trained on the factors of d0: swap those of d14")
    parser.add_argument("--pairs", type=int, default=64, help="of spots that are swapped, at least 8")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.pairs < MIN_SPOTS:
        parser.error(f"--pairs is {options.pairs}; an interval takes at least {MIN_SPOTS}")
    return options


if __name__ == "__main__":
    main()
