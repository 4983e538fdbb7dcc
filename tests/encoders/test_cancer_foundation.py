import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_matrix

from napari_stmdit.edits import Scale
from napari_stmdit.encoders.cancer_foundation.encoder import CancerFoundationEncoder
from napari_stmdit.encoders.cancer_foundation.folder import CancerFoundationSettings, build_network
from napari_stmdit.encoders.cancer_foundation.network import CancerFoundationNetwork, NetworkSizes
from napari_stmdit.encoders.cancer_foundation.vocabulary import make_vocabulary, read_vocabulary
from napari_stmdit.errors import CheckpointError, GeneError, SectionError
from napari_stmdit.expression.edits import apply_edits
from napari_stmdit.intent import hash_genes
from napari_stmdit.types import Genes, SpotTable

NAMES = ("MLANA", "PMEL", "CD3E", "HLA-A", "SEPT2", *(f"G{k}" for k in range(15)))
VOCABULARY = make_vocabulary({name: k for k, name in enumerate(("<cls>", "<pad>", "<eoc>", "MT-CO1", *NAMES))})


def network(width=16, style="plain", tokens=24):
    torch.manual_seed(0)
    net = CancerFoundationNetwork(NetworkSizes(tokens, width, 2, 4, 32), style)
    for tensor in net.parameters():
        torch.nn.init.normal_(tensor, std=0.4)
    return net


def make(genes=NAMES, net=None, **settings):
    return CancerFoundationEncoder(net or network(), VOCABULARY, genes, CancerFoundationSettings(**settings))


def table(columns, rows=7, seed=1):
    counts = np.random.default_rng(seed).poisson(2, (rows, len(columns))).astype(np.float32)
    return csr_matrix(counts), Genes(np.array(columns))


# ------------------------------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def pipeline(golden):
    args = json.loads((golden / "cancerfoundation_tiny_args.json").read_text())
    vocabulary = read_vocabulary(golden / "cancerfoundation_tiny_vocab.json")
    weights = load_file(golden / "cancerfoundation_tiny_released_file_naming.safetensors")
    return weights, vocabulary, args, load_file(golden / "cancerfoundation_tiny_pipeline.safetensors")


