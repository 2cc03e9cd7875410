"""Tests of the SQL functions against NumPy in float64."""

import math
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import segrec_batch
from segrec_batch.index import column_values
from segrec_batch.index.schema import descriptors_schema
from segrec_batch.search.sql.views import register_pearson_udf, schema_file, sign_functions

CLASSES = ("background", "car", "tree")
WORDS = 2
values = st.floats(-100, 100, width=32, allow_subnormal=False)


@dataclass(frozen=True)
class Region:
    coverage: float
    feature: np.ndarray
    mask: int


@dataclass(frozen=True)
class Image:
    image_id: str
    content: str
    feature: np.ndarray
    regions: dict[str, Region]

    @property
    def coverages(self) -> list[float]:
        return [self.regions[c].coverage if c in self.regions else 0.0 for c in CLASSES]


def images() -> dict[str, Image]:
    """700 images: more than a pool, with 300 equal vectors, copies, constant and flat vectors."""
    rng = np.random.default_rng(0)
    features = rng.random((700, 4, 16)).astype(np.float32)
    features[100:400] = features[100]
    features[500:520] = 0.1
    features[520:540] = 1 + 0.02 * features[520:540]  # of these float32 knows fewer digits
    made = {}
    for i in rng.permutation(700).tolist():
        shares = rng.dirichlet([1, 1, 1]).astype(np.float32)
        shares[rng.random(3) < 0.3] = 0
        regions = {
            name: Region(float(share), features[i, 1 + j], int(rng.integers(2**62)))
            for j, (name, share) in enumerate(zip(CLASSES, shares, strict=True))
            if share > 0
        }
        content = f"c{i // 3 if i < 150 else i}"  # three copies of each of the first 50
        made[f"i{i:03d}"] = Image(f"i{i:03d}", content, features[i, 0], regions)
    for i in range(150):
        first = made[f"i{i // 3 * 3:03d}"]
        made[f"i{i:03d}"] = replace(first, image_id=f"i{i:03d}")
    return made


IMAGES = images()


def words(mask: int) -> list[int]:
    return [mask] + [0] * (WORDS - 1)


@pytest.fixture(scope="module")
def macros() -> duckdb.DuckDBPyConnection:
    """The SQL of the package over IMAGES."""
    rows = list(IMAGES.values())
    regions = [(i, name, r) for i in rows for name, r in i.regions.items()]

    def inverse(result: list[np.ndarray]) -> list[float | None]:
        return [
            None if math.isnan(n) else n
            for n in column_values.compute_inverse_norms(np.stack(result))
        ]

    columns = {
        "image_id": [i.image_id for i in rows],
        "uri": [f"/{i.image_id}.jpg" for i in rows],
        "content_hash": [i.content for i in rows],
        **{f"coverage_{c}": [i.coverages[j] for i in rows] for j, c in enumerate(CLASSES)},
        "feature": [i.feature for i in rows],
        "inv_norm": inverse([i.feature for i in rows]),
        "sign_bits": [[0] for _ in rows],
    }
    of_regions = {
        "image_id": [i.image_id for i, _, _ in regions],
        "uri": [f"/{i.image_id}.jpg" for i, _, _ in regions],
        "class": [name for _, name, _ in regions],
        "coverage": [r.coverage for *_, r in regions],
        "content_hash": [i.content for i, _, _ in regions],
        "feature": [r.feature for *_, r in regions],
        "inv_norm": inverse([r.feature for *_, r in regions]),
        "mask_bits": [words(r.mask) for *_, r in regions],
    }
    connection = duckdb.connect()
    connection.from_arrow(descriptors_schema().empty_table()).create("descriptors")
    for name, table in (("images", pa.table(columns)), ("regions", pa.table(of_regions))):
        connection.from_arrow(table).create(name)
        floats = [c for c in table.column_names if c.startswith(("coverage", "inv_norm"))]
        for column in floats:
            connection.execute(f"ALTER TABLE {name} ALTER {column} TYPE FLOAT")
    for name in ("functions.sql", "views.sql", "recommend.sql"):
        connection.execute(schema_file(name))
    register_pearson_udf(connection)
    return connection


