"""Reading and checks of the tags of the first image of a TIFF; names of layouts."""

import io
import math
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segrec_batch.common.errors import ImageError

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
"""Values of the tag PhotometricInterpretation."""

UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
"""Values of the tag ExtraSamples: unspecified, premultiplied alpha, other alpha."""

_PHOTOMETRIC = {
    WHITE_IS_ZERO: "grey (white is zero)", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette",
    4: "transparency mask", CMYK: "CMYK", YCBCR: "YCbCr", CIELAB: "CIE L*a*b*", 9: "ICC L*a*b*",
    10: "ITU L*a*b*", 32803: "colour filter array", 32844: "LogL", 32845: "LogLuv",
    34892: "linear raw",
}  # fmt: skip
_COLOURS = {
    WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3,
}  # fmt: skip
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned", 5: "complex", 6: "complex"}
_COMPRESSION = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old JPEG",
    7: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34925: "LZMA", 50000: "Zstandard",
}  # fmt: skip
"""Compressions that can be read."""
_UNREAD_COMPRESSION = {
    9: "JBIG (T.85)", 10: "JBIG (T.43)", 32766: "NeXT", 32767: "Sony ARW", 32770: "Samsung SRW",
    32771: "CCITT RLE, aligned", 32809: "ThunderScan", 32867: "Kodak KDC", 33003: "JPEG 2000",
    33004: "JPEG 2000", 33005: "JPEG 2000", 33007: "JPEG", 34661: "JBIG", 34676: "SGI LogLuv",
    34677: "SGI LogLuv 24", 34712: "JPEG 2000", 34713: "Nikon NEF", 34887: "LERC",
    34892: "lossy JPEG", 34927: "WebP", 34933: "PNG", 34934: "JPEG XR", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


_COREL_ALPHA = 999  # Corel Draw 10 wrote this for alpha
_PREDICTED = (5, 8, 32946, 34925, 50000)  # compressions with a predictor; others ignore its tag


@dataclass(frozen=True)
class Layout:
    """Layout of an image, from its tags.

    Attributes:
        kind: `unsigned`, `signed`, `float` or `complex`.
        extras: The kinds of the samples after the colours.
        segment: Rows and columns of a strip or tile.
        nodata: The value of the tag GDAL_NODATA, if it is a number.
    """

    width: int
    height: int
    photometric: int
    bits: int
    kind: str
    samples: int
    extras: tuple[int, ...]
    is_planar: bool
    is_tiled: bool
    segment: tuple[int, int]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    compression: int
    predictor: int
    fill_order: int
    is_little_endian: bool
    is_big_tiff: bool
    orientation: int
    colour_map: tuple[int, ...]
    subsampling: tuple[int, ...]
    nodata: float | None

    @property
    def colours(self) -> int:
        """Number of colour samples of a pixel."""
        return self.samples - len(self.extras)

    @property
    def alpha(self) -> int | None:
        """Index of the alpha sample."""
        for place, kind in enumerate(self.extras, self.colours):
            if kind in (ASSOCIATED, UNASSOCIATED):
                return place
        return None

    def refuse(self) -> NoReturn:
        """Raise ImageError with the name of the layout."""
        samples = f"{self.samples} samples" if self.samples > 1 else "1 sample"
        name = f"{_name(_PHOTOMETRIC, self.photometric)}, {samples} of {self.bits}-bit {self.kind}"
        name += ", planar" if self.is_planar else ""
        if self.photometric == YCBCR and self.subsampling != (1, 1):
            name += f", subsampled {'×'.join(map(str, self.subsampling))}"
        if self.compression != 1:
            name += f", {_COMPRESSION.get(self.compression, self.compression)} compression"
        if self.is_big_tiff:
            name += ", BigTIFF"
        name += f", predictor {self.predictor}" if self.predictor != 1 else ""
        raise ImageError("decode", f"TIFF of this layout is not supported: {name}")

    def check_compression(self) -> None:
        """Raise ImageError if the compression is not supported."""
        if self.compression not in _COMPRESSION:
            name = _name(_UNREAD_COMPRESSION, self.compression)
            raise ImageError("decode", f"TIFF compression {name} is not supported")


def read_layout(data: bytes) -> Layout:
    """Read the tags of the first image of a TIFF or BigTIFF.

    Raises:
        ImageError: The directory is broken, or has different bits or kinds of samples.
    """
    tags = _read_tags(data)
    width, height = tags.whole(256), tags.whole(257)
    bits, kinds = tags.values(258, (1,)), tags.values(339, (1,))
    samples, photometric = tags.whole(277, 1), tags.whole(262, BLACK_IS_ZERO)
    if not (width > 0 and height > 0 and samples > 0):
        raise ImageError("decode", "broken TIFF: no width, height or samples")
    if len(set(bits)) > 1 or len(set(kinds)) > 1 or kinds[0] not in _KINDS:
        types = ", ".join(f"{b}-bit" for b in bits)
        name = f"{_name(_PHOTOMETRIC, photometric)}, samples of {types}"
        raise ImageError("decode", f"TIFF of this layout is not supported: {name}")
    is_tiled = 324 in tags.directory
    rows = tags.whole(323) if is_tiled else min(tags.whole(278, height) or height, height)
    columns = tags.whole(322) if is_tiled else width
    if rows < 1 or columns < 1:
        raise ImageError("decode", "broken TIFF: strips or tiles without size")
    return Layout(
        width=width,
        height=height,
        photometric=photometric,
        bits=bits[0],
        kind=_KINDS[kinds[0]],
        samples=samples,
        extras=_extras(photometric, samples, tags.values(338, ())),
        is_planar=tags.whole(284, 1) == 2 and samples > 1,
        is_tiled=is_tiled,
        segment=(rows, columns),
        offsets=tags.values(324 if is_tiled else 273, ()),
        sizes=tags.values(325 if is_tiled else 279, ()),
        compression=tags.whole(259, 1),
        predictor=tags.whole(317, 1) if tags.whole(259, 1) in _PREDICTED else 1,
        fill_order=tags.whole(266, 1),
        is_little_endian=data[:1] == b"I",
        is_big_tiff=b"+" in data[2:4],
        orientation=tags.whole(274, 1),
        colour_map=tags.values(320, ()),
        subsampling=tags.values(530, (2, 2)),
        nodata=_nodata(tags.directory.get(42113)),
    )


@dataclass(frozen=True)
class _Tags:
    directory: Any

    def values(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return the whole numbers of a tag."""
        value = self.directory.get(tag, default)
        found = tuple(value) if isinstance(value, (tuple, bytes)) else (value,)
        if not all(isinstance(v, int) for v in found) or (tag in self.directory and not found):
            raise ImageError("decode", f"broken TIFF: tag {tag} is no whole number")
        return found

    def whole(self, tag: int, default: int | None = None) -> int:
        """Return the only number of a tag."""
        if tag not in self.directory and default is None:
            raise ImageError("decode", f"broken or truncated TIFF: no tag {tag}")
        return self.values(tag, (default or 0,))[0]


def _read_tags(data: bytes) -> _Tags:
    try:
        file = io.BytesIO(data)
        if data[2:4] in (b"+\0", b"\0+"):  # Pillow reads the mark as little-endian
            header, prefix = b"II+\0" + file.read(16)[4:], data[:2]
        else:
            header, prefix = file.read(8), None
        directory = ImageFileDirectory_v2(header, prefix)
        file.seek(directory.next)
        directory.load(file)
    except (SyntaxError, struct.error, ValueError, OverflowError) as error:
        raise ImageError("decode", f"broken or truncated TIFF: {error}") from error
    return _Tags(directory)


def _extras(photometric: int, samples: int, kinds: tuple[int, ...]) -> tuple[int, ...]:
    surplus = max(0, samples - _COLOURS.get(photometric, samples))
    if photometric == RGB and surplus == 1 and not kinds:
        return (UNASSOCIATED,)  # programs that omit the tag write alpha as fourth sample
    kinds = tuple(UNASSOCIATED if kind == _COREL_ALPHA else kind for kind in kinds[:surplus])
    return kinds + (UNSPECIFIED,) * (surplus - len(kinds))


def _nodata(text: object) -> float | None:
    words = str(text).strip("\0 ").split() if isinstance(text, str) else []
    if len(words) != 1:
        return None
    try:
        return int(words[0])  # exact beyond 2⁵³
    except ValueError:
        pass
    try:
        number = float(words[0])
    except ValueError:
        return None
    return None if math.isnan(number) else number  # NaN is always missing


def _name(names: dict[int, str], value: int) -> str:
    return names.get(value, str(value))
