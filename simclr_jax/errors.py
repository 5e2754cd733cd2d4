"""The exceptions that end a command without a traceback, and the line for other exceptions."""


class SimclrError(Exception):
    """One line that names the field or file and the remedy; main prints it without a traceback."""


class DivergedError(SimclrError):
    """A number of the training is not finite; another config may avoid that."""


class StorageError(SimclrError, OSError):
    """A file cannot be written: the disk is full, read-only or broken. The same command can resume later."""


class OutOfMemoryError(SimclrError):
    """A device or the host has too little memory for this config; another one may fit."""


class DamagedError(SimclrError):
    """A checkpoint differs from the saved state."""


class UnreadableImagesError(SimclrError):
    """More images are unreadable than the config allows."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The run received SIGTERM and has saved its state. The text says so."""


class Preempted(Stopped):
    """The state of `step` is saved."""

    def __init__(self, step: int, steps: int):
        super().__init__(f"stopped at step {step} of {steps}, saved; the same command goes on")


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of another library's exception, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Traceback") else 0].strip()[:most]
