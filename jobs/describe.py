"""Switch descriptors on in a model: fits what they have to learn on the images of an index."""

import argparse
import logging
import sys

from segrec_batch.cli.options import add_images_root
from segrec_batch.cli.places import check_bundle_place, check_places
from segrec_batch.common import console, logs
from segrec_batch.descriptors import summaries
from segrec_batch.sources import storage

log = logging.getLogger("segrec_batch.jobs")

EXAMPLES = """\
examples:
  python jobs/describe.py --index indexes/streets --output models/streets2 \\
      --add pca:dimension=32 --add resnet50:weights=resnet50.pth
  # categories by folder; weights from a bucket; one descriptor less
  python jobs/describe.py --index s3://bucket/index --output s3://bucket/model2 \\
      --add localised:weights=s3://bucket/resnet50.safetensors,category=folder --drop pca

The model stays the same; only what it computes of an image besides changes. The indexing job, with
--model MODEL, then computes what is missing.

descriptors:
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    known = "".join(f"  {name:<10}{text}\n" for name, text in summaries().items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES + known,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help="index of the images to learn from")
    add("--output", required=True, metavar="MODEL", help="folder for the new bundle")
    add(
        "--add",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,…]",
        help="descriptor to switch on, or to fit anew; may be given several times",
    )
    add("--drop", action="append", default=[], metavar="NAME", help="descriptor to switch off")
    add("--model", metavar="MODEL", help="bundle to start from (default: the index's own)")
    add(
        "--samples",
        type=console.count,
        default=1000,
        metavar="N",
        help="images at most that a descriptor which learns from images reads (default: 1000)",
    )
    add_images_root(parser, "read images")
    parsed = parser.parse_args()
    if not parsed.add and not parsed.drop:
        parser.error("nothing to do: give --add or --drop")
    return parsed


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.pipeline import (
        descriptor_setup as describing,  # torch and Ray, which --help need not wait for
    )
    from segrec_batch.pipeline.samples import IndexSamples

    check_places({"--output": a.output}, {"--index": a.index, "--model": a.model})
    check_bundle_place(a.output)
    additions = [describing.parse_addition(text) for text in a.add]
    snapshot = open_snapshot(storage.absolute(a.index))
    describing.check_output(snapshot, a.output)
    model = describing.model_of(snapshot, a.model)
    samples = IndexSamples(snapshot, a.samples, a.images_roots)
    model = describing.described(model, additions, a.drop, samples)
    rows = [[name, str(length)] for name, length in describing.lengths(model).items()]
    model.save(a.output)
    if model.spec.notice:
        log.warning(model.spec.notice)
    title = f"bundle {model.bundle_id} of model {model.model_id}"
    console.show(console.table(title, ("descriptor", "values"), rows))
    console.show_line(
        f"written to {storage.absolute(a.output)}; this computes only what is missing:\n"
        f"python jobs/index.py --images IMAGES --model {a.output} --index {a.index}"
    )


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
