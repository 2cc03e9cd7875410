"""Recognition of image formats by the first bytes of a file."""

from segrec_batch.common.errors import ImageError

READ = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read."""

_SIGNATURES = {
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"MM*\0": "TIFF",  # Pillow and libtiff accept this wrong mark of some programs
    b"II\0*": "TIFF",
}
_UNREAD = {
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"8BPS": "Photoshop",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF-": "PDF",
    b"\0\0\1\0": "Windows icon",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"SIMPLE  =": "FITS",
    b"gimp xcf": "GIMP",
    b"qoif": "QOI",
    b"DDS ": "DirectDraw Surface",
    b"<svg": "SVG",
    **{b"P" + digit + space: "netpbm" for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"7")
       for space in (b"\n", b" ")},
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
}  # fmt: skip
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC",
    b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF",
}  # fmt: skip
"""Brands of ISO base media files, at byte 8."""


def find_format(head: bytes) -> str | None:
    """Return the format, one of `READ`, by the first 12 bytes of a file; None if unknown."""
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else None
    if head[4:8] == b"ftyp":
        return "AVIF" if _BRANDS.get(head[8:12]) == "AVIF" else None
    return next((name for start, name in _SIGNATURES.items() if head.startswith(start)), None)


def recognise(data: bytes) -> str:
    """Return the format of an image file, one of `READ`.

    Raises:
        ImageError: The file is empty, no image, or of an unsupported format.
    """
    if not data:
        raise ImageError("decode", "empty file")
    if name := find_format(data):
        return name
    if unread := _unread(data):
        raise ImageError(
            "decode", f"{unread} is not supported: convert it to one of {', '.join(READ)}"
        )
    raise ImageError("decode", "not an image")


def _unread(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    if data[128:132] == b"DICM":
        return "DICOM"
    return next((name for start, name in _UNREAD.items() if data.startswith(start)), None)
