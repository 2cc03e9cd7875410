"""(c) and (d): the usual loops with PyTorch and Ray Data, which write the same rows.

Both run torchvision's VGG-16 unchanged in float32, and write columns of the index for each image:
the coverage of each class, the feature of the image and of each class, the class map as a PNG.
The SVM is the head of segrec, a 1×1 convolution, not the slower SVM on upsampled hypercolumns.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models import vgg16
from torchvision.transforms import v2

from benchmarks.throughput.case import CORES, Case
from segrec_batch.images.decode import Shape, mask_shape
from segrec_batch.model.bundle import load_model
from segrec_batch.model.device import resolve_device
from segrec_batch.model.head import LinearHead, resize
from segrec_batch.model.spec import ModelSpec
from segrec_batch.model.torch_engine import as_tensors

Columns = dict[str, Any]


class PlainModel:
    """torchvision's VGG-16 and the SVM head in float32; returns NumPy columns of a batch."""

    def __init__(self, model: str, device: str, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        bundle = load_model(model)
        self.device = resolve_device(device)
        self.classes = bundle.spec.all_classes
        features = vgg16(weights=None).features
        features.load_state_dict(as_tensors(bundle.backbone))
        self.features = features.eval().to(self.device)
        weights, bias = as_tensors(bundle.svm_weights), torch.from_numpy(bundle.svm_bias)
        head = LinearHead(weights, bias, bundle.spec.components)
        self.head = head.to(self.device)
        backbone = bundle.spec.backbone_spec
        layers = {backbone.feature_layer, *(tap.layer for tap in bundle.taps)}
        self.layer_names = {int(backbone.layers[name].node): name for name in layers}

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Sequence[Shape]) -> Columns:
        """Return the columns of images (B, 3, H, W), with masks of `sizes`."""
        maps, x = {}, images.to(self.device, non_blocking=True)
        for position, layer in enumerate(self.features[: max(self.layer_names) + 1]):
            x = layer(x)
            if position in self.layer_names:
                maps[self.layer_names[position]] = x
        scores = self.head(maps)
        labels = resize(scores, x.shape[-2:]).argmax(dim=1)
        masks = [resize(scores[i : i + 1], s).argmax(dim=1)[0] for i, s in enumerate(sizes)]
        member = torch.stack([labels == k for k in range(len(self.classes))], dim=1).float()
        cells = member.sum(dim=(2, 3))
        means = torch.einsum("bchw,bkhw->bkc", x, member) / cells.clamp(min=1)[..., None]
        return {
            "coverage": (cells / labels[0].numel()).cpu().numpy(),
            "feature": x.mean(dim=(2, 3)).cpu().numpy(),
            "region_features": means.flatten(1).cpu().numpy(),
            "mask": [_png(mask.to(torch.uint8).cpu().numpy()) for mask in masks],
        }


def _png(labels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(labels).save(out, "PNG")
    return out.getvalue()


def make_transform(spec: ModelSpec, shape: Shape) -> v2.Compose:
    """Return a transform of an image, PIL or (H, W, 3), to network input (3, H, W) float32."""
    steps = [v2.ToImage(), v2.Resize(shape), v2.ToDtype(torch.float32, scale=True)]
    if spec.minmax:
        steps.append(v2.Lambda(_min_max))
    return v2.Compose([*steps, v2.Normalize(spec.mean, spec.std)])


def _min_max(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)


class ImageFiles(Dataset[tuple[str, Tensor, Shape]]):
    """Image files for a DataLoader."""

    def __init__(self, paths: Sequence[str], spec: ModelSpec, shape: Shape) -> None:
        self.paths, self.transform = paths, make_transform(spec, shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, Tensor, Shape]:
        with Image.open(self.paths[i]) as image:
            pixels = self.transform(image.convert("RGB"))
            return self.paths[i], pixels, mask_shape(image.height, image.width)


def run_data_loader(case: Case) -> None:
    """Run (c): a DataLoader with a worker on each core but one, a model on all threads, Parquet."""
    images = ImageFiles(case.paths(), case.spec, case.shape)
    loader = DataLoader(
        images,
        batch_size=case.peers_batch,
        num_workers=max(CORES - 1, 1),
        collate_fn=_collate,
        pin_memory=case.device == "cuda",
    )
    model = PlainModel(case.model, case.device, CORES)
    writer = None
    for paths, batch, sizes in loader:
        columns = {"uri": paths, **model(batch, sizes)}
        table = pa.table({k: v if isinstance(v, list) else list(v) for k, v in columns.items()})
        writer = writer or pq.ParquetWriter(case.output, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def _collate(rows: list[tuple[str, Tensor, Shape]]) -> tuple[list[str], Tensor, list[Shape]]:
    paths, images, sizes = zip(*rows, strict=True)
    return list(paths), torch.stack(images), list(sizes)


class RayPredictor:
    """Callable class of Ray Data's guide: `__init__` loads a model, `__call__` takes a batch."""

    def __init__(self, model: str, device: str, threads: int | None) -> None:
        self.model = PlainModel(model, device, threads)

    def __call__(self, batch: Columns) -> Columns:
        """Return the columns of a batch of NumPy columns."""
        sizes = [mask_shape(h, w) for h, w in batch["size"]]
        return {"path": batch["path"], **self.model(torch.from_numpy(batch["image"]), sizes)}


def run_ray_data(case: Case) -> None:
    """Run (d): the chain of Ray Data's guide "Working with images", followed by Parquet.

    `read_images`, `map` with torchvision's transforms, `map_batches` of a callable class in an
    ActorPoolStrategy, `write_parquet`; float32, with Ray's default of one thread per actor. There
    is an actor for each core but one, which reading needs.
    """
    import ray.data

    ray.init(include_dashboard=False, log_to_driver=False)
    spec, shape = case.spec, case.shape
    transform = make_transform(spec, shape)

    def prepare(row: Columns) -> Columns:
        size = row["image"].shape[:2]
        return {"path": row["path"], "image": transform(row["image"]).numpy(), "size": size}

    gpus = int(case.device == "cuda")
    ray.data.read_images(case.paths(), mode="RGB", include_paths=True).map(prepare).map_batches(
        RayPredictor,
        fn_constructor_args=(case.model, case.device, case.peers_threads),
        batch_size=case.peers_batch,
        compute=ray.data.ActorPoolStrategy(size=1 if gpus else max(CORES - 1, 1)),
        num_gpus=gpus,
    ).write_parquet(case.output)
    ray.shutdown()
