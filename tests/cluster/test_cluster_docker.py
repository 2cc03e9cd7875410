"""Tests of cluster/Dockerfile, and that no file of cluster/ holds a secret."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster_files import CLUSTER, FILLED_IN, PLACEHOLDER, ROOT, locked

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
IGNORED = (CLUSTER / "Dockerfile.dockerignore").read_text()
TEXTS = {str(p.relative_to(CLUSTER)): p.read_text() for p in CLUSTER.rglob("*") if p.is_file()}
MODE = "RAY_AUTH_MODE"
SECRETS = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN|(?<!sha256:)\b[0-9a-f]{40,}\b"
    r"|(?:SECRET\w*|TOKEN|PASSWORD|auth_token)[\"']?\s*[:=]\s*[\"']?[\w+/=-]{8,}"
)
INSTALLS = re.compile(r"\b(?:pip|uv|conda|apt(?:-get)?|curl|wget|aria2c|git)\b[^&;|\n]*")


def instructions(dockerfile: str) -> list[tuple[str, list[str]]]:
    """Instructions and their words, without comments and line breaks."""
    joined = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, shlex.split(rest)) for name, rest in lines]


def hadolint(path: Path) -> str:
    program = Path(sys.executable).with_name("hadolint")
    completed = subprocess.run([program, path], capture_output=True, text=True, check=False)
    return completed.stdout + completed.stderr


def complaints(dockerfile: str, ignored: str = IGNORED) -> list[str]:
    """Return faults that hadolint does not check: versions, user, copies and downloads."""
    steps = instructions(dockerfile)
    environment = {e for name, words in steps if name == "ENV" for e in words}
    holds = {
        "base": base_fits(next(words[0] for name, words in steps if name == "ARG")),
        "stages": [w[0] for name, w in steps if name == "FROM"] == ["scratch", "${BASE}"],
        "digest": "*@sha256:*" in next(" ".join(words) for name, words in steps if name == "RUN"),
        "user": [words for name, words in steps if name == "USER"][-1:] == [["1000"]],
        "environment": {f"{MODE}=token", "RAY_USAGE_STATS_ENABLED=0"} <= environment,
        "copies": copied(steps) == {line[1:] for line in ignored.split() if line[0] == "!"},
        "downloads": all(
            {"--require-hashes", "--no-deps"} & set(command.split())
            for name, words in steps
            if name == "RUN"
            for command in INSTALLS.findall(" ".join(words))
        ),
    }
    return [name for name, good in holds.items() if not good]


def base_fits(argument: str) -> bool:
    """Ray's image of the locked Ray, for Python 3.11, torch's CUDA, by digest."""
    cuda = locked("cuda-toolkit").split(".")[0]
    image = (
        rf"BASE=rayproject/ray:{locked('ray')}-py311-cu{cuda}\d@sha256:(<DIGEST>|[0-9a-f]{{64}})"
    )
    return re.fullmatch(image, argument) is not None


def copied(steps: list[tuple[str, list[str]]]) -> set[str]:
    """Return the paths that COPY takes from the repository."""
    copies = [words for name, words in steps if name == "COPY"]
    local = [words for words in copies if not any(w.startswith("--from") for w in words)]
    return {w for words in local for w in words[:-1] if not w.startswith("--")}


def test_dockerfile_passes_hadolint() -> None:
    assert hadolint(CLUSTER / "Dockerfile") == ""


def test_hadolint_finds_errors(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.replace(" --no-cache-dir", "").replace("FROM ${BASE}", "FROM ray"))
    assert {"DL3042", "DL3006"} <= set(re.findall(r"DL\d+", hadolint(wrong)))


def test_image_is_as_required() -> None:
    assert complaints(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (f"ray:{locked('ray')}", "ray:2.59.0", "base"),
        ("-cu130", "-cu128", "base"),
        ("@sha256:<DIGEST>", "", "base"),
        ("@sha256:<DIGEST>", "@sha256:12ab", "base"),
        ("FROM ${BASE}", "FROM rayproject/ray:2.60.0", "stages"),
        ("*@sha256:*)", "*)", "digest"),
        ("USER 1000", "USER root", "user"),
        (f"{MODE}=token", f"{MODE}=disabled", "environment"),
        ("COPY --chown=1000 jobs jobs", "", "copies"),
        (" --require-hashes", "", "downloads"),
        ("RUN test", "RUN curl -O model.pth && test", "downloads"),
    ],
)
def test_wrong_image_is_found(old: str, new: str, what: str) -> None:
    assert old in DOCKERFILE
    assert complaints(DOCKERFILE.replace(old, new)) == [what]


@pytest.mark.parametrize(
    ("base", "code"),
    [("ray:1@sha256:" + "0a" * 32, 0), ("rayproject/ray:2.60.0-py311-cu130", 1), ("ray", 1)],
)
def test_base_needs_a_digest(base: str, code: int) -> None:
    """`--build-arg BASE=…` may name another; the placeholder itself is no reference to Docker."""
    (check,) = re.findall(r"^RUN (case \$\{BASE\}.*)$", DOCKERFILE, re.MULTILINE)
    done = subprocess.run(["sh", "-c", check], env={"BASE": base}, capture_output=True, text=True)
    assert (done.returncode, bool(done.stdout)) == (code, bool(code))


def absent(dockerfile: str) -> list[str]:
    """Return the paths that COPY takes and the repository lacks."""
    return [s for s in sorted(copied(instructions(dockerfile))) if not (ROOT / s).exists()]


def test_copied_files_exist() -> None:
    assert absent(DOCKERFILE) == []


def test_missing_copy_is_found() -> None:
    assert "shemas" in absent(DOCKERFILE.replace("schemas schemas", "shemas schemas"))


def test_build_context_is_minimal() -> None:
    lines = [line for line in IGNORED.splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert all(line.startswith("!") or line == "**/__pycache__" for line in lines[1:])


@pytest.mark.parametrize("name", TEXTS)
def test_cluster_files_hold_no_secret(name: str) -> None:
    assert not SECRETS.search(TEXTS[name])


@pytest.mark.parametrize(
    "text",
    [
        "AWS_ACCESS_KEY_ID: AKIAABCDEFGHIJKLMNOP",
        "AWS_SECRET_ACCESS_KEY=abcdefghij/klmnop+qrstuv",
        "- {name: RAY_AUTH_TOKEN, value: x}\nRAY_AUTH_TOKEN: '0123456789abcdef'",
        "-----BEGIN RSA PRIVATE KEY-----",
        f"auth_token: {'0a' * 32}",
    ],
)
def test_secret_is_found(text: str) -> None:
    assert SECRETS.search(text)


def silent(texts: dict[str, str]) -> list[str]:
    """Files that start or call Ray and leave its authentication to a default."""
    uses = re.compile(r"\bray (?:start|up|job)\b|rayproject/ray|RAY_API_SERVER_ADDRESS")
    cr = re.compile(r"^kind: Ray", re.MULTILINE)
    return [
        name
        for name, text in texts.items()
        if (uses.search(text) and MODE not in text)
        or (cr.search(text) and not re.search(r"authOptions: \{mode: token", text))
    ]


def test_ray_always_has_an_auth_mode() -> None:
    assert silent(TEXTS) == []
    wrong = {name: text.replace("AUTH", "").replace("authO", "o") for name, text in TEXTS.items()}
    assert {"aws.yaml", "Dockerfile", "k8s/cronjob.yaml", "k8s/rayjob.yaml"} <= set(silent(wrong))


def test_readme_names_files_and_placeholders() -> None:
    readme = TEXTS["README.md"]
    files = [text for name, text in TEXTS.items() if name.endswith((".yaml", "Dockerfile"))]
    used = {result for text in files for result in PLACEHOLDER.findall(text)}
    assert used == set(FILLED_IN) == set(re.findall(r"^\| `(<\w+>)`", readme, re.MULTILINE))
    for name in TEXTS.keys() - {"README.md"}:
        folder, _, file = name.rpartition("/")
        assert (file if folder in ("", "k8s") else f"{folder}/") in readme, name


@pytest.mark.parametrize(
    ("document", "patterns"),
    [
        (
            "cluster/README.md",
            ["cluster/aws.yaml", "cluster/k8s/*.yaml", "cluster/*.json", "cluster/Dockerfile"],
        ),
        ("docs/operations.md", ["policy.json"]),
    ],
)
def test_documented_commands_fill_placeholders(
    document: str, patterns: list[str], tmp_path: Path
) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    text = (ROOT / document).read_text().replace("\\\n", "")
    (command,) = re.findall(r"^sed .*<[A-Z]+>.*$", text, re.MULTILINE)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    for pattern in patterns:
        files = list(tmp_path.glob(pattern))
        assert files
        assert not [file.name for file in files if PLACEHOLDER.search(file.read_text())]
