"""The exceptions of segrec_batch.

SegrecError                base: a command prints it and ends with exit code 1
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

ImageError is not a SegrecError: a bad image is data and becomes a row of `failures`.
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
    """A store does not answer, or refuses (network, credentials, throttling): try later."""


class SourceError(SegrecError):
    """More sources cannot be read, or are gone, than the caller accepts."""


class ClusterError(SegrecError):
    """The Ray cluster cannot be joined, or cannot continue the run."""


class DecoderError(SegrecError):
    """The process that decodes images does not start."""


class DriftError(SegrecError):
    """A measure of drift is above the caller's limit; the report is written."""


class DeviceError(SegrecError):
    """The device asked for is not available."""


class EngineError(SegrecError):
    """The engine or precision asked for does not exist on this machine."""


class ImageError(Exception):
    """One image cannot be indexed.

    Attributes:
        stage: name, read or decode; after `read` the image may still be unchanged.
        reason: text.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
