"""Tests of the confinement: a decoder that is taken over can only respond."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrec_batch.common.errors import ImageError
from segrec_batch.images import decode as d
from segrec_batch.images import sandbox as s
from segrec_batch.images import sandbox_child, sandbox_process
from tests.support.builders import encoded, smooth_pixels

SHAPES = d.shapes_of_size(64, 16)
FAULTS = Path(__file__).parents[4] / "shared" / "faults"
SECRET = "not-for-a-decoder"  # noqa: S105
WITHOUT = {"Landlock": "_forbid_paths", "seccomp": "_filter_system_calls"}
# What fails by the limit on descriptors alone, as on a kernel without Landlock and seccomp
BY_LIMITS = [
    "read a file", "read another's environment", "write a file", "list a folder",
    "make memory a file", "open a device", "make a socket", "make a UNIX socket", "connect",
    "send a packet", "look a name up", "lift its limits", "import a module",
]  # fmt: skip
BY_LANDLOCK = [
    *BY_LIMITS, "make a folder", "rename a file", "link a file", "cut a file", "delete a file",
]  # fmt: skip

HOSTILE = """
import ctypes, mmap, os, resource, signal, socket, subprocess, threading
import errno as os_errno
from pathlib import Path
import numpy as np
from segrec_batch.images import confinement
from segrec_batch.images.decode import DecodedImage
from segrec_batch.common.errors import ImageError

LIBC = ctypes.CDLL(None, use_errno=True)
HERE, PARENT = Path(__file__).parent, os.getppid()

def raw(number, *arguments):
    if LIBC.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")

def call(name, *arguments):
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "")

def send_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", 9))

def run_code():
    block = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

def unlimit():
    resource.setrlimit(resource.RLIMIT_AS, (2**45, 2**45))

def thread():
    threading.Thread(target=int).start()

x86 = os.uname().machine == "x86_64"
ATTACKS = {
    "read a file": lambda: open(HERE / "secret").read(),
    "read another's environment": lambda: open(f"/proc/{PARENT}/environ").read(),
    "read its own environment": lambda: open("/proc/self/environ").read(),
    "write a file": lambda: open(HERE / "written", "w"),
    "add to a file": lambda: open(HERE / "secret", "a").write("x"),
    "list a folder": lambda: os.listdir("/"),
    "look for a file": lambda: os.stat(HERE / "secret"),
    "make a folder": lambda: os.mkdir(HERE / "made"),
    "delete a file": lambda: os.unlink(HERE / "secret"),
    "rename a file": lambda: os.rename(HERE / "secret", HERE / "renamed"),
    "link a file": lambda: os.symlink("/etc/passwd", HERE / "linked"),
    "change a mode": lambda: os.chmod(HERE / "secret", 0o777),
    "cut a file": lambda: os.truncate(HERE / "secret", 0),
    "change the folder": lambda: os.chdir("/tmp"),
    "change the root": lambda: os.chroot("/tmp"),
    "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "make memory a file": lambda: os.memfd_create("x"),
    "open by handle": lambda: raw(304 if x86 else 265, -100, 0, 0),
    "open a device": lambda: open("/dev/null"),
    "make a socket": lambda: socket.socket(),
    "make a UNIX socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pair of sockets": socket.socketpair,
    "make a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), 1),
    "send a packet": send_udp,
    "look a name up": lambda: socket.gethostbyname("example.com"),
    "fork": os.fork,
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "run a child": lambda: subprocess.run(["/bin/true"]),
    "run by the shell": lambda: call("system", b"true") or 1 / 0,
    "start a thread": thread,
    "make a namespace": lambda: call("unshare", 0x10000000),
    "kill its parent": lambda: os.kill(PARENT, signal.SIGKILL),
    "ask whether a process lives": lambda: os.kill(PARENT, 0),
    "kill its group": lambda: os.killpg(0, signal.SIGTERM),
    "kill all": lambda: os.kill(-1, signal.SIGTERM),
    "trace its parent": lambda: call("ptrace", 16, PARENT, 0, 0),
    "read its parent's memory": lambda: raw(310 if x86 else 270, PARENT, 0, 0, 0, 0, 0),
    "take its parent's descriptors": lambda: raw(434, PARENT, 0),
    "limit its parent": lambda: resource.prlimit(PARENT, resource.RLIMIT_CPU, (1, 1)),
    "lift its limits": unlimit,
    "become another user": lambda: os.setuid(12345),
    "load a program into the kernel": lambda: raw(321 if x86 else 280, 0, 0, 0),
    "use a ring": lambda: raw(425, 1, 0),
    "use a call of the x32 ABI": lambda: raw(0x40000000 + 2, b"/etc/passwd", 0) if x86 else 1 / 0,
    "run code it has read": run_code,
    "duplicate a descriptor": lambda: os.dup(0),
    "import a module": lambda: __import__("http.server"),
}