def reference(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson (Abdullah 2026, eq. 6), literally."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    da, db = a - a.mean(), b - b.mean()
    return float((da * db).sum() / (math.sqrt((da**2).sum()) * math.sqrt((db**2).sum())))


def pearson(connection: duckdb.DuckDBPyConnection, a: object, b: object) -> float | None:
    ((result,),) = connection.execute("SELECT pearson(?::FLOAT[], ?::FLOAT[])", [a, b]).fetchall()
    return result


@settings(deadline=None, max_examples=100)
@given(arrays(np.float32, (2, 12), elements=values))
def test_pearson_equals_formula(macros: duckdb.DuckDBPyConnection, vectors: np.ndarray) -> None:
    actual = pearson(macros, *vectors.tolist())
    expected = reference(*vectors)
    udf = "SELECT pearson_udf(?::FLOAT[], ?::FLOAT[])"
    assert scalar(macros, udf, *vectors.tolist()) == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
    )
    spread = min(np.ptp(v) / max(np.abs(v).max(), 1e-30) for v in vectors)
    if expected is None:
        assert actual is None
    elif spread > 1e-3:  # below that, sums of squares in float64 lose the digits that count
        assert actual == pytest.approx(expected, abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, 12, elements=values, unique=True), st.floats(0.5, 4), st.floats(-9, 9))
def test_pearson_ignores_scale_and_shift(
    macros: duckdb.DuckDBPyConnection, vector: np.ndarray, scale: float, shift: float
) -> None:
    result = pearson(macros, vector.tolist(), (vector * scale + shift).tolist())
    if np.ptp(vector) > 1:
        assert result == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.1] * 3, [1, 2, 3]),
        ([0.0] * 3, [1, 2, 3]),
        ([math.nan, 1, 2], [1, 2, 3]),
        (None, [1, 2, 3]),
        ([1, 2, 3], [5, 5, 5]),
        ([], []),
    ],
)
def test_pearson_undefined_is_null(macros: duckdb.DuckDBPyConnection, a: object, b: object) -> None:
    assert pearson(macros, a, b) is None
    assert scalar(macros, "SELECT pearson_udf(?::FLOAT[], ?::FLOAT[])", a, b) is None


def test_pearson_of_two_lengths_is_error(macros: duckdb.DuckDBPyConnection) -> None:
    for function in ("pearson", "pearson_udf"):
        with pytest.raises(duckdb.Error, match="dimensions"):
            scalar(macros, f"SELECT {function}([1, 2, 3]::FLOAT[], [1, 2]::FLOAT[])")


def scalar(connection: duckdb.DuckDBPyConnection, sql: str, *parameters: object) -> Any:
    ((result,),) = connection.execute(sql, list(parameters)).fetchall()
    return result


bitmaps = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3)


@settings(deadline=None, max_examples=50)
@given(bitmaps, bitmaps)
def test_mask_iou_counts_bits(
    macros: duckdb.DuckDBPyConnection, a: list[int], b: list[int]
) -> None:
    either = sum(((x | y) & (2**64 - 1)).bit_count() for x, y in zip(a, b, strict=True))
    both = sum(((x & y) & (2**64 - 1)).bit_count() for x, y in zip(a, b, strict=True))
    result = scalar(macros, "SELECT mask_iou(?::BIGINT[], ?::BIGINT[])", a, b)
    assert result == (None if either == 0 else pytest.approx(both / either))


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, (2, 5), elements=st.floats(0, 1, width=32)))
def test_semantic_distance_is_l1(macros: duckdb.DuckDBPyConnection, shares: np.ndarray) -> None:
    a, b = shares.astype(np.float64)
    result = scalar(macros, "SELECT semantic_distance(?::FLOAT[], ?::FLOAT[])", *shares.tolist())
    assert result == pytest.approx(np.abs(a - b).sum())


