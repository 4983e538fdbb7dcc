"""Makes the pictures of guidance: one spot under rising scales of two conditions that disagree, by two rules.

Run with ``python docs/guidance_grid.py``; it needs no display. The spot lies in the fat of the bundled section; its expression is moved towards the
checkpoint's tumour profile, while its morphology is the slide's own.
"""

from pathlib import Path

from napari_stmdit import Guidance, Request, load_checkpoint, open_sample_section
from napari_stmdit.edits import Towards
from napari_stmdit.evaluation.pictures import sheet_picture
from napari_stmdit.regions import SpotList
from napari_stmdit.synthesis.variants import Variant, make_sheet
from napari_stmdit.tissue.export import NEW, labelled

IMAGES = Path(__file__).parent / "images"
SPOT = "SYN-12x02"
EXPRESSION, MORPHOLOGY = (0.0, 1.0, 3.0), (0.0, 1.0, 2.0)
RULES = ("nested_morphology_first", "additive")
SHOWN = 0.7


def main():
    section, checkpoint = open_sample_section(), load_checkpoint("demo", device="cpu", dtype="float32")
    request = Request(region=SpotList(ids=(SPOT,)), edits=(Towards(target_profile="tumour"),), counterfactual="off")
    for rule in RULES:
        variants = [
            Variant(
                f"expression {wg:g}, morphology {wm:g}",
                request.model_copy(update={"guidance": Guidance(expression=wg, morphology=wm, rule=rule)}),
            )
            for wm in MORPHOLOGY
            for wg in EXPRESSION
        ]
        title = f"{rule}; morphology of fat, expression moved to tumour"
        *_, (sheet, _) = make_sheet(title, variants, len(EXPRESSION), section, checkpoint)
        picture = sheet_picture(sheet)
        size = (int(picture.width * SHOWN), int(picture.height * SHOWN))
        path = IMAGES / f"guidance_{rule}.png"
        picture.resize(size).quantize(256).save(path, optimize=True, **labelled(NEW, path))
        print(path)


if __name__ == "__main__":
    main()