@pytest.mark.parametrize("padded", [True, False])
def test_the_network_is_the_published_one(golden, padded):
    net = build_network(load_file(golden / "cancerfoundation_tiny.safetensors"), heads=4).network
    io = load_file(golden / "cancerfoundation_tiny_io.safetensors")
    for cell, padding in enumerate(io["padding_mask"]):
        length = len(padding) if padded else int((~padding).sum())
        part = (slice(cell, cell + 1), slice(length))
        mask = io["padding_mask"][part] if padded else None
        with torch.inference_mode():
            tokens = net(io["gene_ids"][part], io["values"][part], mask)
            first = net(io["gene_ids"][part], io["values"][part], mask, first_only=True)
        real = ~padding[:length]
        torch.testing.assert_close(tokens[0][real], io["tokens"][part][0][real], atol=2e-5, rtol=0)
        torch.testing.assert_close(first[0], io["cls"][cell : cell + 1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_counts_to_embedding_is_the_published_pipeline(pipeline, normalize):
    weights, vocabulary, args, io = pipeline
    names = {token: name for name, token in vocabulary.tokens.items()}
    genes = tuple(names[token] for token in io["gene_ids"].tolist())
    encoder = CancerFoundationEncoder.from_weights(weights, vocabulary, genes, args, normalize=normalize)
    assert encoder.settings.max_seq_len == 64 and encoder.network.sizes.heads == 4
    found = encoder.encode(csr_matrix(io["expression"].numpy()), Genes(np.array(genes)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, io["cls_l2" if normalize else "cls"].numpy(), atol=2e-5)
    tokens, values = encoder._sequences(csr_matrix(io["expression"].numpy()), Genes(np.array(genes)))
    np.testing.assert_array_equal(values, io["collated_values"].numpy())
    np.testing.assert_array_equal(np.broadcast_to(tokens, (3, 41)), io["collated_gene_ids"].numpy())
    assert "decoder.fc.0.weight" in encoder.notes[-1]


# ------------------------------------------------------------------------------------- what is encoded


def test_an_embedding_does_not_depend_on_the_batch_nor_on_the_order_of_columns():
    encoder = make()
    counts, genes = table(NAMES)
    whole = encoder.encode(counts, genes)
    assert whole.shape == (7, 16) and np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    assert np.std(whole, axis=0).max() > 0.01  # the spots differ
    encoder.batch = 3
    np.testing.assert_allclose(encoder.encode(counts, genes), whole, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(counts[5:6], genes), whole[5:6], atol=1e-6)
    turned = np.random.default_rng(0).permutation(len(NAMES))
    np.testing.assert_allclose(encoder.encode(counts[:, turned], Genes(genes.symbols[turned])), whole, atol=1e-6)
    assert encoder.encode(counts[:0], genes).shape == (0, 16)


def test_genes_outside_the_list_have_no_effect_at_all():
    encoder = make()
    counts, genes = table((*NAMES, "MT-CO1", "ACTB"))
    changed = counts.toarray()
    changed[:, -2:] = changed[:, -2:] * 90 + 5
    np.testing.assert_array_equal(encoder.encode(csr_matrix(changed), genes), encoder.encode(counts, genes))
    changed[:, 0] += 30  # and one of the list has
    assert np.abs(encoder.encode(csr_matrix(changed), genes) - encoder.encode(counts, genes)).max() > 1e-3


def test_missing_genes_are_left_out_and_not_taken_for_zeros():
    counts, genes = table(NAMES)
    encoder = make()
    fewer = encoder.encode(counts[:, 4:], Genes(genes.symbols[4:]))
    np.testing.assert_allclose(fewer, make(NAMES[4:]).encode(counts, genes), atol=1e-6)
    zeros = counts.toarray()
    zeros[:, :4] = 0
    assert np.abs(fewer - encoder.encode(csr_matrix(zeros), genes)).max() > 1e-3
    assert encoder.measured(Genes(genes.symbols[4:])) == NAMES[4:]


def test_empty_spots_are_encoded_and_a_section_without_the_genes_gives_cls_alone():
    encoder = make()
    counts, genes = table(NAMES)
    rows = counts.toarray()
    rows[2] = 0
    found = encoder.encode(csr_matrix(rows), genes)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[3:], encoder.encode(counts, genes)[3:], atol=1e-6)
    strangers = encoder.encode(counts, Genes(np.array([name.lower() for name in NAMES])))
    np.testing.assert_allclose(strangers, np.broadcast_to(strangers[0], strangers.shape), atol=1e-6)
    with torch.inference_mode():
        alone = encoder.network(torch.tensor([[0]]), torch.tensor([[-2.0]]))[0, 0].numpy()
    np.testing.assert_allclose(strangers[0], alone / np.linalg.norm(alone), atol=1e-6)


def test_counts_and_their_normalised_logarithm_are_one():
    encoder = make()
    counts, genes = table(NAMES)
    dense = counts.toarray()
    logged = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(encoder.encode(csr_matrix(logged), genes), encoder.encode(counts, genes), atol=1e-6)


def test_tokens_are_one_vector_a_gene_that_is_there():
    counts, genes = table(NAMES)
    some = Genes(genes.symbols[3:])
    tokens = make(output="tokens").encode(counts[:, 3:], some)
    assert tokens.shape == (7, len(NAMES) - 3, 16) and tokens.dtype == np.float32
    with_cls = make(output="tokens", include_cls=True).encode(counts[:, 3:], some)
    np.testing.assert_allclose(with_cls[:, 1:], tokens, atol=1e-6)
    np.testing.assert_allclose(with_cls[:, 0], make().encode(counts[:, 3:], some), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=2), 1, atol=1e-5)
    raw = make(output="tokens", normalize=False).encode(counts[:, 3:], some)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=2, keepdims=True), tokens, atol=1e-5)
    # the order of tokens is that of the list
    again = make(NAMES[::-1], output="tokens").encode(counts[:, 3:], some)
    np.testing.assert_allclose(again[:, ::-1], tokens, atol=1e-6)
    with pytest.raises(GeneError, match="none of the 20 genes"):
        make(output="tokens").encode(counts, Genes(np.array([f"X{k}" for k in range(20)])))


def test_random_ties_are_reproduced_by_their_seed():
    counts, genes = table(NAMES)
    first = make(ties="random", seed=1).encode(counts, genes)
    np.testing.assert_array_equal(make(ties="random", seed=1).encode(counts, genes), first)
    np.testing.assert_allclose(make(ties="random", seed=1).encode(counts[3:4], genes), first[3:4], atol=1e-6)
    assert np.abs(make(ties="random", seed=2).encode(counts, genes) - first).max() > 1e-3


