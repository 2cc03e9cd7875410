"""Semantic signature of ORB (Ouni 2020), see `operators.signature`; values are shares of bits."""

from segrec_batch.descriptors import sift
from segrec_batch.descriptors.operators import keypoints

fit = sift.fit


class Descriptor(sift.Descriptor):
    """Vector (classes · 256,): one centre per class, background first."""

    extractor = staticmethod(keypoints.orb)
