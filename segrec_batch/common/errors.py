"""The exceptions of segrec_batch.

SegrecError                base: a command prints it and ends with exit code 1
├── InputError             an argument, a class file, an image folder: the user can correct it
├── ModelError             a bundle or backbone weights that cannot be used
├── IndexStateError        an index that is missing, of another model, or changed meanwhile
│   └── AccountingError    a run missed or counted images twice: nothing is published
├── StorageError           a store does not answer or refuses (network, credentials,
│                          throttling); try again later
├── SourceError            more sources are unreadable or missing than the run accepts
├── ClusterError           Ray cannot be joined, stopped the run, or hangs
├── DecoderError           the process that decodes images does not start on this machine
├── DriftError             an index changed more than its thresholds allow
├── DeviceError            the requested device is not available
└── EngineError            the requested engine or precision is not available

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
    """A store does not answer or refuses (network, credentials, throttling); try again later."""


class SourceError(SegrecError):
    """More sources are unreadable or missing than the caller accepts."""


class ClusterError(SegrecError):
    """The Ray cluster cannot be joined, or cannot continue the run."""


class DecoderError(SegrecError):
    """The process that decodes images does not start."""


class DriftError(SegrecError):
    """A measure of drift is above the caller's limit; the report was written."""


class DeviceError(SegrecError):
    """The requested device is not available."""


class EngineError(SegrecError):
    """The requested engine or precision is not available on this machine."""


class ImageError(Exception):
    """One image cannot be indexed.

    Attributes:
        stage: name, read or decode; after `read`, the image may still be unchanged.
        reason: the cause, as text for `failures`.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
