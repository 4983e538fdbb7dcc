"""Check edits of real tissue on the held-out section of a training configuration, and write counterfactual.json and .md.

    python docs/evidence/counterfactual.py --root DATA [--pairs 64] [--output FOLDER]

Swaps are made in both modes, and of single patches also for every spot of the section. Painted regions take longest, as each is laid over with
windows and taken to its noise and back. A check that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODES = {"spots": "a single patch", "continuous": "a painted region of its size"}
SWAPS = {"swap": "expression of the other spot", "swap_control": "control: of a third spot"}
SEEDS = (0, 1, 2)
"""Seeds of the pairs of every spot."""
CONFIG = HERE.parents[1] / "configs" / "demo.yaml"


def measured(root: Path, pairs: int, output: Path) -> dict[str, Any]:
    import yaml

    import napari_stmdit as st
    from napari_stmdit import __version__
    from napari_stmdit.assemble import load_checkpoint
    from napari_stmdit.evaluation.counterfactual import CounterfactualCheck
    from napari_stmdit.progress import finish
    from napari_stmdit.training.sections import sections_of_config

    config = yaml.safe_load(CONFIG.read_text())
    held = output / "config.yaml"
    output.mkdir(parents=True, exist_ok=True)
    held.write_text(yaml.safe_dump({**config, "root": str(root.resolve())}))
    (section,) = sections_of_config(held, "held_out")
    model = load_checkpoint("demo", dtype="float32")
    modes = {}
    for mode in MODES:
        request = st.EvaluationRequest(parts=("counterfactual",), pairs=pairs, mode=mode)
        modes[mode] = finish(CounterfactualCheck(section, model, request, output, batch=16).run())
    every = []
    for seed in SEEDS:
        request = st.EvaluationRequest(parts=("counterfactual",), pairs=len(section.spots), seed=seed)
        check = CounterfactualCheck(section, model, request, output, batch=16, checks=("swaps",))
        every.append({name: found for name, found in finish(check.run()).items() if name in ("seed", "pairs", *SWAPS)})
    further = {name: modes["continuous"][name] for name in ("mode", "pairs", *SWAPS)}
    software = {"name": "napari-stmdit", "version": __version__}
    return {
        "checkpoint": model.provenance["sha256"],
        "software": software,
        **modes["spots"],
        "continuous": further,
        "every_spot": every,
    }


def written(facts: dict[str, Any]) -> str:
    from napari_stmdit.evaluation.report import interval_text, number

    one, local, new, programs = (facts[name] for name in ("identity", "locality", "invention", "programs"))

    def rows(what: str, found: dict[str, Any]) -> list[str]:
        return [
            f"| {what} | {words} | "
            + " | ".join(f"{interval_text(one, 'coefficient')} | {number(one['ridge'])}" for one in found[key].values())
            + " |"
            for key, words in SWAPS.items()
        ]

    swaps = [
        line
        for what, found in zip(MODES.values(), (facts, facts["continuous"]), strict=True)
        for line in rows(what, found)
    ]
    every = [line for found in facts["every_spot"] for line in rows(f"every spot, seed {found['seed']}", found)]

    def mean(measure: str, key: str) -> float:
        return sum(found["swap"][measure][key] for found in facts["every_spot"]) / len(facts["every_spot"])

    means = [f"{name} {mean(name, 'coefficient'):.2f} of {mean(name, 'ridge'):.2f}" for name in facts["swap"]]
    most = " and ".join(number(one["ceiling"]) for one in facts["swap"].values())
    each = [
        f"| {name} | {number(p['real_trend'])} | {number(p['with_others'])} | {number(p['alone'])} |"
        for name, p in programs["each"].items()
    ]
    return "\n".join(
        [
            "# Edits of real tissue: what the bundled checkpoint reaches",
            "",
            "`python docs/evidence/counterfactual.py --root DATA` makes this page and [its figures](counterfactual.json). "
            "What each check asks: [How far to trust an edited picture](../guides/edited_pictures.md).",
            "",
            f"Section {facts['section']}, never trained on; {facts['pairs']} pairs of spots, seed {facts['seed']}; {facts['steps_each_way']} steps "
            f"each way; checkpoint {facts['checkpoint'][:12]}. {facts['map_statement']} The map is that of the "
            f"{facts['map_from'].removeprefix('the ')}.",
            *(["", facts["note"]] if "note" in facts else []),
            "",
            f"**Swaps**, {facts['pairs']} pairs: coefficient and 95 % bootstrap interval over pairs.",
            "",
            "| edited as | given | haematoxylin | ridge regression | nuclei | ridge regression |",
            "| --- | --- | --- | --- | --- | --- |",
            *swaps,
            *every,
            "",
            "Ridge regression reads the measure off the same encodings, fitted without the blocks of both spots, as the map is: its coefficient "
            f"says how far expression allows on these very pairs. Its R2 over the section, the ceiling over many pairs, is {most}. In the last "
            f"rows single patches of all {facts['every_spot'][0]['pairs']} spots are paired, by one seed after another: {' and '.join(means)} in the mean.",
            "",
            "A painted region is the crop of the spot, edited in continuous mode (`--mode continuous`), on the same pairs. A window mixes the "
            "expression of the spots nearest to its middle, and the windows over a crop reach beyond it: were one spot edited alone, its "
            "neighbours would dilute the edit at the crop's rim, by how the windows lie and not by what the checkpoint does. So all spots that "
            "the region's windows draw on are given the other expression, as under a brush that covers them. What is painted smaller than "
            "that shows less.",
            "",
            f"**Identity**, {one['n']} spots without an edit: largest change of a pixel {one['pixels']} grey levels; mean change of latents "
            f"{one['latents']:g} (their mean size {one['latent_size']}); MS-SSIM without the detail step {one['ms_ssim']}, the autoencoder's "
            f"own {one['autoencoder_ms_ssim']}.",
            "",
            f"**Programs**, raised by two standard deviations in {programs['spots']} spots; {programs['n']} programs. With what varies with them: "
            f"correlation of effect and real trend {interval_text(programs, 'correlation')}, slope {number(programs['slope'])}; their own genes alone: "
            f"{interval_text(programs['alone'], 'correlation')}, slope {number(programs['alone']['slope'])}. Morphology follows by its trend over "
            "the section without the block of the spot, so this asks whether the network shows the trend, not whether the trend holds elsewhere.",
            "",
            "| program | real trend of haematoxylin | with what varies with it | alone |",
            "| --- | --- | --- | --- |",
            *each,
            "",
            f"**Doses**, {facts['dose']['n']} spots, of which {facts['dose']['moved']} moved: {number(facts['dose']['monotone'], 2)} of these went "
            "one way all along.",
            "",
            f"**Locality**: {local['outside_grey_levels']} grey levels of change on {local['outside_pixels']} pixels beyond the reach of a painted "
            f"disc; a pixel changes by {number(local['inside_grey_levels'], 2)} grey levels inside and {number(local['around_grey_levels'], 2)} "
            f"around it (ratio {number(local['ratio'], 2)}; of haematoxylin {number(local['ratio_haematoxylin'], 2)}). Nuclei that the slide does "
            f"not have there: {number(new['inside'], 0)} per mm² inside, {number(new['around'], 0)} around, and beyond its reach "
            f"{number(new['outside_nuclei'], 0)} in all.",
            "",
            "Features of crops, change in spreads of real crops:",
            "",
            "| space | in the disc | around it | largest beyond its reach | ratio |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {name} | {number(f['inside'])} | {number(f['around'])} | {number(f['outside'])} | {number(f['ratio'], 1)} |"
                for name, f in local["features"].items()
            ),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/counterfactual"))
    given = parser.parse_args()
    facts = measured(given.root, given.pairs, given.output)
    (HERE / "counterfactual.json").write_text(json.dumps(facts, indent=1) + "\n")
    (HERE / "counterfactual.md").write_text(written(facts))


if __name__ == "__main__":
    main()
