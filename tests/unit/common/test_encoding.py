"""Tests of the encoding of text for terminals, logs, JSON, CSV and HTML."""

import csv
import io
import json
import logging
import subprocess
import sys
import unicodedata
from decimal import Decimal
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrec_batch.cli.output import formatted
from segrec_batch.common import console
from segrec_batch.common.encoding import (
    encode_csv,
    encode_json,
    escape_message,
    escape_text,
    make_html_environment,
    redact,
)
from segrec_batch.common.errors import InputError
from segrec_batch.common.logs import run_command
from segrec_batch.sources import storage

log = logging.getLogger("segrec_batch.tests")
# by hand, from the Unicode standard: what drives a terminal, breaks lines, or turns text around
HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "a\rb",
    "a\nerror: all is lost",
    "a\x9b31mb",
    "a\x7f",
    "\u202egpj.exe",
    "\u2066a\u2069",
    "\u200fa",
    "\u061ca",
    "a\u2028b",
    "\ufeffa",
    "a\u200bb",
    "\udcff",
    "\U000e0041",
]
HARMLESS = ["café.jpg", "日本.png", "👩‍💻.jpg", "نمی‌دانم", "a b#?%", "C:\\x1b", "−1"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_escape_text_escapes_unsafe_characters(text: str) -> None:
    escaped = escape_text(text)
    assert escaped.encode().decode() == escaped
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in escaped)


@pytest.mark.parametrize("text", HARMLESS)
def test_escape_text_keeps_other_text(text: str) -> None:
    assert escape_text(text) == text


@given(st.text(st.characters(codec="utf-8")))
def test_escape_text_is_reversible(text: str) -> None:
    plain = text.replace("\\", "")  # a backslash stays: such a name would read as an escape
    assert escape_text(plain).encode("raw_unicode_escape").decode("unicode_escape") == plain


@given(st.text())
def test_encode_csv_has_one_cell_a_text_and_no_formula(text: str) -> None:
    ((cell, number),) = csv.reader(io.StringIO(encode_csv([[text, -1]])))
    assert cell.removeprefix("'") == escape_text(text).removeprefix("'")
    assert cell[:1] not in {"=", "+", "-", "@"}
    assert number == "-1"


@given(st.dictionaries(st.text(), st.text() | st.floats() | st.none() | st.booleans()))
def test_encode_json_reads_back_and_is_safe(value: dict[str, object]) -> None:
    text = encode_json(value)
    assert escape_text(text) == text
    expected = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in value.items()}
    assert json.loads(text, parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_formatted_has_no_unsafe_character(name: str, kind: str) -> None:
    text = formatted(kind, ["uri", name], [[name], [f"={name}"]], name).decode()
    assert [escape_text(line) for line in text.split("\n")] == text.split("\n")


def test_message_of_two_lines_stays_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("cannot read a\x1b[2J\nerror: all is lost")
    assert capsys.readouterr().err == "warning: cannot read a\\x1b[2J\n  error: all is lost\n"


def test_show_line_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_line("new", "a\n\u202eb")
    assert capsys.readouterr().out == "new\ta\\n\\u202eb\n"


def test_html_escapes_bidirectional_marks() -> None:
    environment = make_html_environment(jinja2.DictLoader({"page": "<p>{{ name }}</p>"}))
    page = environment.get_template("page").render(name="<\u202egpj.exe>\x1b")
    assert page == "<p>&lt;\\u202egpj.exe&gt;\\x1b</p>"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:abc/def+g@bucket/images",
        "s3a://AKIA:abc@bucket",
        "s3://AKIA@bucket/x",
        "https://user:abc@host/x",
    ],
)
def test_credentials_in_a_uri_are_refused_and_redacted(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: storage.filesystem(uri) and None) == 1
    err = capsys.readouterr().err
    assert "credentials do not belong in a URI" in err
    assert "abc" not in err
    assert "AKIA" not in err
    assert "abc" not in escape_message(f"no such bucket: {uri}")


@pytest.mark.parametrize(
    "uri", ["s3://bucket/me@home/a:b@c", "s3://arn:aws:s3:us-east-1:1:accesspoint/a/b@c", "/a:b@c"]
)
def test_redact_keeps_an_at_sign_in_a_name(uri: str) -> None:
    assert redact(uri) == uri
    storage.filesystem(uri)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/in/a://@.jpg", "s3://b/https://me@host/x.jpg", "/in/https://me@host/x.jpg"]
)
def test_filesystem_accepts_names_like_credentials(uri: str) -> None:
    storage.filesystem(uri)


def test_encode_csv_keeps_decimals_and_integers() -> None:
    assert encode_csv([[Decimal("-1.5"), -2, "-3"]]) == "-1.5,-2,'-3\n"


def test_json_messages_have_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")

    def fail() -> None:
        log.info("begins", extra={"index": "s3://KEY:hunter2@bucket/x"})
        raise RuntimeError("denied for wJalrXUtnFEMI at s3://KEY:hunter2@bucket/x")

    assert run_command(fail, "json") == 1
    err = capsys.readouterr().err
    assert "in run_command" in err
    assert "hunter2" not in err
    assert "wJalr" not in err


def test_redact_removes_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert redact("denied for wJalrXUtnFEMI") == "denied for $AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("no\x1b such"), "error: no\\x1b such\n"),
        (MemoryError(), "error: memory ran out"),
        (RecursionError("maximum depth"), "error: RecursionError: maximum depth; this is a fault"),
        (OSError(27, "File too large", "x"), "`ulimit -f` bounds"),
    ],
)
def test_run_command_prints_an_error_in_one_line(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_segrec_traceback_prints_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGREC_TRACEBACK", "1")
    assert run_command(lambda: {}["no such key"]) == 1  # type: ignore[misc]
    assert "in run_command" in capsys.readouterr().err


def in_shell(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    segrec = f"{sys.executable} -m segrec_batch.cli.main"
    return subprocess.run(
        ["bash", "-c", script.replace("SEGREC", segrec)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "PYTHONDONTWRITEBYTECODE": "1",  # it would be cut off by `ulimit -f`
        },
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("ulimit -f 1; SEGREC scenes --output scenes --count 1", "`ulimit -f` bounds the size"),
        (
            "mkdir gone; cd gone; rmdir ../gone; SEGREC sql --index index 'SELECT 1'",
            "the current directory does not exist any more",
        ),
        (
            "SEGREC sql --index s3://KEY:hunter2@bucket/index 'SELECT 1'",
            "s3://bucket/index: cred",
        ),
        (
            "echo -e 'import a\\nfrom a import b' > x; SEGREC sql --index x 'SELECT 1'",
            "is not a query cache",
        ),
    ],
)
def test_command_in_a_shell_ends_with_one_error_line(
    script: str, message: str, tmp_path: Path
) -> None:
    done = in_shell(script, tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr.splitlines()[-1]
    assert "hunter2" not in done.stderr


def test_run_command_exits_with_141_after_a_broken_pipe(tmp_path: Path) -> None:
    code = "from segrec_batch.common import console, logs; import sys; sys.exit(logs.run_command("
    code += "lambda: [console.show_line('x' * 99) for _ in range(9999)] and None))"
    done = in_shell(f'({sys.executable} -c "{code}"; echo $? >&2) | head -1', tmp_path)
    assert done.stderr == "141\n"
    assert done.stdout == f"{'x' * 99}\n"
