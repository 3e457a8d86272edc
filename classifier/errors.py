"""Every error that is the user's to mend.

    ClassifierError
    ├── ConfigError            a key or value of the command line or of a YAML file
    ├── DatasetError           the folder of class folders
    ├── UnknownModel           a model name or path that cannot be loaded
    ├── BadModelFolder         a model folder that is torn, changed or of another schema
    ├── ClusterError           Ray cannot be reached, or does not hold what was asked for
    ├── OutputError            results cannot be written
    ├── Interrupted            the user pressed Ctrl-C
    └── BadImage               one picture; `reason` is a stable word for counts and HTTP answers
        ├── EmptyImage
        ├── UnsupportedFormat
        ├── TooManyBytes
        ├── TooManyPixels
        ├── NotAFile
        └── OutOfReach

A message says what was found, what was expected and what to do. Errors cross Ray processes, so none takes more than the
message: an `__init__` of its own would not survive pickling.
"""


class ClassifierError(Exception):
    """Base of what an entry point turns into one line and exit code 2."""


class ConfigError(ClassifierError, ValueError):
    """A configuration key or value is wrong."""


class DatasetError(ClassifierError, ValueError):
    """The dataset is missing, or is not a folder of class folders with enough pictures."""


class UnknownModel(ClassifierError, ValueError):
    """A model name or path cannot be loaded."""


class BadModelFolder(ClassifierError, ValueError):
    """A model folder is missing, torn, changed since it was written, or of another schema version."""


class ClusterError(ClassifierError, RuntimeError):
    """Ray cannot be reached, or the cluster cannot hold what was asked for."""


class OutputError(ClassifierError, OSError):
    """Results cannot be written."""


class Interrupted(ClassifierError):
    """The user asked to stop."""


class BadImage(ClassifierError, ValueError):
    """A picture that cannot be used. `reason` is one stable word: it is counted, and shown to users."""

    reason = "unreadable"


class EmptyImage(BadImage):
    """No bytes, or no pixels."""

    reason = "empty"


class UnsupportedFormat(BadImage):
    """The bytes are not one of the formats that `image.FORMATS` names."""

    reason = "unsupported_format"


class TooManyBytes(BadImage):
    """The file or body is larger than the stated limit."""

    reason = "too_many_bytes"


class TooManyPixels(BadImage):
    """The picture declares more pixels than the stated limit, or would need them on the way to the network."""

    reason = "too_many_pixels"


class NotAFile(BadImage):
    """The path is a folder, a FIFO, a socket or a device: opening it could block for ever."""

    reason = "not_a_file"


class OutOfReach(BadImage):
    """The storage that holds the picture did not give it: it may be fine, and later readable."""

    reason = "out_of_reach"
