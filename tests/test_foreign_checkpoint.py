"""A foreign checkpoint from its files to a synthesized patch: converted, its encoders kept elsewhere, run on a section."""

# ruff: noqa: F811 # fixtures that are imported are asked for by name

import json

import numpy as np
import pytest
from checkpoints import plain_transformer
from foreign import CANCER_WIDTH, SETTINGS, UNI_WIDTH, convert, elsewhere, foreign, sources  # noqa: F401 # two are fixtures
from safetensors.torch import save_file

from napari_stmdit import Request, load_checkpoint, synthesize
from napari_stmdit.assemble import convert_checkpoint
from napari_stmdit.edits import Towards
from napari_stmdit.encoder_sources import genes_of_section, read_gene_list
from napari_stmdit.errors import CheckpointError, GeneError, RequestError, SectionError
from napari_stmdit.model.foreign.inspect import inspect_checkpoint
from napari_stmdit.model.foreign.keys import from_native
from napari_stmdit.model.zoo import MissingComponentError
from napari_stmdit.regions import SampleOfSpots, SpotList

REQUEST = Request(region=SampleOfSpots(count=2), steps=2)


def test_from_files_to_patches(foreign, elsewhere, tmp_path, tiny_section):
    made = convert(foreign, elsewhere, tmp_path)
    assert inspect_checkpoint(made.path).missing == []
    checkpoint = load_checkpoint(made.path)
    assert not checkpoint.lacking
    result = synthesize(tiny_section, REQUEST, checkpoint)
    assert result.complete and len(result.done) == 2
    assert "20 of 20 genes of the list are in the vocabulary." in result.provenance["checkpoint"]["notes"]
    for patch in result.plan.patches:
        y0, x0, y1, x1 = patch.canvas_box
        assert np.ptp(result.rgba[y0:y1, x0:x1, :3]) > 0
    edited = REQUEST.model_copy(update={"edits": (Towards(target_spots=("SPOT04-1",)),)})
    assert synthesize(tiny_section, edited, checkpoint).complete


def test_conditions_are_those_of_the_reference_encoders(foreign, elsewhere, tmp_path, tiny_section):
    checkpoint = load_checkpoint(convert(foreign, elsewhere, tmp_path).path)
    spots = tiny_section.spots
    expression = checkpoint.encode_expression(spots.counts[:3], spots.genes)
    assert expression.shape == (3, CANCER_WIDTH)
    np.testing.assert_allclose(np.linalg.norm(expression, axis=1), 1, rtol=1e-5)
    patches = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3), np.uint8)
    assert checkpoint.encode_morphology(patches).shape == (2, 1, UNI_WIDTH)


def test_a_missing_encoder_is_told_when_it_is_needed_and_not_before(foreign, elsewhere, tmp_path, tiny_section):
    made = convert(foreign, elsewhere, tmp_path)
    reference = made.path / "morphology_encoder" / "reference.json"
    stated = json.loads(reference.read_text())
    reference.write_text(json.dumps({**stated, "source": "MahmoodLab/UNI2-h", "files": ["pytorch_model.bin"]}))
    checkpoint = load_checkpoint(made.path)
    error = checkpoint.lacking["morphology_encoder"]
    assert isinstance(error, MissingComponentError) and error.reference.gated
    text = str(error)
    for part in (
        "pytorch_model.bin",
        "MahmoodLab/UNI2-h",
        "CC-BY-NC-ND",
        "stmdit download uni2-h",
        "--morphology-embeddings",
    ):
        assert part in text
    with pytest.raises(MissingComponentError):
        synthesize(tiny_section, REQUEST, checkpoint)
    alone = REQUEST.model_copy(update={"morphology": "null"})
    assert synthesize(tiny_section, alone, checkpoint).complete


def embeddings(path, ids, width):
    vectors = np.random.default_rng(1).normal(size=(len(ids), width)).astype(np.float32)
    np.save(path, vectors)
    path.with_name(f"{path.stem}.ids.txt").write_text("\n".join(ids))
    return path, vectors


def test_embeddings_stand_in_for_encoders(foreign, elsewhere, tmp_path, tiny_section):
    made = convert(foreign, elsewhere, tmp_path, sources={"vae": elsewhere / "vae"}, genes=None)
    assert any("No known morphology encoder has its width" in note for note in made.notes)
    ids = tiny_section.spots.ids.tolist()
    uni, vectors = embeddings(tmp_path / "uni.npy", ids, UNI_WIDTH)
    cancer, _ = embeddings(tmp_path / "cancer.npy", ids, CANCER_WIDTH)
    checkpoint = load_checkpoint(made.path, morphology_embeddings=uni, expression_embeddings=cancer)
    assert not checkpoint.lacking
    result = synthesize(tiny_section, REQUEST, checkpoint)
    assert result.complete
    assert result.provenance["checkpoint"]["morphology_embeddings"]["source"].endswith("uni.npy")
    got = checkpoint.encode_morphology(np.zeros((1, 256, 256, 3), np.uint8), ("SPOT07-1",))
    np.testing.assert_array_equal(got[0, 0], vectors[7])
    edited = REQUEST.model_copy(update={"edits": (Towards(target_spots=("SPOT04-1",)),)})
    with pytest.raises(RequestError, match="embeddings computed elsewhere"):
        synthesize(tiny_section, edited, checkpoint)


