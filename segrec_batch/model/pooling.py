"""Features of images and regions by pooling of a feature map, and their sign bits, in torch."""

import torch
from torch import Tensor


def class_means(maps: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Average a feature map inside each class (Abdullah 2026, eq. 3, per class).

    Args:
        maps: (B, C, h, w).
        labels: (B, h, w), 0 to n_classes - 1.
        n_classes: K.

    Returns:
        Counts (B, K) int64 of cells, and means (B, K, C) float32, zero where a class has no cells.
        Σ_k counts_k · means_k / (h·w) is the global average.
    """
    members = torch.nn.functional.one_hot(labels.flatten(1).long(), n_classes)  # (B, h·w, K)
    counts = members.sum(dim=1)
    sums = torch.einsum("bck,bkm->bmc", maps.flatten(2).float(), members.float())
    return counts, sums / counts.clamp(min=1)[..., None]


def global_mean(maps: Tensor) -> Tensor:
    """Average a feature map (B, C, h, w) to (B, C) float32 (Abdullah 2026, eq. 3)."""
    return maps.float().mean(dim=(2, 3))


def centred_unit(features: Tensor) -> Tensor:
    """Return rows (N, C) minus their mean, at unit length; a constant row becomes zero.

    Pearson of two rows is then their dot product.
    """
    exact = features.double()  # the mean of equal float32 values is that value
    centred = exact - exact.mean(dim=1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1).float()


def sign_bits(features: Tensor, centre: Tensor, rotation: Tensor) -> Tensor:
    """Return signs of rotated, centred features (N, C) as (N, ⌈C/64⌉) int64, first bit lowest.

    The Hamming distance of two rows grows with the angle between the features, so it falls with
    their Pearson correlation; it serves as a filter before exact ranking.

    Args:
        features: (N, C).
        centre: (C,), mean of the `centred_unit` features of the training images.
        rotation: (C, C), orthogonal.
    """
    signs = (centred_unit(features) - centre) @ rotation > 0
    shifts = torch.arange(64, device=features.device)
    padded = torch.nn.functional.pad(signs, (0, -signs.shape[1] % 64))
    words = padded.reshape(len(signs), -1, 64).long() << shifts
    return words.sum(dim=2)  # distinct bits: the sum is the bitwise or


def random_rotation(size: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal (size, size) float32 matrix."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(gaussian).Q
    return orthogonal.float().contiguous()
