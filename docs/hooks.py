"""MkDocs hooks: add pages and files that lie outside docs/ to the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # page of the site: file of the repository
    "index.md": "README.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "cluster/README.md": "cluster/README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(\]\()([^)#:\s]+)(?=[)#])")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of PAGES, with the links of every page made relative to the site."""
    linked: set[str] = set()
    for page, source in PAGES.items():
        text = _relink(ROOT / source, page, linked)
        files.append(File.generated(config, page, content=text))
    for file in [*files.documentation_pages()]:
        if file.src_uri not in PAGES:
            source = f"docs/{file.src_uri}"
            text = _relink(ROOT / source, file.src_uri, linked)
            files.remove(file)
            files.append(File.generated(config, file.src_uri, content=text))
    for name in sorted(linked - set(PAGES.values())):
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    return files


def _relink(source: Path, page: str, linked: set[str]) -> str:
    """Return a page's text with links to files of the repository changed to those of the site.

    Adds the linked files that lie outside docs/ to `linked`.
    """
    up = "../" * page.count("/")

    def change(match: re.Match[str]) -> str:
        target = (source.parent / match[2]).resolve()
        name = target.relative_to(ROOT).as_posix()
        if target.is_dir():
            name = f"{name}/README.md"
        for site, repository in PAGES.items():
            if name == repository:
                return f"{match[1]}{up}{site}"
        if name.startswith("docs/"):
            return f"{match[1]}{up}{name.removeprefix('docs/')}"
        linked.add(name)
        return f"{match[1]}{up}{name}"

    parts = _FENCE.split(source.read_text())
    return "".join(part if i % 2 else _LINK.sub(change, part) for i, part in enumerate(parts))