def decode(data, shapes):
    if data in ANSWERS:
        return ANSWERS[data]()
    if data == b"secrets":
        found = [k for k, v in os.environ.items() if SECRET in v or k.startswith(("AWS_", "RAY_"))]
        raise ImageError("decode", f"{found} {sorted(os.environ)}")
    if data == b"write":
        raise ImageError("decode", str(os.write(1, b"x")))
    results = {}
    for name in data.decode().split(",") if data != b"attack" else ATTACKS:
        try:
            ATTACKS[name]()
            results[name] = "DONE"
        except OSError as error:
            results[name] = os_errno.errorcode.get(error.errno, str(error.errno))
        except Exception as error:
            results[name] = type(error).__name__
    raise ImageError("decode", " ".join(f"{k.replace(' ', '_')}={v}" for k, v in results.items()))

def absent(*_):
    raise OSError(os_errno.ENOSYS, "")

for name in ABSENT:
    setattr(confinement, name, absent)

class Answer:
    def __init__(self, **facts):
        whole = {"pixels": np.zeros((64, 64, 3), np.uint8), "width": 1, "height": 1, "format": "x"}
        self.image = DecodedImage(**{**whole, **facts})

ANSWERS = {
    b"good answer": lambda: Answer().image,
    b"other shape": lambda: Answer(pixels=np.zeros((64, 65, 3), np.uint8)).image,
    b"other channels": lambda: Answer(pixels=np.zeros((64, 64, 4), np.uint8)).image,
    b"no pixels": lambda: Answer(pixels=np.zeros((0, 64, 3), np.uint8)).image,
    b"too many pixels": lambda: Answer(width=10**6, height=10**6).image,
    b"no size": lambda: Answer(width=-1).image,
    b"size as text": lambda: Answer(width="1").image,
    b"long format": lambda: Answer(format="x" * 11).image,
    b"floats": lambda: Answer(pixels=np.zeros((64, 64, 3), np.float32)).image,
    b"wide pixels": lambda: Answer(pixels=np.zeros((64, 64, 3), np.uint16)).image,
    b"nested": lambda: Answer(format=[[]]).image,
    b"long answer": lambda: Answer(format="x" * 10**5).image,
}
"""


@pytest.fixture
def absent() -> list[str]:
    """Of WITHOUT: what the kernel is not to have."""
    return []


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: list[str]) -> Iterator[s.Sandbox]:
    """A sandbox whose decoder is taken over, and a server that it might reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        missing = [WITHOUT[name] for name in absent]
        text = f"PORT, SECRET, ABSENT = {port}, {SECRET!r}, {missing!r}\n{HOSTILE}"
        (tmp_path / "hostile.py").write_text(text)
        (tmp_path / "secret").write_text(SECRET)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HTTP_PROXY", "PYTHONSTARTUP"):
            monkeypatch.setenv(name, SECRET)
        with s.Sandbox(function="hostile:decode", memory=2**29) as box:
            yield box