def test_bins_are_divided_where_the_network_was_trained_so():
    counts, genes = table(NAMES)
    _, values = make()._sequences(counts, genes)
    _, divided = make(normalise_bins=True)._sequences(counts, genes)
    np.testing.assert_allclose(divided[:, 1:], values[:, 1:] / 51, rtol=1e-6)
    assert (divided[:, 0] == -2).all()


def test_values_below_zero_are_no_value_for_a_network_of_that_style():
    plain, zero = network(), network(style="zero_below_zero")
    values = torch.tensor([[-2.0, 0, 3, 700]])
    with torch.inference_mode():
        ours, theirs = plain.value_encoder(values), zero.value_encoder(values)
        capped = plain.value_encoder(torch.tensor([[512.0]]))
    assert not theirs[0, 0].any() and ours[0, 0].any()
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:])
    torch.testing.assert_close(ours[:, 3], capped[:, 0])


def test_an_edit_that_changes_nothing_breaks_no_ties():
    counts, genes = table(NAMES, rows=40)
    n = counts.shape[0]
    spots = SpotTable(np.array([f"s{k}" for k in range(n)]), np.zeros((n, 2)), 1.0, counts, genes)
    edits = [Scale(genes=NAMES[::2], factor=4.0), Scale(genes=NAMES[::2], factor=0.25)]
    edited = apply_edits(np.arange(n), spots, edits, {}, {})
    assert (edited != counts).nnz > 0  # float32 rounding
    np.testing.assert_array_equal(make().encode(edited, genes), make().encode(counts, genes))


def test_counts_that_are_no_numbers_are_refused():
    counts, genes = table(NAMES)
    counts.data[0] = np.nan
    with pytest.raises(SectionError, match="not finite"):
        make().encode(counts, genes)


# ------------------------------------------------------------------------------------- which genes


def test_a_renamed_gene_is_found_in_vocabulary_and_section_and_reported():
    genes = ("SEPTIN2", *NAMES[:4], *NAMES[5:])
    encoder = make(genes)
    assert dict(encoder.gene_report.by_alias) == {"SEPTIN2": "SEPT2"}
    assert "SEPTIN2 as SEPT2" in encoder.notes[1]
    counts, columns = table(NAMES)
    np.testing.assert_allclose(encoder.encode(counts, columns), make().encode(counts, columns), atol=1e-6)
    ids = np.array([f"ENSG0000000{k:04d}" for k in range(len(NAMES))])
    renamed = Genes(np.where(columns.symbols == "SEPT2", "SEPTIN2", columns.symbols), ids)
    np.testing.assert_array_equal(make().encode(counts, renamed), make().encode(counts, columns))


def test_one_column_is_not_used_for_two_genes():
    vocabulary = make_vocabulary({**VOCABULARY.tokens, "SEPTIN2": len(VOCABULARY)})
    genes = ("SEPTIN2", *NAMES)
    encoder = CancerFoundationEncoder(network(tokens=len(vocabulary)), vocabulary, genes)
    counts, columns = table(NAMES)  # has SEPT2 alone
    assert encoder.measured(columns) == NAMES
    both = encoder.measured(Genes(np.array(genes)))
    assert both == genes


def test_unknown_and_doubled_genes_are_all_listed():
    with pytest.raises(GeneError, match=r"Not in the vocabulary: mlana, <cls>\..*MLANA and MLANA, SEPT2 and SEPTIN2"):
        make((*NAMES, "mlana", "<cls>", "MLANA", "SEPTIN2"))
    with pytest.raises(GeneError, match="with one token: SEPT2 and SEPTIN2"):
        make((*NAMES, "SEPTIN2"))
    with pytest.raises(GeneError, match="Not in the vocabulary: ACTB"):
        make((*NAMES, "ACTB"))


def test_a_list_that_is_empty_or_too_long_is_refused():
    for genes, settings in (((), {}), (NAMES, {"max_seq_len": 20})):
        with pytest.raises(CheckpointError, match=f"has {len(genes)} genes"):
            make(genes, **settings)
    assert make(NAMES, max_seq_len=21).encode(*table(NAMES)).shape == (7, 16)


def test_a_vocabulary_of_another_network_is_refused():
    with pytest.raises(CheckpointError, match="24 names, the network 25 tokens"):
        make(net=network(tokens=25))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<cls>": 0, "A": 1}, "lacks <pad>"),
        ({"<cls>": 0, "<pad>": 1, "A": 3}, "not 0 to 2"),
        ({"<cls>": 0, "<pad>": 1, "A": 1}, "not 0 to 2"),
        ({"<cls>": 0, "<pad>": 1, "A": "2"}, "no whole numbers"),
        (["<cls>"], "holds list"),
    ],
)
def test_a_bad_vocabulary_is_refused(tmp_path, content, message):
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tmp_path / "vocab.json")