@pytest.mark.parametrize("function", ["mask_iou", "semantic_distance"])
def test_macros_refuse_two_lengths(macros: duckdb.DuckDBPyConnection, function: str) -> None:
    with pytest.raises(duckdb.Error, match=r"two sizes|different classes"):
        macros.sql(f"SELECT {function}([1, 2], [1])").fetchall()
    assert scalar(macros, f"SELECT {function}([1, 2], NULL)") is None


@dataclass(frozen=True)
class Options:
    k: int = 10
    cls: str | None = None
    window: tuple[float, float] = (0.0, 1.0)
    epsilon: float | None = None
    penalise: bool = False
    rerank: str | None = None
    depth: int = 100
    scope: str = "region"
    exclude_self: bool = True
    distinct_content: bool = True
    expand: int | None = None

    def arguments(self) -> dict[str, Any]:
        return {
            **({} if self.expand is None else {"expand": self.expand}),
            "k": self.k,
            "class": self.cls,
            "min_coverage": self.window[0],
            "max_coverage": self.window[1],
            "epsilon": self.epsilon,
            "penalise": self.penalise,
            "rerank": self.rerank,
            "depth": self.depth,
            "scope": self.scope,
            "exclude_self": self.exclude_self,
            "distinct_content": self.distinct_content,
        }


@dataclass(frozen=True)
class Answer:
    image_id: str
    pearson: float | None
    beyond: bool
    iou: float | None


def brute_force(query: Image, by_vector: bool, options: Options) -> list[Answer]:
    """Return the answers of `recommend`, computed one image after the other."""
    regional = options.cls is not None and options.scope == "region"
    vector = query.regions[options.cls].feature if regional else query.feature
    if options.expand is not None:
        vector = expanded(vector, query, by_vector, options)
    leave_out = options.exclude_self and not by_vector
    result = []
    for image in IMAGES.values():
        region = image.regions.get(options.cls or "")
        low, high = options.window
        if options.cls and (region is None or not low <= region.coverage <= high):
            continue
        same = image.content == query.content if options.distinct_content else image is query
        if leave_out and same:
            continue
        distance = sum(abs(a - b) for a, b in zip(image.coverages, query.coverages, strict=True))
        beyond = options.epsilon is not None and distance > options.epsilon
        if beyond and not options.penalise:
            continue
        score = reference(vector, region.feature if regional else image.feature)
        score = None if score is None else round(score, 12)
        result.append(Answer(image.image_id, score, beyond, iou(query, image, options.cls)))
    result.sort(key=lambda a: (a.pearson is None, a.beyond, -(a.pearson or 0), a.image_id))
    if options.distinct_content:
        best: dict[str, Answer] = {}
        for answer in result:
            best.setdefault(IMAGES[answer.image_id].content, answer)
        result = list(best.values())
    if options.rerank:
        top, rest = result[: options.depth], result[options.depth :]
        top.sort(key=lambda a: (a.beyond, a.iou is None, -(a.iou or 0)))
        result = [*top, *rest]
    return result[: options.k]


def expanded(vector: np.ndarray, query: Image, by_vector: bool, options: Options) -> np.ndarray:
    """The weighted mean of a query vector and its first results, one after the other."""
    plain = replace(options, k=options.expand or 0, expand=None, penalise=False, rerank=None,
                    exclude_self=True)  # fmt: skip
    if np.ptp(vector) == 0:
        return vector
    total, weight = direction(vector), 1.0
    for answer in brute_force(query, by_vector, plain):
        if answer.pearson is None or answer.pearson <= 0:
            continue
        image = IMAGES[answer.image_id]
        regional = options.cls is not None and options.scope == "region"
        own = image.regions[options.cls or ""].feature if regional else image.feature
        total = total + answer.pearson**3 * direction(own)
        weight += answer.pearson**3
    return (total / weight).astype(np.float32) if weight > 1 else vector


