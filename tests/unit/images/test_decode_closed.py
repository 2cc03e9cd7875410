"""Tests of decoding without files and imports, as in the sandbox."""

import io
import struct
import subprocess
import sys

import pytest
import tifffile
from PIL import ExifTags, Image

from tests.support.builders import encoded, png_by_hand, smooth_pixels

CODE = """
import struct, sys
from segrec_batch.images.decode import decode, shapes_of_size

files = []
while head := sys.stdin.buffer.read(4):
    files.append(sys.stdin.buffer.read(*struct.unpack("<I", head)))

def refuse(event, arguments):
    if event in ("open", "import", "os.listdir", "socket.connect", "subprocess.Popen"):
        sys.stderr.write(f"{event} {arguments}\\n")
        sys.stderr.flush()
        os._exit(3)

import os
sys.addaudithook(refuse)
shapes = shapes_of_size(64, 16)
known = set(sys.modules)
for data in files:
    try:
        decode(data, shapes)
        print("decoded", flush=True)
    except Exception as error:
        print(error, flush=True)
print(*(set(sys.modules) - known), "new modules", flush=True)
"""
PIXELS = smooth_pixels(40, 56)


def _of_pillow() -> list[bytes]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.fromarray(PIXELS)
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16")
    formats = {
        "JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "GIF": ("L", "P", "RGB"), "BMP": ("1", "L", "RGB", "RGBA"), "WEBP": ("RGB", "RGBA"),
        "TIFF": modes, "MPO": ("RGB",),
    }  # fmt: skip
    files = [
        encoded(image.convert("L").convert(mode) if mode in "IF;16" else image.convert(mode), kind)
        for kind, kinds in formats.items()
        for mode in kinds
    ]
    compressed = ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd", "lzma")
    files += [encoded(image, "TIFF", compression=name) for name in compressed]
    files += [encoded(image.convert("1"), "TIFF", compression="group4")]
    files += [encoded(image.convert("F"), "TIFF", compression="tiff_lzw")]
    files += [encoded(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    frames = {"save_all": True, "append_images": [image]}
    files += [encoded(image, kind, **frames) for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO")]
    return files


def _of_many_bits() -> list[bytes]:
    files = [png_by_hand(8, 8, 16, colour, bytes(8 * (1 + 16 * n))) for colour, n in PNG_CHANNELS]
    for kind, photometric in (("u2", "rgb"), ("f4", "rgb"), ("u4", "minisblack"), ("f2", "rgb")):
        values = (PIXELS if photometric == "rgb" else PIXELS[..., 0]).astype(kind)
        for options in ({}, {"compression": "zlib", "tile": (16, 16)}, {"bigtiff": True}):
            out = io.BytesIO()
            tifffile.imwrite(out, values, photometric=photometric, **options)
            files.append(out.getvalue())
    return files


PNG_CHANNELS = ((0, 1), (2, 3), (4, 2), (6, 4))


def _broken() -> list[bytes]:
    whole = [encoded(PIXELS, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    return [b"", b"no image at all", *(data[: len(data) // n] for data in whole for n in (2, 9))]


@pytest.mark.parametrize(
    ("files", "decoded"), [(_of_pillow(), True), (_of_many_bits(), True), (_broken(), False)]
)
def test_decoding_opens_no_file_and_imports_no_module(files: list[bytes], decoded: bool) -> None:
    content = b"".join(struct.pack("<I", len(data)) + data for data in files)
    done = subprocess.run([sys.executable, "-c", CODE], input=content, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    *outcomes, last = done.stdout.decode().splitlines()
    assert last == "new modules"
    assert len(outcomes) == len(files)
    assert all((outcome == "decoded") == decoded for outcome in outcomes), outcomes
