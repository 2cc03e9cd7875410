"""Option groups that commands share. Defaults come from the functions of `segrec_batch.api`."""

import argparse
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

if TYPE_CHECKING:
    from segrec_batch.search.filters import Filters

Group = argparse._ArgumentGroup
INDEX_OR_CACHE = "folder of the index (local or s3://), or a query cache"
_EXIT_CODES = """\
exit codes: 0 done; 1 failed, or a limit was exceeded; 2 wrong usage
"""


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Help in colours on a terminal, plain elsewhere; brackets are not markup."""

    help_markup = False
    text_markup = False
    group_name_formatter = str


def set_up(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    description: str,
    examples: str,
) -> None:
    """Give a command its function, texts, and the options that every command has."""
    describe(parser, description, examples)
    add_logging(parser)
    parser.set_defaults(run=run, error=parser.error)


def describe(parser: argparse.ArgumentParser, description: str, examples: str) -> None:
    """Give a command its texts."""
    parser.description, parser.epilog = description, f"{examples}\n{_EXIT_CODES}"


def usage_error(a: argparse.Namespace, text: str) -> NoReturn:
    """End the command with a message on its usage and exit code 2."""
    a.error(text)
    raise AssertionError


def defaults(function: Callable[..., object]) -> Mapping[str, Any]:
    """Return the defaults of the keyword-only parameters of a function."""
    return function.__kwdefaults__ or {}


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add --log-format and --quiet, for `logs.run_command`."""
    add = parser.add_argument_group("logging").add_argument
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: messages are lines of JSON on stderr, without bars and tables (default: text)",
    )
    add("--quiet", action="store_true", help="show warnings and errors only")


def add_index(group: Group, help: str = "folder of the index (local or s3://)") -> None:
    """Add --index."""
    group.add_argument("--index", required=True, metavar="INDEX", help=help)


def add_version(group: Group) -> None:
    """Add --version of an index."""
    group.add_argument(
        "--version", type=int, metavar="N", help="snapshot of the index (default: the newest)"
    )


def add_labelled_images(group: Group) -> None:
    """Add --images, --masks and --classes."""
    add = group.add_argument
    add("--images", required=True, metavar="URI", help="folder of images (local or s3://)")
    add("--masks", required=True, metavar="URI", help="folder of masks named like the images")
    add("--classes", required=True, metavar="JSON", help="class names and their mask values")


def add_dominant_class(group: Group, window: tuple[float, float]) -> None:
    """Add --masks, --classes and --window, for `--labels masks`."""
    add = group.add_argument
    add("--masks", metavar="URI", help="with masks: folder of masks named like the images")
    add("--classes", metavar="JSON", help="with masks: class names and their mask values")
    add(
        "--window",
        nargs=2,
        type=float,
        default=window,
        metavar=("LOW", "HIGH"),
        help="with masks: share that the dominant class has to fill (default: 0.29 0.96)",
    )


def check_dominant_class(a: argparse.Namespace) -> None:
    """End the command unless `--labels masks` has the options that it needs."""
    if a.labels == "masks" and not (a.masks and a.classes):
        usage_error(a, "--labels masks needs --masks and --classes")


def add_images_roots(group: Group, purpose: str) -> None:
    """Add --images-root; its help begins with `purpose`, such as "show images"."""
    group.add_argument(
        "--images-root",
        dest="images_roots",
        action="append",
        default=[],
        metavar="URI",
        help=f"{purpose} below this folder only; may be given several times (default: the folders "
        "that the index was made from)",
    )


def add_cluster_device(group: Group) -> None:
    """Add --device of a job on Ray."""
    group.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto takes the cluster's GPUs if it has any (default: auto)",
    )


