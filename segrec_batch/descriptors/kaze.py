"""The semantic signature of KAZE (Ouni 2020), see `operators.signature`."""

from segrec_batch.descriptors import sift
from segrec_batch.descriptors.operators import keypoints

fit = sift.fit


class Descriptor(sift.Descriptor):
    """(classes · 64,): a centre for each class, background first."""

    extractor = staticmethod(keypoints.kaze)