def direction(vector: np.ndarray) -> np.ndarray:
    deviations = vector.astype(np.float64) - vector.mean(dtype=np.float64)
    return deviations / math.sqrt((deviations**2).sum())


def iou(a: Image, b: Image, cls: str | None) -> float | None:
    names = [cls] if cls else [c for c in CLASSES if c != "background"]
    pairs = [
        [image.regions[name].mask if name in image.regions else 0 for image in (a, b)]
        for name in names
    ]
    either = sum((x | y).bit_count() for x, y in pairs)
    return sum((x & y).bit_count() for x, y in pairs) / either if either else None


def recommend(
    connection: duckdb.DuckDBPyConnection, query: Image, by_vector: bool, options: Options
) -> list[tuple[Any, ...]]:
    arguments = options.arguments()
    kind, subject = "VARCHAR", query.image_id
    if by_vector:
        regional = options.cls is not None and options.scope == "region"
        feature = query.regions[options.cls].feature if regional else query.feature
        kind, subject = "FLOAT[]", feature.tolist()
        names = [options.cls] if options.cls else [c for c in CLASSES if c != "background"]
        arguments["coverages"] = query.coverages
        arguments["masks"] = {
            name: words(query.regions[name].mask) for name in names if name in query.regions
        }
    named = ", ".join(f"{name} := ${name}" for name in arguments if name != "masks")
    if by_vector:
        named += ", masks := $masks::MAP(VARCHAR, BIGINT[])"
    sql = (
        f"SELECT image_id, pearson, mask_iou FROM recommend($query::{kind}, {named}) ORDER BY rank"
    )
    return connection.execute(sql, {"query": subject, **arguments}).fetchall()


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "k": st.one_of(st.integers(1, 20), st.integers(1, 800)),
    "cls": st.sampled_from(["car", "tree", None]),
    "epsilon": st.one_of(st.none(), st.floats(0, 2)),
    "penalise": st.booleans(),
    "rerank": st.sampled_from([None, "mask_iou"]),
    "depth": st.integers(1, 120),
    "scope": st.sampled_from(["region", "image"]),
    "exclude_self": st.booleans(),
    "distinct_content": st.booleans(),
}
QUERIES: dict[str, st.SearchStrategy[Any]] = {
    "query": st.sampled_from(sorted(IMAGES)),
    "by_vector": st.booleans(),
    "low": st.floats(0, 0.6),
    "width": st.floats(0, 1),
}


@settings(deadline=None, max_examples=100)
@given(**QUERIES, options=st.builds(Options, **OPTIONS))
def test_recommend_equals_brute_force(
    macros: duckdb.DuckDBPyConnection,
    query: str,
    by_vector: bool,
    low: float,
    width: float,
    options: Options,
) -> None:
    check_recommend(macros, query, by_vector, low, width, options)


@settings(deadline=None, max_examples=30)
@given(**QUERIES, options=st.builds(Options, expand=st.integers(1, 30), **OPTIONS))
def test_expanded_recommend_equals_brute_force(
    macros: duckdb.DuckDBPyConnection,
    query: str,
    by_vector: bool,
    low: float,
    width: float,
    options: Options,
) -> None:
    check_recommend(macros, query, by_vector, low, width, options)


