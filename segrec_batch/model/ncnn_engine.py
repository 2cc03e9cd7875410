"""The segmenter in ncnn, on CPUs.

Results do not depend on the batch or the number of threads. Each thread computes whole images of
a batch, so no thread idles in small maps; all threads of a process share the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segrec_batch.images.decode import Shape
from segrec_batch.model import class_maps
from segrec_batch.model.backbones import DEFAULT_BACKBONE, BackboneSpec
from segrec_batch.model.bundle import Model
from segrec_batch.model.ncnn_network import SCORES, Floats, Head, NcnnNetwork
from segrec_batch.model.segmentation import Segmentation
from segrec_batch.model.spec import COMMON_GRID, Scaling

T = TypeVar("T")


class Threads:
    """Threads for images: `each` threads compute one image, `images` images at a time.

    Simultaneous calls share the threads, so no thread idles at the end of a batch.
    """

    def __init__(self, each: int = 1, images: int = 1) -> None:
        self.each = each
        self._pool = ThreadPoolExecutor(images, "ncnn")

    def map(self, work: Callable[..., T], *batch: Sequence[Any]) -> list[T]:
        """Return the results of `work` for the items of some sequences."""
        return list(self._pool.map(work, *batch))


class NcnnFeatureMaps:
    """Scaling and backbone: uint8 (B, H, W, 3) of one shape → {layer: (B, C, h, w)}."""

    def __init__(
        self,
        state: Mapping[str, Floats],
        layers: Sequence[str],
        scaling: Scaling,
        threads: Threads,
        backbone: BackboneSpec = DEFAULT_BACKBONE,
    ) -> None:
        self._network = NcnnNetwork(state, layers, threads=threads.each, backbone=backbone)
        self._scaling = scaling
        self._threads = threads

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """Return the maps of images."""
        batch = self._threads.map(self._maps, list(pixels))
        return {name: np.stack([maps[name] for maps in batch]) for name in batch[0]}

    def _maps(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        return self._network(class_maps.normalise(pixels, self._scaling))


@dataclass(frozen=True)
class _FinishedWork:
    """A `PendingSegmentation` that is complete."""

    segmentation: Segmentation

    def result(self) -> Segmentation:
        """Return the segmentation."""
        return self.segmentation


class NcnnSegmenter:
    """A model in ncnn; see `segmentation.Segmenter`. few: see `NcnnNetwork`."""

    device = "cpu"

    def __init__(self, model: Model, threads: Threads, few: bool = False) -> None:
        self.model = model
        head = Head(model.svm_weights, model.svm_bias)
        backbone = model.spec.backbone_spec
        self._feature_layer = backbone.feature_layer
        self._network = NcnnNetwork(
            model.backbone, [self._feature_layer], head, threads.each, few, backbone
        )
        self._threads = threads
        components = np.array(model.spec.components)
        self._members = [np.flatnonzero(components == k) for k in range(components.max() + 1)]

    def __call__(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment images, see `segmentation.Segmenter`."""
        images = self._threads.map(self._segment, list(pixels), masks or [None] * len(pixels))
        columns: dict[str, Any] = {
            key: np.stack([image[key] for image in images]) for key in images[0] if key != "mask"
        }
        return Segmentation(**columns, masks=[image["mask"] for image in images] if masks else [])

    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> _FinishedWork:
        """Segment images; the work is complete on return, see `segmentation.Segmenter`."""
        return _FinishedWork(self(pixels, masks))

    def score(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the feature map (C, h, w) and class scores (K, h', w') of a uint8 image.

        The score of a class is that of its best component, on the grid of the finest tap.
        """
        maps = self._network(class_maps.normalise(pixels, self.model.spec.scaling))
        best = [maps[SCORES][members].max(axis=0) for members in self._members]
        return maps[self._feature_layer], np.stack(best)

    def _segment(self, pixels: NDArray[np.uint8], size: Shape | None) -> dict[str, Any]:
        feature_map, scores = self.score(pixels)
        labels = class_maps.class_map(scores, feature_map.shape[1:])
        counts, means = class_maps.class_means(feature_map, labels, len(scores))
        feature = feature_map.mean(axis=(1, 2))
        centre, rotation = self.model.sign_centre, self.model.sign_rotation
        result = {
            "labels": labels,
            "common": class_maps.class_map(scores, (COMMON_GRID, COMMON_GRID)),
            "counts": counts,
            "feature": feature,
            "region_features": means,
            "sign_bits": class_maps.sign_bits(feature, centre, rotation),
        }
        return result if size is None else {**result, "mask": class_maps.class_map(scores, size)}
