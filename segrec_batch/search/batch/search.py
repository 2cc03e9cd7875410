"""Exact nearest neighbours of a block of queries among blocks of candidates.

The *shortlist* of a query holds the candidates with the best float32 scores; these are scored again
exactly. If the worst float32 score on it plus the error bound is below the exact score of the k-th
candidate, no candidate outside the list can be among the k best. If this does not hold (many ties,
many copies), the query is *swept*: each candidate that can be among the best is scored exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segrec_batch.search.batch.scores import (
    LARGEST_BOUND,
    Pairs,
    Vectors,
    empty_pairs,
    error_bounds,
    join,
    pearson,
    product_bound,
    take_best,
    unit_vectors,
)
from segrec_batch.search.similarity import Floats, Ints

SLACK = 32  # candidates beyond k on a shortlist
_PAIR_BYTES = 160  # of a pair on a shortlist: float32 score, exact score and sorting
_SWEPT = 32  # a sweep takes 1/32 of the queries of a step, since each may have a pair per column


@dataclass(frozen=True)
class Block(Vectors):
    """Vectors of images.

    Attributes:
        places: (N,), see `Pairs`.
        contents: (N,), see `Pairs`.
        rows: image_id, uri and coverage of each, N rows.
    """

    places: Ints
    contents: Ints
    rows: pa.Table


@dataclass(frozen=True)
class Candidates:
    """Blocks of candidates with `sizes` rows, each loaded by a function."""

    blocks: Sequence[Callable[[], Block]]
    sizes: Sequence[int]

    @property
    def starts(self) -> Ints:
        """Number of the first row of each block, among all rows."""
        return np.cumsum([0, *self.sizes])[:-1]

    def by_block(self, rows: Ints) -> Iterator[tuple[Block, int, Ints, Ints]]:
        """Yield the blocks that hold `rows`.

        Yields the block, the number of its first row, positions in `rows`, and those in the block.
        """
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        for which in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(which):
                number = numbers[which[0]]
                first = int(self.starts[number])
                yield self.blocks[number](), first, which, rows[which] - first

    def vectors(self, rows: Ints) -> Vectors:
        """Return the vectors of some rows, in their order."""
        parts, order = [], []
        for block, _, which, local in self.by_block(rows):
            parts.append((block.features[local], block.totals[local], block.norms[local]))
            order.append(which)
        original = np.argsort(np.concatenate(order))
        features, totals, norms = (
            np.concatenate(column)[original] for column in zip(*parts, strict=True)
        )
        return Vectors(features, totals, norms)

    def table(self, rows: Ints) -> pa.Table:
        """Return image_id, uri and coverage of some rows, in their order."""
        parts, order = [], []
        for block, _, which, local in self.by_block(rows):
            parts.append(block.rows.take(pa.array(local)))
            order.append(which)
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))


@dataclass(frozen=True)
class Exclusions:
    """Conditions that exclude candidates; the query itself is always excluded.

    Attributes:
        distinct: exclude copies of the query, and all but the best of equal content.
        below: exclude candidates whose Pearson is not below this.
    """

    distinct: bool = True
    below: float = np.inf


@dataclass(frozen=True)
class BlockSizes:
    """Numbers of queries and candidates scored at a time, and of vectors read for pools."""

    queries: int
    block: int
    pool: int


def block_sizes(memory: int, queries: int, width: int, k: int) -> BlockSizes:
    """Return sizes for blocks of `queries` vectors of `width` values, in `memory` bytes.

    Half of it is for scores and unit vectors, a quarter for shortlists, an eighth for pools.
    """
    step = max(1, min(queries, memory // 4 // (_PAIR_BYTES * (k + SLACK))))
    block = max(1, memory // 2 // (4 * (step + 2 * width)))
    return BlockSizes(step, block, max(1, memory // 8 // (4 * max(width, 1))))


class Search:
    """Search for the best candidates on `device` (cpu, cuda); `swept` counts swept queries."""

    def __init__(
        self,
        queries: Block,
        candidates: Candidates,
        exclusions: Exclusions,
        sizes: BlockSizes,
        device: str,
    ) -> None:
        torch.set_float32_matmul_precision("highest")  # the bound holds for float32, not for TF32
        self.queries = queries
        self.candidates = candidates
        self.exclusions = exclusions
        self.sizes = sizes
        self.device = device
        self.swept = 0
        # LARGEST_BOUND covers candidates with a finite bound; the others have an infinite score
        width = queries.features.shape[1]
        self._errors = error_bounds(queries) + product_bound(width) + LARGEST_BOUND

    def find_best(self, queries: Ints, count: int) -> Pairs:
        """Return the `count` best candidates of some queries (indices, ascending), in order."""
        step = self.sizes.queries
        parts = [self._step(queries[i : i + step], count) for i in range(0, len(queries), step)]
        return join([empty_pairs(), *parts])

    def _step(self, queries: Ints, count: int) -> Pairs:
        scores, rows = self._shortlist(queries, count + SLACK)
        is_candidate = rows >= 0
        query = np.broadcast_to(queries[:, None], rows.shape)[is_candidate]
        pairs = take_best(
            self._score_rows(query, rows[is_candidate]), count, self.exclusions.distinct
        )
        floor = _last_scores(pairs, queries, count)
        worst = scores[:, -1]  # -inf if all candidates are on the list
        unproved = (worst > -np.inf) & (worst >= floor - self._errors[queries])
        if not unproved.any():
            return pairs
        proved = pairs.take(~np.isin(pairs.query, queries[unproved]))
        swept = self._sweep_all(queries[unproved], floor[unproved], count)
        return take_best(join([proved, *swept]), count, self.exclusions.distinct)

    def _shortlist(self, queries: Ints, count: int) -> tuple[Floats, Ints]:
        """Return the best float32 scores (Q, count) and their rows; padded with -inf and -1."""
        top = torch.full((len(queries), count), -torch.inf, device=self.device)
        rows = torch.full((len(queries), count), -1, device=self.device)
        for tile in self._tiles(queries):
            values, columns = tile.scores.topk(min(count, tile.scores.shape[1]), dim=1)
            top, order = torch.cat([top, values], 1).topk(count, dim=1)
            rows = torch.cat([rows, columns + (tile.first + tile.offset)], 1).gather(1, order)
        return top.cpu().numpy().astype(np.float64), rows.cpu().numpy()

    def _sweep_all(self, queries: Ints, floor: Floats, count: int) -> Iterator[Pairs]:
        self.swept += len(queries)
        step = max(1, self.sizes.queries // _SWEPT)
        for i in range(0, len(queries), step):
            yield self._sweep(queries[i : i + step], floor[i : i + step], count)

    def _sweep(self, queries: Ints, floor: Floats, count: int) -> Pairs:
        """Return the best of all candidates whose exact score can be `floor` (Q,) or more."""
        pairs = empty_pairs()
        for tile in self._tiles(queries):
            width = count + SLACK
            while True:  # best scores first, then twice as many, so that the floor rises early
                values, columns = tile.scores.topk(min(width, tile.scores.shape[1]), dim=1)
                can_be_best = _reach(values, floor - self._errors[queries])
                if not can_be_best.any():
                    break
                query = np.broadcast_to(queries[:, None], can_be_best.shape)[can_be_best]
                local = columns.cpu().numpy()[can_be_best] + tile.offset
                scored = self._score(query, tile.block, local, tile.first)
                pairs = take_best(join([pairs, scored]), count, self.exclusions.distinct)
                floor = np.maximum(floor, _last_scores(pairs, queries, count))
                tile.scores.scatter_(1, columns, -torch.inf)
                width *= 2
        return pairs

    def _tiles(self, queries: Ints) -> Iterator["_Tile"]:
        """Yield the float32 scores of queries with all candidates, tile by tile."""
        units = unit_vectors(self.queries, queries, self.device)
        step = min(self.sizes.block, max(self.candidates.sizes, default=0))
        memory = torch.empty(len(queries) * step, device=self.device)
        for fetch, first in zip(self.candidates.blocks, self.candidates.starts, strict=True):
            block = fetch()
            for offset in range(0, len(block), step):
                rows = slice(offset, min(offset + step, len(block)))
                scores = memory[: len(queries) * (rows.stop - offset)].view(len(queries), -1)
                torch.mm(units, unit_vectors(block, rows, self.device).T, out=scores)
                unbounded = np.flatnonzero(np.isinf(error_bounds(block, rows)))
                scores[:, torch.from_numpy(unbounded).to(self.device)] = torch.inf
                yield _Tile(block, int(first), offset, scores)

    def _score_rows(self, query: Ints, rows: Ints) -> Pairs:
        parts = [
            self._score(query[which], block, local, first)
            for block, first, which, local in self.candidates.by_block(rows)
        ]
        return join([empty_pairs(), *parts])

    def _score(self, query: Ints, block: Block, local: Ints, first: int) -> Pairs:
        """Return exact scores of queries (P,) and rows (P,) of a block that are not excluded."""
        places, contents = block.places[local], block.contents[local]
        allowed = places != self.queries.places[query]
        if self.exclusions.distinct:
            allowed &= contents != self.queries.contents[query]
        query, local = query[allowed], local[allowed]
        scores = pearson(self.queries, query, block, local)
        pairs = Pairs(query, local + first, scores, places[allowed], contents[allowed])
        return pairs.take(scores < self.exclusions.below)


@dataclass(frozen=True)
class _Tile:
    """Scores (Q, T) of the rows of a block from `offset` on; `first` is its first row."""

    block: Block
    first: int
    offset: int
    scores: torch.Tensor


def _reach(values: torch.Tensor, thresholds: Floats) -> NDArray[np.bool_]:
    """Return which scores (Q, N) reach the threshold of their query (Q,)."""
    scores = values.cpu().numpy()
    is_left = scores > -np.inf  # -inf: already scored exactly
    return np.asarray(is_left & (scores >= thresholds[:, None]))


def _last_scores(pairs: Pairs, queries: Ints, count: int) -> Floats:
    """Return the score of the last of `count` pairs of each query, -inf if it has fewer."""
    start, end = (np.searchsorted(pairs.query, queries, side) for side in ("left", "right"))
    last = np.full(len(queries), -np.inf)
    is_full = end - start == count
    last[is_full] = pairs.pearson[end[is_full] - 1]
    return last
