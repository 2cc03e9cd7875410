"""`segrec describe`: switch descriptors on in a model."""

import argparse
import logging

from segrec_batch.cli.options import add_images_roots, add_index, set_up, usage_error
from segrec_batch.cli.output import check_places
from segrec_batch.common import console

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Switch descriptors on in a model: fit what they have to learn on the images of an index."
)
_EXAMPLES = """\
examples:
  segrec describe --index indexes/streets --output models/streets2 \\
      --add pca:dimension=32 --add resnet50:weights=resnet50.pth
  # vectors averaged with their neighbours; the same command refreshes the reference set
  segrec describe --index indexes/streets --output models/streets3 --add root-pca:augment=1
  # categories by folder; weights from a bucket; a descriptor switched off
  segrec describe --index s3://bucket/index --output s3://bucket/model2 \\
      --add localised:weights=s3://bucket/resnet50.safetensors,category=folder --drop pca

The model stays the same; only its descriptors change. `segrec index --model MODEL` then computes
the missing vectors.

descriptors:
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from segrec_batch.descriptors import summaries

    storage = parser.add_argument_group("storage")
    add_index(storage, "index of the images to learn from")
    storage.add_argument(
        "--output", required=True, metavar="MODEL", help="folder for the new bundle"
    )
    storage.add_argument(
        "--model", metavar="MODEL", help="bundle to start from (default: the index's own)"
    )
    add_images_roots(storage, "read images")
    add = parser.add_argument_group("descriptors").add_argument
    add(
        "--add",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,…]",
        help="descriptor to switch on, or to fit anew; may be given several times",
    )
    add("--drop", action="append", default=[], metavar="NAME", help="descriptor to switch off")
    add(
        "--samples",
        type=console.count,
        default=1000,
        metavar="N",
        help="images at most that a descriptor which learns from images reads (default: 1000)",
    )
    lines = "".join(f"  {name:<10}{text}\n" for name, text in summaries().items())
    set_up(parser, run, _DESCRIPTION, _EXAMPLES + lines)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    if not a.add and not a.drop:
        usage_error(a, "nothing to do: give --add or --drop")
    from segrec_batch.api.train import check_bundle_place
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.pipeline import descriptor_setup
    from segrec_batch.pipeline.samples import IndexSamples
    from segrec_batch.sources import storage

    check_places({"--output": a.output}, {"--index": a.index, "--model": a.model})
    check_bundle_place(a.output)
    additions = [descriptor_setup.parse_addition(text) for text in a.add]
    snapshot = open_snapshot(storage.absolute(a.index))
    descriptor_setup.check_output(snapshot, a.output)
    model = descriptor_setup.load_index_model(snapshot, a.model)
    samples = IndexSamples(snapshot, a.samples, a.images_roots)
    model = descriptor_setup.change_descriptors(model, additions, a.drop, samples)
    rows = [[name, str(length)] for name, length in descriptor_setup.vector_lengths(model).items()]
    model.save(a.output)
    if model.spec.notice:
        log.warning(model.spec.notice)
    title = f"bundle {model.bundle_id} of model {model.model_id}"
    console.show(console.table(title, ("descriptor", "values"), rows))
    console.show_line(f"written to {storage.absolute(a.output)}; compute the missing vectors with")
    console.show_line(f"segrec index --images IMAGES --model {a.output} --index {a.index}")
