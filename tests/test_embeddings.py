import json
import pickle

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from napari_stmdit.embeddings import PrecomputedEmbeddings, read_embeddings
from napari_stmdit.errors import SectionError

IDS = np.array([f"AAAC{k}-1" for k in range(6)])


@pytest.fixture
def vectors():
    # values that half precision holds exactly, so that every file type can be compared to the bit
    return np.random.default_rng(0).integers(-64, 64, (6, 2, 5)).astype(np.float32) / 8


def write_npy(folder, vectors, ids=".txt"):
    path = folder / "uni.npy"
    np.save(path, vectors)
    if ids == ".txt":
        (folder / "uni.ids.txt").write_text("\n".join(IDS) + "\n")
    elif ids == ".csv":
        pd.DataFrame({"barcode": IDS, "row": 0}).to_csv(folder / "uni.ids.csv", index=False)
    elif ids == ".npy":
        np.save(folder / "uni.ids.npy", IDS)
    return path


def write_h5(folder, vectors, names=("embeddings", "barcodes"), ids=IDS, suffix=".h5"):
    path = folder / f"uni{suffix}"
    with h5py.File(path, "w") as file:
        file[names[0]] = vectors
        file["coords"] = np.zeros((len(vectors), 2), dtype=int)
        if ids is not None:
            file[names[1]] = ids.astype(object) if ids.dtype.kind == "U" else ids  # text of varying length
    return path


def write_zarr(folder, vectors, version=3):
    path = folder / "uni.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("features", data=vectors)
    ids = group.create_array("spot_ids", shape=IDS.shape, dtype=str)
    ids[:] = IDS
    return path


def annotated(vectors):
    obs = pd.DataFrame({"in_tissue": 1}, index=IDS)
    obsm = {"uni2h": vectors[:, 0].copy(), "spatial": np.zeros((6, 2))}
    return anndata.AnnData(np.ones((6, 3), dtype=np.float32), obs=obs, obsm=obsm)


# ---------------------------------------------------------------- file types


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ids", [".txt", ".csv", ".npy"])
def test_npy_with_ids_beside_it(tmp_path, vectors, ids, dtype):
    found = read_embeddings(write_npy(tmp_path, vectors.astype(dtype), ids), 5, 2)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.vectors.dtype == np.float32 and found.ids.tolist() == IDS.tolist()


def test_one_vector_a_spot_is_one_token(tmp_path, vectors):
    found = read_embeddings(write_npy(tmp_path, vectors[:, 0]), 5, 1)
    np.testing.assert_array_equal(found.vectors, vectors[:, :1])


@pytest.mark.parametrize("names", [("embeddings", "barcodes"), ("features", "ids"), ("feats", "barcode")])
@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_hdf5(tmp_path, vectors, names, suffix):
    found = read_embeddings(write_h5(tmp_path, vectors, names, IDS, suffix))
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.ids.tolist() == IDS.tolist()


def test_the_layout_of_hest(tmp_path, vectors):
    """Vectors (n, d), and barcodes as (n, 1) bytes."""
    found = read_embeddings(write_h5(tmp_path, vectors[:, 0], ids=IDS.astype("S")[:, None]), 5)
    assert found.ids.tolist() == IDS.tolist() and found.vectors.shape == (6, 1, 5)


def test_the_layout_of_clam_needs_ids(tmp_path, vectors):
    path = write_h5(tmp_path, vectors[:, 0], names=("features", ""), ids=None)
    with pytest.raises(SectionError, match="does not say which vector belongs to which spot. Add an array of ids"):
        read_embeddings(path)
    found = read_embeddings(path, ids=IDS)
    np.testing.assert_array_equal(found.rows(IDS[:1]), vectors[:1, :1])


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, vectors, version):
    found = read_embeddings(write_zarr(tmp_path, vectors, version))
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_anndata(tmp_path, vectors, kind):
    path = tmp_path / f"section.{kind}"
    getattr(annotated(vectors), f"write_{kind}")(path)
    with pytest.raises(SectionError, match="no array of a known name: obsm has spatial, uni2h"):
        read_embeddings(path)
    found = read_embeddings(f"{path}::uni2h", 5, 1)
    np.testing.assert_array_equal(found.vectors, vectors[:, :1])
    assert found.ids.tolist() == IDS.tolist()


