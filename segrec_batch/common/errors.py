"""The exceptions of segrec_batch.

SegrecError                what every command catches, prints and turns into exit code 1
├── InputError             an argument, a class file, an image folder: the user can correct it
├── ModelError             a bundle or backbone weights that cannot be used
├── IndexStateError        an index that is missing, of another model, or changed meanwhile
│   └── AccountingError    images were lost or counted twice: nothing is published
├── StorageError           a store does not answer, or refuses: the network, credentials,
│                          throttling; try again later
├── SourceError            more sources cannot be read, or are gone, than the run accepts
├── ClusterError           Ray cannot be joined, gave the run up, or it hangs
├── DecoderError           the process that decodes images does not start on this machine
├── DriftError             an index changed more than its thresholds allow
├── DeviceError            a device was asked for and is not there
└── EngineError            an engine or a precision was asked for that does not exist here

ImageError is not among them: a bad image is data. It becomes a row of `failures`.
"""


class SegrecError(Exception):
    """Base of all errors that end a command."""


class InputError(SegrecError):
    """The caller's arguments or files are not usable; the message says what to change."""


class ModelError(SegrecError):
    """A model bundle or backbone weights cannot be used."""


class IndexStateError(SegrecError):
    """The index is not in the state that the command needs."""


class AccountingError(IndexStateError):
    """The counts of a run do not add up."""


class StorageError(SegrecError):
    """A store does not answer, or refuses: the network, credentials, throttling: try later."""


class SourceError(SegrecError):
    """More sources cannot be read, or are gone, than the caller accepts."""


class ClusterError(SegrecError):
    """The Ray cluster cannot go on with the run."""


class DecoderError(SegrecError):
    """The process that decodes images does not start."""


class DriftError(SegrecError):
    """What a report found is above a threshold of the caller; the report is written."""


class DeviceError(SegrecError):
    """The device asked for is not available."""


class EngineError(SegrecError):
    """The engine or precision asked for does not exist on this machine."""


class ImageError(Exception):
    """One image cannot be indexed: `stage` (name, read, decode) and `reason`.

    Of these `read` says nothing of the image: it may be there, and as it was.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
