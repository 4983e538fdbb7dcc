import json
import logging
import os
import threading
import time

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from napari_stmdit.encoders.cache import CachedExpression, CachedMorphology, EmbeddingCache
from napari_stmdit.encoders.linear_programs import LinearProgramEncoder
from napari_stmdit.encoders.small_conv import FeatureTrunk, SmallConvEncoder
from napari_stmdit.errors import StoreError
from napari_stmdit.storage.atomic import drafting
from napari_stmdit.types import Genes

NAMES = ("EPCAM", "KRT8", "COL1A1", "CD3E")
GENES = Genes(np.array(NAMES))
LARGE = 10**6


class Counted:
    """A real encoder that remembers how many rows each call had."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.calls = []

    def encode(self, rows, *rest):
        self.calls.append(rows.shape[0])
        return self.encoder.encode(rows, *rest)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return Counted(SmallConvEncoder(FeatureTrunk((8, 8)), torch.zeros(38), torch.randn(38, 5) * 0.05))


@pytest.fixture
def programs():
    rng = np.random.default_rng(0)
    one = np.ones(4, np.float32)
    projection, offset = rng.normal(size=(4, 3)).astype(np.float32), np.zeros(3, np.float32)
    return Counted(LinearProgramEncoder(NAMES, one, one, one, projection, offset))


@pytest.fixture
def patches():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def counts():
    return csr_matrix(np.random.default_rng(0).poisson(2, (6, 4)).astype(np.float32))


def value(number, size=25):
    return np.full(size, number, dtype=np.float32)  # 100 bytes


# ---------------------------------------------------------------- memory


def test_the_least_recently_used_goes_first_and_the_limit_holds():
    cache = EmbeddingCache(limit_bytes=350)
    for name in "abc":
        cache.put(name, value(ord(name)))
    assert cache.get("a")[0] == ord("a")  # now b is the oldest
    cache.put("d", value(1))
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    assert len(cache) == 3 and cache.nbytes == 300 and cache.get("b") is None
    cache.put("a", value(2, 50))
    assert cache.nbytes == 300 and "c" not in cache and cache.get("a").shape == (50,)
    cache.put("e", value(0, 1000))  # larger than all: not kept, and nothing goes for it
    assert "e" not in cache and cache.nbytes == 300
    cache.clear()
    assert len(cache) == 0 and cache.nbytes == 0


def test_what_is_kept_cannot_be_changed_from_outside():
    cache = EmbeddingCache(LARGE)
    given = value(3)
    cache.put("a", given)
    given[:] = 0
    assert cache.get("a")[0] == 3
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a")[0] = 1


# ---------------------------------------------------------------- encoders


def test_a_patch_is_encoded_once_and_order_is_kept(conv, patches):
    plain = conv.encoder.encode(patches)
    cached = CachedMorphology(conv, EmbeddingCache(LARGE), "weights")
    np.testing.assert_allclose(cached.encode(patches[:4]), plain[:4], atol=1e-5)
    order = [5, 2, 4, 0, 5]
    found = cached.encode(patches[order])
    np.testing.assert_allclose(found, plain[order], atol=1e-5)
    assert conv.calls == [4, 2]  # the second time 5 and 4 in one call, 5 once
    np.testing.assert_array_equal(cached.encode(patches[order]), found)
    assert conv.calls == [4, 2]
    found[:] = 0
    np.testing.assert_allclose(cached.encode(patches[[2]]), plain[[2]], atol=1e-5)


def test_the_result_does_not_depend_on_the_batch(conv, patches):
    whole = CachedMorphology(conv, EmbeddingCache(LARGE), "weights").encode(patches)
    cached = CachedMorphology(conv, EmbeddingCache(LARGE), "weights")
    single = np.concatenate([cached.encode(patches[k : k + 1]) for k in range(6)])
    np.testing.assert_allclose(single, whole, atol=1e-5)
    assert cached.encode(patches[:0]).shape == (0, 1, 5)


def test_a_cache_that_is_too_small_still_gives_every_row(conv, patches):
    cached = CachedMorphology(conv, EmbeddingCache(limit_bytes=40), "weights")
    np.testing.assert_allclose(cached.encode(patches), conv.encoder.encode(patches), atol=1e-5)
    cached = CachedMorphology(conv, EmbeddingCache(limit_bytes=0), "weights")
    np.testing.assert_allclose(cached.encode(patches), conv.encoder.encode(patches), atol=1e-5)


def test_patches_of_another_shape_with_the_same_bytes_are_others(conv, patches):
    cached = CachedMorphology(conv, EmbeddingCache(LARGE), "weights")
    cached.encode(patches[:1])
    cached.encode(patches[:1].reshape(1, 64, 16, 3))
    assert conv.calls == [1, 1]


def test_different_encoders_do_not_mix(conv, patches):
    cache = EmbeddingCache(LARGE)
    other = SmallConvEncoder(conv.encoder.trunk, conv.encoder.mean, conv.encoder.projection * 2)
    first = CachedMorphology(conv.encoder, cache, "weights one").encode(patches)
    second = CachedMorphology(other, cache, "weights two").encode(patches)
    np.testing.assert_allclose(second, other.encode(patches), atol=1e-5)
    assert np.abs(first - second).max() > 0.01


def test_a_row_of_counts_is_encoded_once(programs, counts):
    cached = CachedExpression(programs, EmbeddingCache(LARGE), "weights")
    plain = programs.encoder.encode(counts, GENES)
    np.testing.assert_allclose(cached.encode(counts[:4], GENES), plain[:4], atol=1e-5)
    order = [5, 1, 1, 4]
    np.testing.assert_allclose(cached.encode(counts[order], GENES), plain[order], atol=1e-5)
    assert programs.calls == [4, 2]
    assert cached.encode(counts[:0], GENES).shape == (0, 3)


def test_equal_rows_are_one_however_they_are_stored(programs):
    cached = CachedExpression(programs, EmbeddingCache(LARGE), "weights")
    cached.encode(csr_matrix(np.array([[1, 0, 2, 0]])), GENES)
    odd = csr_matrix((np.array([2.0, 0.0, 0.5, 0.5]), np.array([2, 3, 0, 0]), np.array([0, 4])), shape=(1, 4))
    before = odd.data.copy()
    cached.encode(odd, GENES)
    assert programs.calls == [1] and np.array_equal(odd.data, before)


@pytest.mark.parametrize("change", ["value", "place", "genes", "key", "ids"])
def test_rows_that_differ_are_kept_apart(programs, change):
    cache = EmbeddingCache(LARGE)
    CachedExpression(programs, cache, "weights").encode(csr_matrix(np.array([[1, 0, 2, 0]])), GENES)
    row = {"value": [1, 0, 3, 0], "place": [1, 0, 0, 2]}.get(change, [1, 0, 2, 0])
    ids = np.array(["E1", "E2", "E3", "E4"]) if change == "ids" else None
    genes = Genes(GENES.symbols[::-1] if change == "genes" else GENES.symbols, ids)
    cached = CachedExpression(programs, cache, "other" if change == "key" else "weights")
    np.testing.assert_allclose(
        cached.encode(csr_matrix(np.array([row])), genes), programs.encoder.encode(csr_matrix(np.array([row])), genes)
    )
    assert programs.calls == [1, 1]


@pytest.mark.parametrize("changed", ["args.json", "vocab.json", "model.pth", "config.json"])
def test_any_corrected_file_of_a_reference_is_another_encoder(tmp_path, changed):
    """Also one that the reference does not list, and that is read where it lies beside the weights."""
    from napari_stmdit.encoder_sources import _key
    from napari_stmdit.model.folder import Component

    weights, own = tmp_path / "weights", tmp_path / "expression_encoder"
    for place in (weights, own):
        place.mkdir()
    for name in ("args.json", "vocab.json", "model.pth", "config.json"):
        (weights / name).write_text("8 heads")
    listed = {"name": "cancer", "source": str(weights), "files": ["model.pth", "vocab.json"], "licence": "none"}
    (own / "reference.json").write_text(json.dumps(listed))
    component = Component("library", "CancerFoundationEncoder", own)
    before, state = _key(component), (weights / changed).stat()
    assert _key(component) == before
    (weights / changed).write_text("4 heads")
    os.utime(weights / changed, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _key(component) != before


@pytest.fixture
def depth_programs():
    one, projection = np.ones(4, np.float32), np.zeros((4, 3), np.float32)
    encoder = LinearProgramEncoder(
        NAMES, one, one, one, projection, np.zeros(3, np.float32), depth_projection=np.array([0, 0, 1], np.float32)
    )
    counted = Counted(encoder)
    counted.uses_depth = encoder.uses_depth
    return counted


def test_one_profile_at_two_depths_is_two_embeddings_to_an_encoder_that_reads_depth(depth_programs, counts):
    assert depth_programs.uses_depth
    cached = CachedExpression(depth_programs, EmbeddingCache(LARGE), "a")
    shallow, deep = (cached.encode(counts, GENES, np.full(6, depth, np.float32)) for depth in (-1.0, 1.0))
    np.testing.assert_array_equal(shallow[:, 2], -1)
    np.testing.assert_array_equal(deep[:, 2], 1)
    np.testing.assert_array_equal(cached.encode(counts, GENES, np.full(6, -1, np.float32)), shallow)
    assert depth_programs.calls == [6, 6]


def test_depth_is_nothing_to_an_encoder_that_does_not_read_it(programs, counts):
    cached = CachedExpression(programs, EmbeddingCache(LARGE), "a")
    for depth in (-1.0, 1.0):
        cached.encode(counts, GENES, np.full(6, depth, np.float32))
    assert programs.calls == [6]


def test_two_threads_compute_a_patch_once(conv, patches):
    class Slow(Counted):
        def encode(self, rows, *rest):
            time.sleep(0.05)
            return super().encode(rows, *rest)

    slow = Slow(conv.encoder)
    cached = CachedMorphology(slow, EmbeddingCache(LARGE), "weights")
    start = threading.Barrier(2)
    found = {}

    def work(name, rows):
        start.wait()
        found[name] = cached.encode(rows)

    threads = [threading.Thread(target=work, args=(k, patches[::step])) for k, step in enumerate((1, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow.calls == [6]
    np.testing.assert_array_equal(found[0], found[1][::-1])


def test_many_threads_keep_the_books_right(tmp_path):
    cache = EmbeddingCache(1000, tmp_path, 4000)
    faults = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(150):
            number = int(rng.integers(40))
            found = cache.get(f"{number:02x}")
            if found is not None and not (found == number).all():
                faults.append(number)
            cache.put(f"{number:02x}", value(number, int(rng.integers(5, 30))))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and cache.nbytes <= 1000
    assert cache.nbytes == sum(entry.nbytes for entry in cache._entries.values())


# ---------------------------------------------------------------- disk


def test_embeddings_outlive_a_session_and_numpy_reads_them(conv, patches, tmp_path):
    first = CachedMorphology(conv, EmbeddingCache(LARGE, tmp_path / "new" / "folder"), "weights").encode(patches)
    again = CachedMorphology(conv, EmbeddingCache(LARGE, tmp_path / "new" / "folder"), "weights").encode(patches)
    np.testing.assert_array_equal(again, first)
    assert conv.calls == [6]
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert len(files) == 6 and all(file.suffix == ".npy" for file in files)
    assert np.load(files[0], allow_pickle=False).shape == (1, 5)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "pickle"])
def test_a_damaged_file_is_computed_again(conv, patches, tmp_path, damage, caplog):
    first = CachedMorphology(conv, EmbeddingCache(LARGE, tmp_path), "weights").encode(patches[:1])
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-10]
    elif damage == "bit":
        content[140] ^= 1  # among the values: still a valid array
    elif damage == "empty":
        content = b""
    else:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        content = file.read_bytes()
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = CachedMorphology(conv, EmbeddingCache(LARGE, tmp_path), "weights").encode(patches[:1])
    np.testing.assert_array_equal(found, first)
    assert conv.calls == [1, 1] and "is damaged" in caplog.text
    CachedMorphology(conv, EmbeddingCache(LARGE, tmp_path), "weights").encode(patches[:1])
    assert conv.calls == [1, 1]  # and the whole one is back


def on_disk(folder):
    return {file.stem for file in folder.glob("*.npy")}


def test_the_folder_keeps_its_limit_and_the_recently_used(tmp_path):
    size = 128 + 100 + 32  # NumPy's header, values, hash
    cache = EmbeddingCache(0, tmp_path, folder_limit_bytes=4 * size)
    for age, name in enumerate(["a1", "b2", "c3", "d4"]):
        cache.put(name, value(age))
        os.utime(tmp_path / f"{name}.npy", (1000 + age, 1000 + age))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 4 * size
    assert cache.get("a1")[0] == 0  # now used last
    cache.put("e5", value(9))
    assert on_disk(tmp_path) == {"a1", "d4", "e5"}
    cache.put("f6", value(0, 2000))  # larger than the folder may be
    assert on_disk(tmp_path) == {"a1", "d4", "e5"}
    EmbeddingCache(0, tmp_path, folder_limit_bytes=size)
    assert len(on_disk(tmp_path)) == 0  # a smaller limit holds from the start, with room for new ones


def test_a_hit_in_memory_counts_as_use_on_disk(tmp_path):
    cache = EmbeddingCache(LARGE, tmp_path)
    cache.put("a1", value(1))
    os.utime(tmp_path / "a1.npy", (1000, 1000))
    cache.get("a1")
    assert (tmp_path / "a1.npy").stat().st_mtime > 1000


def test_what_broke_off_in_writing_is_tidied_up(tmp_path):
    (tmp_path / ".a1.npy.0123456789ab.part").write_bytes(b"x")
    os.utime(tmp_path / ".a1.npy.0123456789ab.part", (1000, 1000))
    with drafting(tmp_path / "b2.npy") as draft:  # of another process, still writing
        draft.write_bytes(b"x")
        EmbeddingCache(0, tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {draft.name, f"{draft.name}.lock"}


def test_what_somebody_else_put_into_the_folder_stays(tmp_path):
    for name in ("coordinates.npy", "notes.tmp", "thesis.part"):
        (tmp_path / name).write_bytes(bytes(5000))
        os.utime(tmp_path / name, (1000, 1000))
    cache = EmbeddingCache(LARGE, tmp_path, folder_limit_bytes=2000)
    for key in ("a1", "b2", "c3", "d4", "e5"):
        cache.put(key, value(1))
    assert {"coordinates.npy", "notes.tmp", "thesis.part"} <= {file.name for file in tmp_path.iterdir()}


def test_a_disk_that_fails_stops_nothing(conv, patches, tmp_path, monkeypatch, caplog):
    cache = EmbeddingCache(LARGE, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        found = CachedMorphology(conv, cache, "weights").encode(patches)
    np.testing.assert_allclose(found, conv.encoder.encode(patches), atol=1e-5)
    assert list(tmp_path.iterdir()) == [] and "could not be kept" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        EmbeddingCache(0, tmp_path / "file" / "below")