def add_engine(group: Group | argparse.ArgumentParser) -> None:
    """Add --engine and --precision of the model, for `engine_choice.choose_engine`."""
    from segrec_batch.model.engines import ENGINES, PRECISIONS

    group.add_argument(
        "--engine",
        default="auto",
        choices=("auto", *ENGINES),
        help="library that runs the model; auto takes the fastest on this processor or GPU, see "
        "`segrec doctor` (default: auto)",
    )
    group.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        help="arithmetic of the backbone; auto takes bfloat16 only where it is native and the "
        "fastest (default: auto)",
    )


def add_class_filter(group: Group, k: Callable[[str], int] = int) -> None:
    """Add --class, --coverage, -k, parsed by `k`, and --keep-copies."""
    add = group.add_argument
    add("--class", dest="cls", metavar="CLASS", help="compare regions of this class, not images")
    add(
        "--coverage",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="only images in which the class fills this share, e.g. 0.29 0.96 (default: 0 1)",
    )
    add("-k", type=k, default=10, metavar="K", help="recommendations (default: 10)")
    add("--keep-copies", action="store_true", help="show images of the same bytes each")


def add_expand(group: Group) -> None:
    """Add --expand."""
    group.add_argument(
        "--expand",
        type=int,
        metavar="N",
        help="rank again by the mean of the query and its first N results, weighted by "
        "similarity³; for methods by Pearson or cosine (default: no expansion)",
    )


def add_query(parser: argparse.ArgumentParser) -> Group:
    """Add the query image, filters, method, and the engine for a new image; return the filters."""
    group = parser.add_argument_group("query image")
    image = group.add_mutually_exclusive_group(required=True)
    image.add_argument("--image", metavar="FILE", help="a new image: path, URI, or - for stdin")
    image.add_argument("--image-id", metavar="ID", help="an image of the index, by id")
    image.add_argument("--uri", metavar="URI", help="an image of the index, by path or URI")
    filters = parser.add_argument_group("filters and method")
    add_class_filter(filters)
    add = filters.add_argument
    add(
        "--scope",
        default="region",
        choices=("region", "image"),
        help="with --class: compare its regions, or whole images that have it (default: region)",
    )
    add(
        "--epsilon",
        type=float,
        metavar="E",
        help="only images with at most this semantic distance, 0 to 2: the sum over all classes "
        "of the difference in coverage",
    )
    add(
        "--method",
        default="pearson",
        metavar="M",
        help="ranking by pearson, cosine, euclidean or dot of features, the name of a "
        "descriptor of the index, e.g. texture, or NAME-METRIC, e.g. pca-cosine (default: pearson)",
    )
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--device", default="cpu", help="for --image: cpu, cuda or auto (default: cpu)"
    )
    add_engine(execution)
    return filters


def query_filters(a: argparse.Namespace) -> "Filters":
    """Return the filters and the method that the options of `add_query` name."""
    from segrec_batch.search.filters import Filters

    return Filters(
        cls=a.cls,
        coverage=tuple(a.coverage),
        k=a.k,
        scope=a.scope,
        epsilon=a.epsilon,
        distinct_content=not a.keep_copies,
        method=a.method,
    )


def add_output(group: Group, formats: Sequence[str], note: str = "") -> None:
    """Add --format and --output of a result."""
    add = group.add_argument
    add("--format", default="table", choices=formats, help=f"{note}(default: table)")
    add("--output", metavar="FILE", help="write to a file, not to stdout")


def names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names: the type of an argument."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def amount(text: str) -> float:
    """Parse a real number above 0: the type of an argument."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def version_or_time(text: str) -> int | dt.datetime:
    """Parse a version or an ISO time: the type of an argument."""
    if text.isdigit():
        return int(text)
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a version nor a time") from None
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def numbers(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers: the type of an argument."""
    return tuple(map(float, names(text)))


def windows(text: str) -> tuple[tuple[float, float], ...]:
    """Parse comma-separated ranges LOW-HIGH: the type of an argument."""
    try:
        pairs = [tuple(map(float, window.split("-"))) for window in names(text)]
        return tuple((low, high) for low, high in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give LOW-HIGH, …") from None
