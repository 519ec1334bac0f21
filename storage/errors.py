"""The exceptions a user can meet.

    ShardlineError            anything below; its text is meant to be read by a person
    ├── ParamsError           params.yaml: an unknown name, a wrong type, a value out of range
    ├── SourceError           a source that does not exist, matches nothing or cannot be read
    ├── DataError             data that breaks its contract (too much quarantined, an empty split, …)
    ├── FormatError           a file of ours with an unknown format version, or malformed
    ├── DigestError           bytes that differ from the digest that was noted of them
    ├── LakeError             the lake cannot be read or written (full disk, permissions, network)
    ├── TrackingError         MLflow is needed and cannot be used
    ├── OutOfMemory           a rank's memory or its device's is too small for the settings
    ├── Hung                  ranks that took no step any more were given up
    └── Interrupted           SIGINT or SIGTERM: state was saved, the same command goes on

A message says what happened, to which thing, the likely cause, and the setting to change. It holds no password: what
looks like one is masked when the exception is made.
"""

from storage.redact import mask


class ShardlineError(Exception):
    """Base of all errors that are reported without a traceback. `exit_code` is the process's."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask(arg) if isinstance(arg, str) else arg for arg in args))


class ParamsError(ShardlineError):
    exit_code = 2


class SourceError(ShardlineError):
    pass


class DataError(ShardlineError):
    pass


class FormatError(ShardlineError):
    pass


class DigestError(ShardlineError):
    """`what` holds bytes with digest `found` where the manifest (or what else `says` so) says `expected`."""

    def __init__(self, what: str, expected: str, found: str, says: str = "The manifest") -> None:
        super().__init__(
            f"{what}: digest mismatch. {says} says {expected}, the bytes have {found}. "
            "The file was damaged or replaced after it was written; restore it with `dvc checkout` or "
            "`dvc pull`, or delete it and run the stage again."
        )
        self.what, self.expected, self.found, self.says = what, expected, found, says

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.what, self.expected, self.found, self.says)  # so that it crosses processes


class LakeError(ShardlineError):
    pass


class Cancelled(LakeError):
    """A read that nobody waits for any more."""


class TrackingError(ShardlineError):
    pass


class OutOfMemory(ShardlineError):
    exit_code = 12  # ENOMEM; the same command fails the same way


class Hung(ShardlineError):
    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed


class Interrupted(ShardlineError):
    """Raised on SIGINT or SIGTERM once it is safe to leave; `signum` gives the exit code 128 + signum."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.signum)