def check_recommend(
    macros: duckdb.DuckDBPyConnection,
    query: str,
    by_vector: bool,
    low: float,
    width: float,
    options: Options,
) -> None:
    image = IMAGES[query]
    options = replace(options, window=(low, min(1.0, low + width)))
    if options.cls and options.scope == "region" and options.cls not in image.regions:
        assert by_vector or recommend(macros, image, False, options) == []
        return
    actual = recommend(macros, image, by_vector, options)
    expected = brute_force(image, by_vector, options)
    assert [row[0] for row in actual] == [answer.image_id for answer in expected]
    for (_, score, overlap), answer in zip(actual, expected, strict=True):
        assert score == (
            None if answer.pearson is None else pytest.approx(answer.pearson, abs=1e-9)
        )
        wanted = answer.iou if options.rerank else None
        assert overlap == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'i600', rerank := 'x'", "rerank is"),
        ("'i600', scope := 'x'", "scope is"),
        ("[1, 2]::FLOAT[], rerank := 'mask_iou'", "masks"),
        ("[1, 2]::FLOAT[], epsilon := 0.5", "coverages"),
        ("'i600', expand := 0", "expand is a number of results, 1 or more"),
        ("'i600', expand := -3", "expand is a number of results, 1 or more"),
        ("'i600', expand := 3, method := 'euclidean'", "expand weighs results by similarity"),
        ("'i600', expand := 3, method := 'hog-cosine'", "no vectors of hog in this index"),
    ],
)
def test_recommend_errors(macros: duckdb.DuckDBPyConnection, arguments: str, message: str) -> None:
    with pytest.raises(duckdb.Error, match=message):
        macros.sql(f"FROM recommend({arguments})").fetchall()


def test_recommend_unknown_image_has_no_rows(macros: duckdb.DuckDBPyConnection) -> None:
    assert macros.sql("FROM recommend('nobody', class := 'car')").fetchall() == []
    assert macros.sql("FROM recommend('nobody', class := 'car', expand := 3)").fetchall() == []


def test_expand_null_is_no_expansion(macros: duckdb.DuckDBPyConnection) -> None:
    plain, null = (
        macros.sql(f"FROM recommend('i600'{more})").fetchall() for more in ("", ", expand := NULL")
    )
    assert plain == null


def test_inv_norm_gives_pearson_by_dot_product(index: str) -> None:
    connection = segrec_batch.connect(index)
    rows = connection.sql(
        """WITH q AS (
               SELECT feature AS f, inv_norm AS n, list_avg(feature) AS m FROM images LIMIT 1)
           SELECT pearson(i.feature, q.f),
                  list_inner_product(i.feature::DOUBLE[],
                                     [(x - q.m) * q.n FOR x IN q.f]::DOUBLE[]) * i.inv_norm
           FROM images AS i, q"""
    ).fetchall()
    assert len(rows) == 24
    for exact, fast in rows:
        assert fast == pytest.approx(exact, abs=1e-5)


def test_recommend_on_real_index(index: str) -> None:
    connection = segrec_batch.connect(index)
    ((image_id, coverage),) = connection.sql(
        "SELECT arg_max(image_id, coverage), max(coverage) FROM regions WHERE class = 'tree'"
    ).fetchall()
    rows = connection.execute(
        "FROM recommend(?, k := 3, class := 'tree', min_coverage := 0.05)", [image_id]
    ).fetchall()
    assert coverage > 0.05
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row[1] != image_id and row[3] >= 0.05 for row in rows)
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), reverse=True)


@pytest.mark.parametrize("words", [1, 2, 8, 11])
def test_sign_distance_counts_bits_for_any_length(words: int) -> None:
    rng = np.random.default_rng(words)
    a, b = (rng.integers(-(2**63), 2**63, (20, words)) for _ in range(2))
    expected = np.unpackbits((a ^ b).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)
    sql = "SELECT sign_distance(sign_words(?::BIGINT[]), sign_words(?::BIGINT[]))"
    for functions in (schema_file("functions.sql"), sign_functions(words)):
        with duckdb.connect() as connection:
            connection.execute(functions)
            pairs = zip(a.tolist(), b.tolist(), strict=True)
            distances = [connection.execute(sql, list(pair)).fetchone()[0] for pair in pairs]
        assert distances == expected.tolist()