def test_names_of_observations_as_nullable_text(tmp_path, vectors):
    """AnnData 0.13 writes text of pandas 3 as two arrays: the values, and which are missing."""
    path = tmp_path / "section.h5ad"
    annotated(vectors).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        if isinstance(obs["_index"], h5py.Dataset):
            obs.move("_index", "values")
            obs.create_group("_index").attrs["encoding-type"] = "nullable-string-array"
            obs.move("values", "_index/values")
            obs["_index/mask"] = np.zeros(len(IDS), dtype=bool)
    assert read_embeddings(f"{path}::uni2h").ids.tolist() == IDS.tolist()
    with h5py.File(path, "r+") as file:
        file["obs/_index/mask"][2] = True
    with pytest.raises(SectionError, match=r"section.h5ad: some of its ids are missing"):
        read_embeddings(f"{path}::uni2h")
    with h5py.File(path, "r+") as file:
        file["obs/_index"].attrs["encoding-type"] = "categorical"
    with pytest.raises(SectionError, match="its ids are stored as a group, expected a plain array of text"):
        read_embeddings(f"{path}::uni2h")


def test_factors_in_tables_of_numbers(tmp_path, vectors):
    """As NMF, topic models and cell2location leave them: data frames in obsm, and CSV files."""
    adata, factors = annotated(vectors), pd.DataFrame(vectors[:, 0], index=IDS, columns=[f"T {k}" for k in range(5)])
    adata.obsm["abundance"], adata.obsm["words"] = factors, pd.DataFrame({"region": list("abcdef")}, index=IDS)
    adata.write_h5ad(tmp_path / "section.h5ad")
    with h5py.File(tmp_path / "section.h5ad", "r+") as file:  # a slash, as AnnData up to 0.12 wrote it
        table = file["obsm/abundance"]
        for name in factors:
            table.move(name, f"B/{name}")
        table.attrs["column-order"] = [f"B/{name}" for name in factors]
    factors = factors.add_prefix("B/")
    factors.to_csv(tmp_path / "factors.csv")
    factors.to_csv(tmp_path / "packed.csv.gz", index_label="spot")
    for place in ("section.h5ad::abundance", "factors.csv", "packed.csv.gz"):
        found = read_embeddings(tmp_path / place, 5, 1)
        np.testing.assert_array_equal(found.vectors, vectors[:, :1])
        assert found.ids.tolist() == IDS.tolist()
    factors.assign(region="a").to_csv(tmp_path / "mixed.csv")
    for place, message in (
        ("section.h5ad::words", "has a column that is no numbers"),
        ("mixed.csv", "its columns 'region' are no numbers; expected ids in the first column"),
        ("factors.csv::nmf", "holds one table without a name"),
    ):
        with pytest.raises(SectionError, match=message):
            read_embeddings(tmp_path / place)


@pytest.mark.parametrize(("name", "spots"), [("d0_naive", 2604), ("d14_DSS", 3630)])
def test_the_factors_of_the_real_colon(shared_data, name, spots):
    path = shared_data / "visium_mouse_colon" / f"{name}.h5ad"
    assert read_embeddings(f"{path}::nmf20").vectors.shape == (spots, 1, 20)
    cells = read_embeddings(f"{path}::cell_type_proportions").vectors
    assert cells.shape == (spots, 1, 63) and np.abs(cells.sum(axis=2) - 1).max() < 0.05
    found = read_embeddings(f"{path}::nmf20")
    with pytest.raises(SectionError, match=r"would match without the number of the sample at the end"):
        found.rows([found.ids[0].rpartition("_")[0]])


