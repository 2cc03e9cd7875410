"""The semantic signature of HOG on a grid (Ouni 2020), see `operators.signature`."""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, sift, whole_numbers
from segrec_batch.descriptors.operators import keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """`cell`: pixels a side; `block`: cells a side; `bins`: orientations. Raises InputError."""
    return Parameters(whole_numbers(arguments, cell=8, block=2, bins=9))


class Descriptor(sift.Descriptor):
    """(classes · block² · bins,): a centre for each class, background first."""

    extractor = keypoints.Hog
