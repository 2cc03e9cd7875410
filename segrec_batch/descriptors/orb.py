"""The semantic signature of ORB (Ouni 2020), see `operators.signature`: shares of bits."""

from segrec_batch.descriptors import sift
from segrec_batch.descriptors.operators import keypoints

fit = sift.fit


class Descriptor(sift.Descriptor):
    """(classes · 256,): a centre for each class, background first."""

    extractor = staticmethod(keypoints.orb)