def test_the_hash_is_of_the_content(tmp_path, vectors):
    first = read_embeddings(write_npy(tmp_path, vectors))
    assert read_embeddings(write_h5(tmp_path, vectors.astype(np.float16))).sha256 == first.sha256
    assert PrecomputedEmbeddings(IDS[::-1], vectors).sha256 != first.sha256
    assert PrecomputedEmbeddings(IDS, vectors + 1).sha256 != first.sha256
    assert PrecomputedEmbeddings(IDS, vectors.reshape(6, 1, 10)).sha256 != first.sha256


# ---------------------------------------------------------------- nothing is guessed


def test_a_choice_between_arrays_is_the_users(tmp_path, vectors):
    path = write_h5(tmp_path, vectors)
    with h5py.File(path, "a") as file:
        file["features"] = vectors + 1
    with pytest.raises(
        SectionError, match="several arrays: it has barcodes, coords, embeddings, features.*uni.h5::NAME"
    ):
        read_embeddings(path)
    np.testing.assert_array_equal(read_embeddings(f"{path}::features").vectors, vectors + 1)
    with pytest.raises(SectionError, match="has no array 'other'"):
        read_embeddings(f"{path}::other")
    with h5py.File(path, "a") as file:
        file["ids"] = IDS.astype("S")
    with pytest.raises(SectionError, match="several arrays of ids: barcodes, ids"):
        read_embeddings(f"{path}::features")


def test_ids_are_needed_and_must_be_the_ones_given(tmp_path, vectors):
    path = write_npy(tmp_path, vectors, ids=None)
    with pytest.raises(SectionError, match=r"into uni.ids.txt beside it; or, if its rows are in the order"):
        read_embeddings(path)
    assert read_embeddings(path, ids=IDS).ids.tolist() == IDS.tolist()
    write_npy(tmp_path, vectors)
    assert read_embeddings(path, ids=IDS).ids.tolist() == IDS.tolist()
    with pytest.raises(SectionError, match="ids of its own, and they are not those given"):
        read_embeddings(path, ids=IDS[::-1])
    write_npy(tmp_path, vectors, ".csv")
    with pytest.raises(SectionError, match=r"in uni.ids.txt and in uni.ids.csv; keep one"):
        read_embeddings(path)


def test_a_csv_needs_a_header(tmp_path, vectors):
    path = write_npy(tmp_path, vectors, ids=None)
    (tmp_path / "uni.ids.csv").write_text("\n".join(IDS))
    with pytest.raises(SectionError, match="has the columns AAAC0-1; expected a header with one of barcodes, barcode"):
        read_embeddings(path)


# ---------------------------------------------------------------- faults


def test_all_faults_are_told_at_once(tmp_path, vectors):
    vectors[2, 1, 3] = np.nan
    path = write_h5(tmp_path, vectors, ids=np.array(["A", "B", "C", "A", ""], dtype=object))
    with pytest.raises(SectionError) as caught:
        read_embeddings(path, expected_dim=1536, expected_tokens=1)
    for text in (
        "5 ids for 6 vectors",
        "1 ids occur more than once: 'A'",
        "1 ids are empty",
        "1 vectors hold values that are not finite in float32: 'C'",
        "2 vectors a spot; the checkpoint needs 1",
        "5 values a vector; the checkpoint needs 1536",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(int), "vectors are int64, expected float16"),
        (lambda v: v.astype(np.float64) * 1e300, "6 vectors hold values that are not finite in float32"),
        (lambda v: v[:0], "no length of zero"),
        (lambda v: v[:, :, :0], "no length of zero"),
        (lambda v: v[0, 0], r"vectors have shape \(5,\)"),
        (lambda v: v[None], r"vectors have shape \(1, 6, 2, 5\)"),
    ],
)
def test_other_vectors_are_refused(tmp_path, vectors, change, message):
    with pytest.raises(SectionError, match=message):
        read_embeddings(write_npy(tmp_path, change(vectors)))


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".h5ad"])
def test_damaged_files_are_told(tmp_path, vectors, suffix):
    path = tmp_path / f"uni{suffix}"
    write_npy(tmp_path, vectors) if suffix == ".npy" else write_h5(tmp_path, vectors, suffix=suffix)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SectionError, match=f"uni{suffix} (is no readable array|cannot be read)"):
        read_embeddings(path)


