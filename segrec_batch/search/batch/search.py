"""Exact nearest neighbours of a block of queries among blocks of candidates.

A *shortlist* holds the candidates with the best float32 scores of each query; they are scored again
exactly. If the worst float32 score on it, plus the error bound, is below the exact score of the
last one wanted, nobody who is not on it can matter. Queries for which that does not hold (many
ties, many copies) are *swept*: every candidate that could matter is scored exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from segrec_batch.search.batch.pairs import Pairs, best, join, no_pairs
from segrec_batch.search.batch.scores import (
    LARGEST_BOUND,
    Floats,
    Ints,
    Vectors,
    error_bounds,
    pearson,
    product_bound,
    unit_vectors,
)

SLACK = 32  # candidates more than wanted on a shortlist
_PAIR_BYTES = 160  # of a pair on a shortlist: in float32, exact, and while it is sorted
_SWEPT = 32  # a sweep takes this part of the queries of a step: its pairs are as wide as a tile


@dataclass(frozen=True)
class Block(Vectors):
    """Vectors that belong to images. places, contents: (N,), see `Pairs`. rows: a table of N rows
    with what is told of a candidate: image_id, uri, coverage.
    """

    places: Ints
    contents: Ints
    rows: pa.Table


@dataclass(frozen=True)
class Candidates:
    """Blocks of candidates: `sizes` rows each, fetched when they are called."""

    blocks: Sequence[Callable[[], Block]]
    sizes: Sequence[int]

    @property
    def starts(self) -> Ints:
        """The number of the first row of each block, among all rows."""
        return np.cumsum([0, *self.sizes])[:-1]

    def by_block(self, rows: Ints) -> Iterator[tuple[Block, int, Ints, Ints]]:
        """The blocks that hold some rows; for each, its first row, which of `rows` it holds, and
        where in it they are.
        """
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(owners, kind="stable")
        for which in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
            if len(which):
                owner = owners[which[0]]
                first = int(self.starts[owner])
                yield self.blocks[owner](), first, which, rows[which] - first

    def vectors(self, rows: Ints) -> Vectors:
        """The vectors of some rows, in their order."""
        parts, order = [], []
        for block, _, which, local in self.by_block(rows):
            parts.append((block.features[local], block.totals[local], block.norms[local]))
            order.append(which)
        back = np.argsort(np.concatenate(order))
        features, totals, norms = (
            np.concatenate(column)[back] for column in zip(*parts, strict=True)
        )
        return Vectors(features, totals, norms)

    def told(self, rows: Ints) -> pa.Table:
        """What is told of some rows, in their order."""
        parts, order = [], []
        for block, _, which, local in self.by_block(rows):
            parts.append(block.rows.take(pa.array(local)))
            order.append(which)
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))


@dataclass(frozen=True)
class Rule:
    """Who is left out: copies of the query and second copies if `distinct`; candidates whose
    Pearson is not below `below`. The query itself always.
    """

    distinct: bool = True
    below: float = np.inf


@dataclass(frozen=True)
class Steps:
    """How much is done at once: float32 scores of `queries` × `block` candidates, choices among
    `pool` vectors.
    """

    queries: int
    block: int
    pool: int


def steps(memory: int, queries: int, width: int, wanted: int) -> Steps:
    """Steps for blocks of `queries` vectors of `width` values, in `memory` bytes: half of it for
    scores and unit vectors, a quarter for shortlists, an eighth for pools.
    """
    at_once = max(1, min(queries, memory // 4 // (_PAIR_BYTES * (wanted + SLACK))))
    block = max(1, memory // 2 // (4 * (at_once + 2 * width)))
    return Steps(at_once, block, max(1, memory // 8 // (4 * max(width, 1))))


class Search:
    """The best candidates of queries, on `device` (cpu, cuda). `swept` counts sweeps of a query."""

    def __init__(
        self, queries: Block, candidates: Candidates, rule: Rule, at_once: Steps, device: str
    ) -> None:
        torch.set_float32_matmul_precision("highest")  # the bound holds for float32, not for TF32
        self.queries = queries
        self.candidates = candidates
        self.rule = rule
        self.at_once = at_once
        self.device = device
        self.swept = 0
        # a candidate whose own bound is infinite has an infinite score, and so no part in this
        width = queries.features.shape[1]
        self._errors = error_bounds(queries) + product_bound(width) + LARGEST_BOUND

    def best(self, asked: Ints, count: int) -> Pairs:
        """The `count` best candidates of the queries `asked` (indices, ascending), in order."""
        step = self.at_once.queries
        parts = [self._step(asked[i : i + step], count) for i in range(0, len(asked), step)]
        return join([no_pairs(), *parts])

    def _step(self, asked: Ints, count: int) -> Pairs:
        scores, rows = self._shortlist(asked, count + SLACK)
        listed = rows >= 0
        query = np.broadcast_to(asked[:, None], rows.shape)[listed]
        found = best(self._scored_anywhere(query, rows[listed]), count, self.rule.distinct)
        floor = _last(found, asked, count)
        worst = scores[:, -1]  # -inf if everybody is on the list
        doubt = (worst > -np.inf) & (worst >= floor - self._errors[asked])
        if not doubt.any():
            return found
        proved = found.take(~np.isin(found.query, asked[doubt]))
        swept = self._sweep_all(asked[doubt], floor[doubt], count)
        return best(join([proved, *swept]), count, self.rule.distinct)

    def _shortlist(self, asked: Ints, count: int) -> tuple[Floats, Ints]:
        """The best float32 scores (Q, count), descending, and their rows; -inf and -1 for none."""
        top = torch.full((len(asked), count), -torch.inf, device=self.device)
        rows = torch.full((len(asked), count), -1, device=self.device)
        for tile in self._tiles(asked):
            values, columns = tile.scores.topk(min(count, tile.scores.shape[1]), dim=1)
            top, order = torch.cat([top, values], 1).topk(count, dim=1)
            rows = torch.cat([rows, columns + (tile.first + tile.offset)], 1).gather(1, order)
        return top.cpu().numpy().astype(np.float64), rows.cpu().numpy()

    def _sweep_all(self, asked: Ints, floor: Floats, count: int) -> Iterator[Pairs]:
        self.swept += len(asked)
        few = max(1, self.at_once.queries // _SWEPT)
        for i in range(0, len(asked), few):
            yield self._sweep(asked[i : i + few], floor[i : i + few], count)

    def _sweep(self, asked: Ints, floor: Floats, count: int) -> Pairs:
        """The best of all candidates whose exact score can be `floor` (Q,) or more."""
        found = no_pairs()
        for tile in self._tiles(asked):
            width = count + SLACK
            while True:  # best scores first, then twice as many: so the floor rises early
                values, columns = tile.scores.topk(min(width, tile.scores.shape[1]), dim=1)
                hit = _reach(values, floor - self._errors[asked])
                if not hit.any():
                    break
                query = np.broadcast_to(asked[:, None], hit.shape)[hit]
                local = columns.cpu().numpy()[hit] + tile.offset
                pairs = self._scored(query, tile.block, local, tile.first)
                found = best(join([found, pairs]), count, self.rule.distinct)
                floor = np.maximum(floor, _last(found, asked, count))
                tile.scores.scatter_(1, columns, -torch.inf)
                width *= 2
        return found

    def _tiles(self, asked: Ints) -> Iterator["_Tile"]:
        """The float32 scores of queries with all candidates, one tile after the other."""
        units = unit_vectors(self.queries, asked, self.device)
        step = min(self.at_once.block, max(self.candidates.sizes, default=0))
        memory = torch.empty(len(asked) * step, device=self.device)
        for fetch, first in zip(self.candidates.blocks, self.candidates.starts, strict=True):
            block = fetch()
            for offset in range(0, len(block), step):
                rows = slice(offset, min(offset + step, len(block)))
                scores = memory[: len(asked) * (rows.stop - offset)].view(len(asked), -1)
                torch.mm(units, unit_vectors(block, rows, self.device).T, out=scores)
                poor = np.flatnonzero(np.isinf(error_bounds(block, rows)))
                scores[:, torch.from_numpy(poor).to(self.device)] = torch.inf
                yield _Tile(block, int(first), offset, scores)

    def _scored_anywhere(self, query: Ints, rows: Ints) -> Pairs:
        parts = [
            self._scored(query[which], block, local, first)
            for block, first, which, local in self.candidates.by_block(rows)
        ]
        return join([no_pairs(), *parts])

    def _scored(self, query: Ints, block: Block, local: Ints, first: int) -> Pairs:
        """Exact scores of queries (P,) with rows (P,) of a block, if the rule allows them."""
        places, contents = block.places[local], block.contents[local]
        allowed = places != self.queries.places[query]
        if self.rule.distinct:
            allowed &= contents != self.queries.contents[query]
        query, local = query[allowed], local[allowed]
        scores = pearson(self.queries, query, block, local)
        pairs = Pairs(query, local + first, scores, places[allowed], contents[allowed])
        return pairs.take(scores < self.rule.below)


@dataclass(frozen=True)
class _Tile:
    """scores: (Q, T) of the rows of `block` from `offset` on. first: the block's first row."""

    block: Block
    first: int
    offset: int
    scores: torch.Tensor


def _reach(values: torch.Tensor, bar: Floats) -> NDArray[np.bool_]:
    scores = values.cpu().numpy()
    reach: NDArray[np.bool_] = (scores >= bar[:, None]) & (scores > -np.inf)  # -inf: done already
    return reach


def _last(found: Pairs, asked: Ints, count: int) -> Floats:
    """The score of the last of `count` pairs of each query, -inf if it has fewer."""
    start, end = (np.searchsorted(found.query, asked, side) for side in ("left", "right"))
    last = np.full(len(asked), -np.inf)
    full = end - start == count
    last[full] = found.pearson[end[full] - 1]
    return last
