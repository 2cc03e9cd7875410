"""Semantic signature of HOG on a grid (Ouni 2020), see `operators.signature`."""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, parse_integers, sift
from segrec_batch.descriptors.operators import keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Parse `cell` (pixels per side), `block` (cells per side) and `bins` (orientations)."""
    return Parameters(parse_integers(arguments, cell=8, block=2, bins=9))


class Descriptor(sift.Descriptor):
    """Vector (classes · block² · bins,): one centre per class, background first."""

    extractor = keypoints.Hog