def test_embeddings_must_be_of_the_spots_and_of_the_width(foreign, elsewhere, tmp_path, tiny_section):
    made = convert(foreign, elsewhere, tmp_path)
    wrong, _ = embeddings(tmp_path / "wrong.npy", tiny_section.spots.ids.tolist(), UNI_WIDTH + 1)
    with pytest.raises(SectionError, match="48"):
        load_checkpoint(made.path, morphology_embeddings=wrong)
    few, _ = embeddings(tmp_path / "few.npy", tiny_section.spots.ids.tolist()[:3], UNI_WIDTH)
    checkpoint = load_checkpoint(made.path, morphology_embeddings=few)
    with pytest.raises(SectionError, match="no embedding for 1 of 1 spots"):
        synthesize(tiny_section, Request(region=SpotList(ids=("SPOT09-1",)), steps=1), checkpoint)


def test_without_a_gene_list_expression_needs_embeddings(foreign, elsewhere, tmp_path, tiny_section):
    made = convert(foreign, elsewhere, tmp_path, genes=None)
    checkpoint = load_checkpoint(made.path)
    assert "without a gene list" in str(checkpoint.lacking["expression_encoder"])
    with pytest.raises(CheckpointError, match="--genes FILE"):
        synthesize(tiny_section, REQUEST, checkpoint)
    assert any("gene list" in line for line in inspect_checkpoint(made.path).missing)


def test_genes_can_be_chosen_from_a_section(tmp_path, shared_data):
    """The released rule on a real section: of the genes that the vocabulary has, those that vary most."""
    from napari_stmdit import open_section

    folder = shared_data / "her2st_C3_spaceranger2"
    known = open_section(folder).spots.genes.symbols.tolist()[::3]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(["<cls>", "<pad>", "<eoc>", *known]))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    genes = genes_of_section(folder, tmp_path)
    assert len(genes) == 1199 and set(genes) < set(known)
    assert genes == genes_of_section(folder, tmp_path)


def test_a_download_is_converted_by_its_name_with_what_is_known_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STMDIT_HOME", str(tmp_path / "home"))
    place = tmp_path / "home" / "downloads" / "pixcell-256"
    place.mkdir(parents=True)
    net = plain_transformer(in_channels=16, out_channels=32, sample_size=32, morphology_dim=1536, expression_dim=None,
                            expression_adaln=False, expression_cross_attention=False)  # fmt: skip
    save_file(from_native(net.state_dict(), "diffusers"), place / "diffusion_pytorch_model.safetensors")
    (place / "config.json").write_text(json.dumps(SETTINGS["model"]))
    made = convert_checkpoint("pixcell-256", tmp_path / "ours")
    assert made.card.patch_mpp == 0.5 and "apache-2.0 on its card" in made.card.licence
    assert any(note.startswith("Patch mpp 0.5, as the list of known checkpoints has it") for note in made.notes)
    assert "Patch mpp 0.5, as the list" in (made.path / "README.md").read_text()
    asked = convert_checkpoint("pixcell-256", tmp_path / "other", patch_mpp=0.25)
    assert asked.card.patch_mpp == 0.25 and not any(note.startswith("Patch mpp") for note in asked.notes)


def test_a_transformer_of_another_width_is_refused(elsewhere, tmp_path):
    net = plain_transformer(in_channels=16, out_channels=32, sample_size=32, morphology_dim=50, expression_dim=None,
                            expression_adaln=False, expression_cross_attention=False)  # fmt: skip
    save_file(from_native(net.state_dict(), "original"), tmp_path / "foreign.safetensors")
    made = convert(tmp_path / "foreign.safetensors", elsewhere, tmp_path, genes=None)
    with pytest.raises(CheckpointError, match="width 48, the transformer was trained with 50"):
        load_checkpoint(made.path)


def test_a_checkpoint_without_expression_runs_from_morphology_and_says_so(elsewhere, tmp_path, tiny_section):
    net = plain_transformer(in_channels=16, out_channels=32, sample_size=32, morphology_dim=UNI_WIDTH, expression_dim=None,
                            expression_adaln=False, expression_cross_attention=False)  # fmt: skip
    save_file(from_native(net.state_dict(), "original"), tmp_path / "foreign.safetensors")
    made = convert(tmp_path / "foreign.safetensors", elsewhere, tmp_path, genes=None)
    checkpoint = load_checkpoint(made.path)
    result = synthesize(tiny_section, REQUEST, checkpoint)
    assert any("follow morphology alone" in note for note in result.plan.notes)
    edited = REQUEST.model_copy(update={"edits": (Towards(target_spots=("SPOT04-1",)),)})
    with pytest.raises(RequestError, match="not conditioned on expression"):
        synthesize(tiny_section, edited, checkpoint)
    with pytest.raises(CheckpointError, match="takes no expression"):
        path, _ = embeddings(tmp_path / "cancer.npy", tiny_section.spots.ids.tolist(), CANCER_WIDTH)
        load_checkpoint(made.path, expression_embeddings=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no gene"),
        ("A\nB\nA\n", "named twice: A"),
        ("A,B\nC\n", "no single symbols: A,B"),
        (None, "no readable"),
    ],
)
def test_gene_lists_are_checked(tmp_path, text, message):
    if text is not None:
        (tmp_path / "genes.txt").write_text(text)
    with pytest.raises(GeneError, match=message):
        read_gene_list(tmp_path / "genes.txt")