def _reason(box: s.Sandbox, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        box.decode(data, SHAPES)
    return caught.value.reason


def _results(box: s.Sandbox, attacks: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of each attack the name of its error, or DONE."""
    monkeypatch.setattr(sandbox_process, "_LONGEST_REASON", 10_000)
    pairs = (pair.split("=") for pair in _reason(box, attacks.encode()).split())
    return {name.replace("_", " "): result for name, result in pairs}


def _need(*parts: str) -> None:
    """Skip where the kernel of this machine lacks something."""
    with s.Sandbox() as box:
        for gap in box.confinement().gaps:
            if any(part in gap for part in parts):
                pytest.skip(f"this machine has {gap}")


@pytest.mark.parametrize("absent", [[], ["Landlock"]], ids=["all", "no Landlock"])
def test_a_decoder_that_was_taken_over_can_do_nothing(
    box: s.Sandbox, absent: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need("seccomp", *([] if absent else ["Landlock"]))
    results = _results(box, "attack", monkeypatch)
    assert len(results) > 40
    others = {name: result for name, result in results.items() if result != "ENOSYS"}
    assert others == {"run by the shell": "ZeroDivisionError", "start a thread": "RuntimeError"}
    confinement = box.confinement()
    assert confinement.seccomp
    assert (confinement.landlock is None) == bool(absent)
    assert (tmp_path / "secret").read_text() == SECRET
    assert not (tmp_path / "secret").stat().st_mode & 0o111
    assert {p.name for p in tmp_path.iterdir()} <= {"hostile.py", "secret", "__pycache__"}


@pytest.mark.parametrize("absent", [["seccomp"], ["seccomp", "Landlock"]], ids=" and ".join)
def test_what_is_left_holds_where_the_kernel_lacks_a_part(
    box: s.Sandbox,
    absent: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "Landlock" not in absent:
        _need("Landlock")
    s._report.cache_clear()
    attacks = BY_LIMITS if "Landlock" in absent else BY_LANDLOCK
    results = _results(box, ",".join(attacks), monkeypatch)
    assert results.keys() == set(attacks)
    assert not [name for name, result in results.items() if result == "DONE"]
    confinement = box.confinement()
    assert not confinement.seccomp
    assert confinement.gaps == tuple(
        f"no {name}: this kernel is without" for name in WITHOUT if name in absent
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"the process that decodes is not fully confined: {'; '.join(confinement.gaps)} "
        "(see segrec doctor)"
    ]
    s._report.cache_clear()


def test_a_decoder_has_no_secrets(box: s.Sandbox) -> None:
    reason = _reason(box, b"secrets")
    assert reason.startswith("[] ")
    if os.getuid():
        return  # the kernel hides a confined process from its user
    environment = Path(f"/proc/{box.pid}/environ").read_text()
    assert SECRET not in environment
    assert {line.partition("=")[0] for line in environment.split("\0")} <= {
        "", "LD_LIBRARY_PATH", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE", "PYTHONHOME",
        "PYTHONPATH", "PYTHONPYCACHEPREFIX", "TIFFFILE_NUM_THREADS",
    }  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0, reason="a confined process is hidden from its user")
def test_child_holds_one_socket_and_no_other_descriptor(box: s.Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "secret").open() as file:
        os.set_inheritable(file.fileno(), True)
        box.confinement()
        proc = Path(f"/proc/{box.pid}")
        held = {int(p.name): os.readlink(p) for p in (proc / "fd").iterdir()}  # noqa: PTH115
    assert [held.pop(i) for i in range(3)] == ["/dev/null"] * 3
    (other,) = held.values()
    assert other.startswith("socket:")
    assert os.readlink(proc / "cwd") == "/"  # noqa: PTH115
    facts = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert facts["NoNewPrivs"] == "1"
    assert facts["Threads"] == "1"
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    limits = {row[:26].strip(): row[26:].split()[:2] for row in (proc / "limits").open()}
    for name in ("Max core file size", "Max file size", "Max open files", "Max processes"):
        assert limits[name] == ["0", "0"]
    soft, hard = map(int, limits["Max address space"])
    assert 2**29 < soft == hard < 2**31
    assert limits["Max cpu time"] == ["3600", "3600"]


@pytest.mark.parametrize(
    "answer",
    ["other shape", "other channels", "no pixels", "too many pixels", "no size", "size as text",
     "long format", "nested", "floats", "wide pixels", "long answer"],
)  # fmt: skip
def test_an_answer_that_cannot_be_is_not_believed(box: s.Sandbox, answer: str) -> None:
    assert len(box.decode(b"good answer", SHAPES).pixels) == 64
    assert _reason(box, answer.encode()) == "decoder crashed (its answer makes no sense)"
    assert box.pid is None


def _files() -> dict[str, bytes]:
    """One image of each format and compression that decoders know."""
    image = Image.fromarray(smooth_pixels(300, 400))
    plain = {f: encoded(image, f) for f in ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")}
    turned = image.rotate(90)
    several: dict[str, object] = {"save_all": True, "append_images": [turned]}
    return {
        **plain,
        "progressive": encoded(image, "JPEG", progressive=True),
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "MPO": encoded(image, "MPO", **several),
        "palette": encoded(image.quantize(16), "PNG", transparency=3),
        "lossless": encoded(image, "WEBP", lossless=True),
        "animated": encoded(image, "WEBP", **several),
        "large": encoded(Image.fromarray(smooth_pixels(2400, 3200)), "WEBP"),
        "XMP": encoded(image, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        **{f"TIFF {c}": encoded(image, "TIFF", compression=c) for c in
           ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd", "lzma")},
        **{f"TIFF {c}": encoded(image.convert("1"), "TIFF", compression=c) for c in
           ("group3", "group4", "tiff_ccitt")},
        "CMYK TIFF": encoded(image.convert("CMYK"), "TIFF"),
        "Lab TIFF": encoded(image.convert("LAB"), "TIFF"),
        "float TIFF": encoded(image.convert("F"), "TIFF"),
        "empty": b"",
        "no image": b"<html>",
        "EPS": encoded(image, "EPS"),
        **{path.name: path.read_bytes() for path in sorted(FAULTS.glob("*.[tp][in][fg]"))},
    }  # fmt: skip


def _outcome(decode: Callable[..., d.DecodedImage], data: bytes) -> tuple[object, ...]:
    try:
        image = decode(data, SHAPES)
    except ImageError as error:
        return (error.reason,)
    return image.pixels.tobytes(), image.width, image.height, image.format


def test_every_format_comes_out_as_without_a_sandbox() -> None:
    """Nothing is imported, opened or started while an image is decoded."""
    with s.Sandbox() as box:
        for name, data in _files().items():
            assert _outcome(box.decode, data) == _outcome(d.decode, data), name


def test_samples_arrive_in_the_byte_order_of_the_machine() -> None:
    big = np.array([[1, 258]], ">u2")
    facts, pixels = sandbox_child._answer(lambda _: big, b"", {})
    assert facts == {"dtype": "uint16", "shape": (1, 2)}
    assert np.frombuffer(pixels, np.uint16).tolist() == [1, 258]