def test_a_pickled_vocabulary_is_never_opened(tmp_path):
    (tmp_path / "vocab.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Pickles are refused"):
        read_vocabulary(tmp_path / "vocab.pkl")
    with pytest.raises(CheckpointError, match="no readable vocabulary"):
        read_vocabulary(tmp_path / "vocab.json")


# ------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("style", ["plain", "zero_below_zero"])
def test_folder_round_trip(tmp_path, style):
    encoder = make(net=network(style=style), ties="random", seed=3, output="tokens", normalize=False)
    encoder.save(tmp_path)
    again = CancerFoundationEncoder.load(tmp_path)
    assert again.settings == encoder.settings and again.genes == NAMES and again.gene_hash == encoder.gene_hash
    assert again.network.sizes == encoder.network.sizes and again.network.value_style == style
    counts, genes = table(NAMES)
    np.testing.assert_allclose(again.encode(counts, genes), encoder.encode(counts, genes), atol=1e-6)


def test_weights_and_vocabulary_from_elsewhere_replace_those_of_the_folder(tmp_path):
    encoder = make()
    encoder.save(tmp_path)
    torch.manual_seed(5)
    other = {f"model.{name}": torch.randn_like(t) * 0.4 for name, t in encoder.network.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="vocab.json"):
        CancerFoundationEncoder.load(tmp_path)
    again = CancerFoundationEncoder.load(tmp_path, {"state_dict": other}, dict(VOCABULARY.tokens))
    counts, genes = table(NAMES)
    assert np.abs(again.encode(counts, genes) - encoder.encode(counts, genes)).max() > 0.01
    expected = CancerFoundationEncoder.from_weights(other, VOCABULARY, NAMES, {"nheads": 4})
    np.testing.assert_allclose(again.encode(counts, genes), expected.encode(counts, genes), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genes": []}, "lists no genes.*choose_genes"),
        ({"genes": [*NAMES[:-1], "G99"]}, "does not fit its hash"),
        ({"gene_hash": None}, f"lacks gene_hash; of its 20 genes it is {hash_genes(NAMES)}"),
        ({"genes": "MLANA"}, "must be a list"),
        ({"ties": "lowest", "n_bins": 1}, "(?s)n_bins:.*ties:"),
        ({"normalise": False}, "normalise: Extra inputs"),
        ({"network": {"width": 32, "heads": 4}}, "it says width 32, not 16"),
        ({"network": {"heads": 3}}, "3 attention heads do not divide"),
        ({"network": {"heads": "4"}}, "nheads is '4'"),
        ({"network": {"heads": 4, "value_style": "mine"}}, "value_style is 'mine'"),
        ({"network": None}, "width 16 is not known.*args.json"),
        ({"network": [4]}, "no settings of an encoder"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path, change, message):
    make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        CancerFoundationEncoder.load(tmp_path)


def test_an_incomplete_or_damaged_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no readable encoder"):
        CancerFoundationEncoder.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no readable encoder"):
        CancerFoundationEncoder.load(tmp_path)


# ------------------------------------------------------------------------------------- the training arguments


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"norm_first": True, "activation": "gelu"}, "activation is 'gelu'.*norm_first is True"),
        ({"pre_norm": True}, "pre_norm is True"),
        ({"input_style": "log1p"}, "input_style is 'log1p', supported: 'binned'"),
        ({"input_emb_style": "category"}, "input_emb_style"),
        ({"nheads": 4.5}, "nheads is 4.5"),
        ({"nheads": 4, "embsize": 256, "nlayers": 6}, "width 256, not 16; depth 6, not 2"),
        ({"nheads": 4, "n_bins": "many"}, "n_bins"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(args, message):
    with pytest.raises(CheckpointError, match=message):
        CancerFoundationEncoder.from_weights(network().state_dict(), VOCABULARY, NAMES, args)


def test_training_arguments_reach_the_encoder():
    args = {"nheads": 2, "n_bins": 21, "max_seq_len": 30, "normalise_bins": True, "input_emb_style": "mine", "lr": 1e-4}
    encoder = CancerFoundationEncoder.from_weights(network().state_dict(), VOCABULARY, NAMES, args, n_bins=11)
    assert (encoder.settings.n_bins, encoder.settings.max_seq_len, encoder.settings.normalise_bins) == (11, 30, True)
    assert encoder.network.sizes.heads == 2 and encoder.network.value_style == "zero_below_zero"
