"""Places that a command is about to write to: whether what is written stays, and whose they are.

`ray job submit --working-dir` copies a project into a folder of Ray's session, in which the job
then runs, and deletes the folder some time after. A relative path leads there.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from segrec_batch.common.errors import InputError
from segrec_batch.model.spec import BUNDLE_FILE
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import read_json

log = logging.getLogger(__name__)

_UPLOADED = re.compile(r".*/runtime_resources/working_dir_files/[^/]+")  # Ray's names, in a session


def check_places(outputs: Mapping[str, object], inputs: Mapping[str, object] | None = None) -> None:
    """Refuse to write into a project that was uploaded to Ray, and say what is read from there.

    Args:
        outputs: paths or URIs by option; what is empty or None is left out.
        inputs: the same; what does not exist, such as SQL in place of a file, is left out.

    Raises InputError for an output that lies in such a project.
    """
    for option, place in outputs.items():
        if place and _folder_of(str(place)):
            raise InputError(
                f"{option} {place} lies in the project that was uploaded to Ray, a copy that Ray "
                "deletes after the job: give an absolute path that every node sees, or an s3:// URI"
            )
    given = {option: str(place) for option, place in (inputs or {}).items() if place}
    read = [o for o, p in given.items() if _folder_of(p) and Path(storage.absolute(p)).exists()]
    if read:
        log.info(
            f"{', '.join(read)}: read from the project that was uploaded to Ray, "
            f"{_folder_of(given[read[0]])}, a copy that Ray deletes after the job"
        )


def _folder_of(place: str) -> str | None:
    """Return the uploaded project that a local path lies in."""
    if storage.is_remote(place):
        return None
    found = _UPLOADED.match(storage.absolute(place))
    return found[0] if found else None


def check_bundle_place(output: str) -> None:
    """Raise InputError for a folder that holds anything but a model bundle."""
    way_out = "give a new or empty folder as --output"
    storage.refuse_strangers(
        output, lambda path: bool(re.fullmatch(BUNDLE_FILE, path)), "a model bundle", way_out
    )
    try:
        ours = "model_id" in read_json(storage.join(output, "model.json"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{output} holds a model.json that is no model bundle's; {way_out}")
