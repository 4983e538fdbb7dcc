"""Properties that hold for every input of a kind, looked for by Hypothesis."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import TINY_GENES, tiny_arrays

from napari_stmdit.edits import Add, KnockOut, Scale, SetQuantile, Towards
from napari_stmdit.errors import RequestError, SectionError
from napari_stmdit.expression.genes import gather_counts, match_genes
from napari_stmdit.files import BadFile, read_json, read_yaml
from napari_stmdit.intent import Guidance, Request
from napari_stmdit.regions import AllSpots, Polygons, SampleOfSpots, SpotList
from napari_stmdit.synthesis.requests import make_request, read_edit_file, read_request
from napari_stmdit.tissue import geometry
from napari_stmdit.types import Genes

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
names = st.lists(text, min_size=1, max_size=4).map(tuple)
unit = st.floats(0, 1)
shared = {
    "genes": names,
    "spots": st.none() | st.dictionaries(text, unit, min_size=1, max_size=3),
    "strength": unit,
    "enabled": st.booleans(),
}
edits = st.one_of(
    st.builds(Scale, factor=st.floats(0, 1000), **shared),
    st.builds(Add, log_units=st.floats(-10, 10), **shared),
    st.builds(SetQuantile, quantile=unit, **shared),
    st.builds(KnockOut, **shared),
    st.builds(Towards, target_spots=names, **shared),
)
pixel = st.floats(-1e5, 1e5)
ring = st.lists(st.tuples(pixel, pixel), min_size=3, max_size=12).map(tuple)
regions = st.one_of(
    st.builds(AllSpots),
    st.builds(SampleOfSpots, count=st.integers(1, 10**6)),
    st.builds(SpotList, ids=names),
    st.builds(Polygons, rings=st.lists(ring, min_size=1, max_size=3).map(tuple)),
)
scale = st.none() | st.floats(0, 30)
requests = st.builds(
    Request,
    region=regions,
    edits=st.lists(edits, max_size=3).map(tuple),
    guidance=st.builds(Guidance, expression=scale, morphology=scale),
    morphology=text,
    expression=st.sampled_from(["own", "shuffled", "null"]),
    steps=st.none() | st.integers(1, 1000),
    seed=st.integers(0, 2**32 - 1),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@FEW
@given(st.lists(edits, max_size=4))
def test_edits_survive_yaml(tmp_path, wanted):
    file = tmp_path / "edits.yaml"
    file.write_text(yaml.safe_dump([edit.model_dump(mode="json") for edit in wanted], allow_unicode=True), "utf-8")
    assert list(read_edit_file(file).edits) == wanted


@FEW
@given(requests)
def test_a_request_survives_yaml_and_json(tmp_path, wanted):
    for name, content in (
        ("r.yaml", yaml.safe_dump(wanted.model_dump(mode="json"))),
        ("r.json", wanted.model_dump_json()),
    ):
        (tmp_path / name).write_text(content, "utf-8")
        assert read_request(tmp_path / name) == wanted


@FEW
@given(st.dictionaries(st.sampled_from(sorted(Request.model_fields)) | text, plain, max_size=4))
def test_any_plain_values_make_a_request_or_are_refused(values):
    try:
        assert isinstance(make_request(values), Request)
    except RequestError as error:
        assert error.faults and all(message for _, message in error.faults)


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    for read, refusal in (
        (read_yaml, BadFile),
        (read_json, BadFile),
        (read_edit_file, RequestError),
        (geometry.polygons_from_geojson, SectionError),
    ):
        try:
            read(file)
        except refusal as error:
            assert str(error)


@FEW
@given(plain)
def test_any_json_is_a_region_or_refused(content):
    for value in (
        content,
        {"type": "Polygon", "coordinates": content},
        {"type": "MultiPolygon", "coordinates": content},
    ):
        try:
            geometry.polygons_from_geojson(value if isinstance(value, dict) else {"features": value})
        except SectionError as error:
            assert str(error)


def _in_ring(y: float, x: float, ring: tuple) -> bool:
    """The even-odd rule, by counting the edges that a ray crosses."""
    inside = False
    for (y0, x0), (y1, x1) in zip(ring, ring[1:] + ring[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            inside = not inside
    return inside


whole = st.integers(-40, 40)
ring_of_whole = st.lists(st.tuples(whole, whole), min_size=3, max_size=9)


@FEW
@given(ring_of_whole, st.lists(st.tuples(whole, whole), min_size=1, max_size=20))
def test_a_lasso_holds_what_the_even_odd_rule_says(ring, points):
    yx = np.array(points) + (0.37, 0.19)  # off the corners and edges, where either answer is right
    ring = tuple((float(y), float(x)) for y, x in ring)
    found = geometry.spots_in_polygons(yx, Polygons(rings=(ring,)))
    expected = [_in_ring(y, x, ring) for y, x in yx.tolist()]
    on_edge = [_near_edge(point, ring) for point in yx]
    assert all(f == e or near for f, e, near in zip(found, expected, on_edge, strict=True))


def _near_edge(point: np.ndarray, ring: tuple) -> bool:
    import shapely

    return shapely.distance(shapely.Point(point), shapely.LineString((*ring, ring[0]))) < 1e-9


@FEW
@given(ring_of_whole.filter(lambda r: len(set(r)) >= 3))
def test_geojson_gives_the_ring_back_with_its_axes_swapped(points):
    ring = tuple((float(y), float(x)) for y, x in points)
    content = {"type": "Polygon", "coordinates": [[[x, y] for y, x in ring]]}
    assert geometry.polygons_from_geojson(content).rings == (ring,)


affines = st.builds(
    lambda angle, scale, mirror, shift: np.array(
        [
            [scale * np.cos(angle), -mirror * scale * np.sin(angle), shift[0]],
            [scale * np.sin(angle), mirror * scale * np.cos(angle), shift[1]],
            [0, 0, 1],
        ]
    ),
    st.floats(0, 2 * np.pi),
    st.floats(0.01, 100),
    st.sampled_from([1, -1]),
    st.tuples(pixel, pixel),
)
points = hnp.arrays(np.float64, (5, 2), elements=st.floats(-1e4, 1e4))


@FEW
@given(affines, affines, points)
def test_affines_compose_and_undo(a, b, yx):
    size = 1 + np.abs(geometry.apply(a, geometry.apply(b, yx))).max()
    np.testing.assert_allclose(
        geometry.apply(geometry.compose(a, b), yx), geometry.apply(a, geometry.apply(b, yx)), atol=1e-9 * size
    )
    back = geometry.apply(np.linalg.inv(a), geometry.apply(a, yx))
    np.testing.assert_allclose(back, yx, atol=1e-6)
    assert geometry.mean_scale(a) == pytest.approx(np.hypot(a[0, 0], a[1, 0]))


@FEW
@given(affines, st.floats(0.1, 10))
def test_the_lattice_is_fitted_wherever_it_lies(affine, mpp):
    arrays = tiny_arrays()
    microns = arrays["array_rc"] * (50 * np.sqrt(3), 50.0)
    affine = affine / geometry.mean_scale(affine)
    affine[2, 2] = 1
    yx = geometry.apply(affine, microns / mpp)
    fitted = geometry.fit_lattice(arrays["array_rc"], yx)
    assert fitted == pytest.approx(mpp, rel=1e-6)


symbols = st.lists(st.sampled_from([*TINY_GENES, "MARCH1", "MARCHF1", "actb", "", "ENSG00000141736.4"]), max_size=12)


@FEW
@given(
    symbols, st.lists(st.sampled_from([*TINY_GENES, "MARCHF1", "Actb", "ENSG00000141736"]), max_size=10, unique=True)
)
def test_gene_matching_counts_every_column_once(columns, wanted):
    from scipy.sparse import csr_matrix

    genes, wanted = Genes(np.array(columns, dtype=np.str_)), tuple(wanted)
    match = match_genes(wanted, genes)
    assert match.shared + len(match.missing) == len(wanted)
    assert [g for g, c in zip(wanted, match.columns, strict=True) if c < 0] == list(match.missing)
    counts = csr_matrix(2.0 ** np.arange(len(columns))[None])
    gathered = gather_counts(counts, match, wanted).toarray()[0]
    for gene, value in zip(wanted, gathered, strict=True):
        direct = sum(2.0**i for i, name in enumerate(columns) if name == gene)
        assert value == direct if gene in columns else value == 0 or gene in match.renamed


factors = st.dictionaries(
    st.sampled_from(["microns_per_pixel", "spot_diameter_fullres", "tissue_hires_scalef", "bin_size_um"]) | text,
    plain | st.floats() | st.integers(),
    max_size=5,
)


@FEW
@given(factors)
def test_any_scalefactors_calibrate_or_are_passed_over(content):
    from napari_stmdit.tissue.spaceranger import coordinate_systems, spot_diameter, thumbnail_factor

    arrays = tiny_arrays()
    found = geometry.calibrate(content, arrays["yx"], arrays["array_rc"])
    stated = content.get("microns_per_pixel")
    usable = isinstance(stated, int | float) and not isinstance(stated, bool) and 0.02 <= stated <= 50
    assert found.source == ("scalefactors" if usable else "lattice") and found.mpp is not None
    assert found.mpp == pytest.approx(float(stated) if usable else 0.7)
    try:
        assert spot_diameter(content, "x") > 0
    except SectionError as error:
        assert "spot_diameter_fullres" in str(error)
    factor = thumbnail_factor(content, "tissue_hires_scalef")
    assert factor is None or 0 < factor <= 1
    assert all(np.isfinite(affine).all() for affine in coordinate_systems("x", content).values())


@FEW
@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=20))
def test_what_is_written_as_yaml_is_read_back(tmp_path, value):
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(value), "utf-8")
    assert read_yaml(file) == value == json.loads(json.dumps(value))
