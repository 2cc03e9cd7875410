"""Encoding of text for terminals and logs, JSON, CSV and HTML.

File names, failure reasons and error texts are untrusted. If they are not escaped, control
characters drive a terminal, line breaks forge lines of a log, bidirectional marks disguise names
(CVE-2021-42574), a spreadsheet runs cells that begin with `=`, and a URI may show credentials.
There is one encoder for each kind of output; all output passes through it.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

# Cc, Zl and Zp of Unicode; the marks that change the direction of text; invisible characters except
# the joiners that Persian and emoji need; tags; surrogates, which no file can hold as UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_FORMULA_STARTS = ("=", "+", "-", "@")  # a cell that begins with one is a formula

# SCHEME://USER:PASSWORD@; a secret key of S3 may contain a slash; s3://arn:… names an access point
_CREDENTIALS = re.compile(
    r"\b(?!(?:abfss?|hdfs)://[^\s/@:]*@)"  # CONTAINER@ACCOUNT, USER@HOST
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?!arn:)[^\s/@:]*:)?[^\s/@]*@"
)
_S3_CREDENTIALS = re.compile(r"\b(?P<scheme>s3a?|gs|gcs|az|abfss?)://(?!arn:)[^\s/@:]*:[^\s@]*@")


def escape_text(text: str) -> str:
    r"""Return text for one line; escape unsafe characters as a Python literal does.

    >>> print(escape_text("café\n\x1b[2J \u202egpj.exe"))
    café\n\x1b[2J \u202egpj.exe
    """
    return _UNSAFE.sub(_escape, text)


def escape_lines(text: str) -> str:
    """Escape text as `escape_text` does, but keep its line breaks."""
    return "\n".join(map(escape_text, text.split("\n")))


def escape_message(text: str) -> str:
    r"""Escape a log message of several lines and remove its credentials.

    Lines after the first are indented, so that none of them looks like a separate message.

    >>> print(escape_message("SQL: syntax error\nLINE 1 of s3://KEY:SECRET@bucket"))
    SQL: syntax error
      LINE 1 of s3://bucket
    """
    return escape_lines(redact(text)).replace("\n", "\n  ")


def redact(text: str) -> str:
    """Remove credentials of URIs and of the environment from text.

    >>> redact("https://user:password@host/x and s3://bucket/a@b")
    'https://host/x and s3://bucket/a@b'
    """
    for pattern in (_S3_CREDENTIALS, _CREDENTIALS):
        text = pattern.sub(r"\g<scheme>://", text)
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"):
        if secret := os.environ.get(variable):
            text = text.replace(secret, f"${variable}")
    return text


def has_credentials(uri: str) -> bool:
    """Return whether a URI holds credentials.

    >>> [has_credentials(u) for u in ("s3://KEY:a/b@bucket", "s3://bucket/a@b", "s3://arn:a:b/c@d")]
    [True, False, False]
    """
    return any(pattern.match(uri) for pattern in (_S3_CREDENTIALS, _CREDENTIALS))


def encode_json(value: Any, indent: int | None = None) -> str:
    r"""Return a value as JSON that is safe on a terminal; NaN and infinities become null.

    Values of other types, such as dates, become strings.

    >>> encode_json({"é": "\u202e", "x": float("nan")})
    '{"é": "\\u202e", "x": null}'
    """
    text = json.dumps(
        _replace_nonfinite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str
    )
    # json.dumps escapes characters below U+0020; the only line breaks come from `indent`
    return _UNSAFE.sub(_escape_json, text)


def encode_csv(rows: Iterable[Sequence[Any]]) -> str:
    r"""Return rows as CSV; escape texts with `escape_text` and put ' before formulas.

    >>> encode_csv([["uri", "n"], ["=HYPERLINK(1)", -1]])
    "uri,n\n'=HYPERLINK(1),-1\n"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_encode_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def make_html_environment(loader: "jinja2.BaseLoader") -> "jinja2.Environment":
    """Return a Jinja environment whose templates escape all values."""
    import jinja2  # imported here: only HTML pages need it

    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_value,
    )


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    for letter, digits in (("x", 2), ("u", 4)):
        if code < 16**digits:
            return f"\\{letter}{code:0{digits}x}"
    return f"\\U{code:08x}"


def _escape_json(match: re.Match[str]) -> str:
    return match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1]


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return value


def _encode_cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float | Decimal):
        return value
    text = escape_text(str(value))
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _escape_value(value: Any) -> Any:
    is_plain = isinstance(value, str) and not hasattr(value, "__html__")
    return escape_lines(value) if is_plain else value