def test_a_damaged_zarr_is_told(tmp_path, vectors):
    path = write_zarr(tmp_path, vectors)
    (path / "features" / "zarr.json").write_text("{")
    with pytest.raises(SectionError, match="uni.zarr cannot be read"):
        read_embeddings(path)


def test_what_is_not_there_or_not_known(tmp_path, vectors):
    with pytest.raises(SectionError, match="does not exist; expected embeddings in a .npy, .h5"):
        read_embeddings(tmp_path / "none.npy")
    (tmp_path / "uni.pt").write_bytes(b"")
    with pytest.raises(SectionError, match="of no known kind"):
        read_embeddings(tmp_path / "uni.pt")
    with pytest.raises(SectionError, match="leave out '::x'"):
        read_embeddings(f"{write_npy(tmp_path, vectors)}::x")
    with h5py.File(write_h5(tmp_path, vectors), "a") as file:
        file.create_group("sparse")
    with pytest.raises(SectionError, match="sparse is a group"):
        read_embeddings(f"{tmp_path / 'uni.h5'}::sparse")


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(tmp_path, vectors):
    mark = tmp_path / "PWNED"
    np.save(tmp_path / "trap.npy", np.array([_Trap(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(SectionError, match="no readable array of plain numbers"):
        read_embeddings(tmp_path / "trap.npy")
    path = write_zarr(tmp_path, vectors, version=2)
    metadata = json.loads((path / "spot_ids" / ".zarray").read_text())
    metadata |= {"filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}], "compressor": None}
    (path / "spot_ids" / ".zarray").write_text(json.dumps(metadata))
    (path / "spot_ids" / "0").write_bytes(pickle.dumps(_Trap(mark)))
    with pytest.raises(SectionError, match="spot_ids is pickled, and reading it could run code"):
        read_embeddings(path)
    assert not mark.exists()


# ---------------------------------------------------------------- rows


def test_rows_come_in_the_order_asked_for(vectors):
    found = PrecomputedEmbeddings(IDS, vectors)
    np.testing.assert_array_equal(found.rows([IDS[4], IDS[0], IDS[4]]), vectors[[4, 0, 4]])
    assert found.rows([]).shape == (0, 2, 5) and len(found) == 6


def test_missing_ids_are_listed(vectors):
    found = PrecomputedEmbeddings(IDS, vectors, "uni.h5")
    with pytest.raises(SectionError) as caught:
        found.rows([IDS[0], *(f"GGG{k}" for k in range(7))])
    message = str(caught.value)
    assert message.startswith(
        "uni.h5 has no embedding for 7 of 8 spots: 'GGG0', 'GGG1', 'GGG2', 'GGG3', 'GGG4' and 2 more."
    )
    assert message.endswith("It holds 6 ids such as 'AAAC0-1', 'AAAC1-1'.")  # no hint: no spelling would match


@pytest.mark.parametrize(
    ("spell", "words"),
    [
        (lambda name: name.removesuffix("-1"), "without the number at the end"),
        (lambda name: f"sampleA_{name}", "without what precedes"),
        (str.lower, "in capitals"),
    ],
)
def test_another_spelling_is_named_but_never_taken(vectors, spell, words):
    asked = [spell(name) for name in IDS[:4]]
    with pytest.raises(SectionError, match=f"4 of the missing ids would match {words}"):
        PrecomputedEmbeddings(IDS, vectors).rows(asked)
    with pytest.raises(SectionError, match=f"4 of the missing ids would match {words}"):
        PrecomputedEmbeddings(np.array([spell(name) for name in IDS]), vectors).rows(IDS[:4])
