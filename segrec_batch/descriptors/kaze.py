"""Semantic signature of KAZE (Ouni 2020), see `operators.signature`."""

from segrec_batch.descriptors import sift
from segrec_batch.descriptors.operators import keypoints

fit = sift.fit


class Descriptor(sift.Descriptor):
    """Vector (classes · 64,): one centre per class, background first."""

    extractor = staticmethod(keypoints.kaze)
