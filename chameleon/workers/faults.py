"""Decides whose fault a failure is: the candidate's, or that of the environment which all candidates share.

A candidate that cannot be built or run says something about its configuration, so a searcher learns from it. A missing
compiler, a full disk or an absent device says nothing about any configuration. It must never become a trial.

Where the cause is known, our own code raises `EnvironmentFault`, also inside workers. Only the texts of errors that
others write (TVM's builders and runners, linkers, drivers) are compared with patterns. Both ways meet here.
"""

from __future__ import annotations

import errno
import re

from chameleon.errors import ChameleonError

ENVIRONMENT = "environment"
"""The reason of an outcome whose cause is the environment; also the first word of its message."""


class EnvironmentFault(ChameleonError):
    """Something that every candidate needs is missing or broken; the message says what, and what to do."""


COMPILER_ADVICE = "install a C++ compiler, for instance `apt install g++`, or name one in the variable CXX"
_DISK_ADVICE = "free some space, or set the variable TMPDIR to another folder"
_TARGET_ADVICE = "give a --target that is this machine, or measure on another one with --tracker"
_TRACKER_ADVICE = "check that the tracker runs (python -m tvm.exec.query_rpc_tracker) and that devices registered"
_DEVICE_ADVICE = "check the device and its driver"
_PROCESS_ADVICE = "end other programs, or raise the limits of this user or container"

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_LIMIT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
_DEVICE_ERRORS = (errno.ENODEV, errno.ENXIO)

_TOOLS = r"(?:[\w.-]+-)?(?:g\+\+|gcc|clang\+\+|clang|c\+\+|cc|ld|lld|nvcc|hipcc|ccache|xcrun)(?:-[\d.]+)?"
_PATTERNS = (
    (r"No space left on device|Disk quota exceeded|Read-only file system", _DISK_ADVICE),
    (rf"(?:No such file or directory|Permission denied): '(?:[^'\s]*/)?{_TOOLS}'", COMPILER_ADVICE),
    (r"(?:No such file or directory|Permission denied): '(?:[^'\s]*/)?tar'", "install `tar`: it packs what is built"),
    (r"expected str, bytes or os\.PathLike object, not NoneType", COMPILER_ADVICE),  # TVM runs a compiler named None
    (r"error: (?:cannot execute|cannot find 'ld'|unable to execute command)[^\n]*", COMPILER_ADVICE),
    (r"file in wrong format|wrong ELF class|[Ee]xec format error|cannot execute binary file", _TARGET_ADVICE),
    (r"Unable to connect to the tracker|Cannot connect to tracker|Cannot request \S+ after", _TRACKER_ADVICE),
    (r"Connection refused|No route to host|Network is unreachable|Name or service not known", _TRACKER_ADVICE),
    (r"CUDA_ERROR_NO_DEVICE|no CUDA-capable device|CUDA driver version is insufficient", _DEVICE_ADVICE),
    (r"CUDA_ERROR_(?:NOT_INITIALIZED|SYSTEM_DRIVER_MISMATCH|ECC_UNCORRECTABLE)", _DEVICE_ADVICE),
    (r"hipErrorNoDevice|DEVICE_LOST", _DEVICE_ADVICE),
)
_COMPILED = tuple((re.compile(pattern), advice) for pattern, advice in _PATTERNS)


def cause_in(message: str) -> str | None:
    """What is wrong with the environment, from the text of somebody else's error; None: nothing is known to be."""
    for pattern, advice in _COMPILED:
        if found := pattern.search(message):
            return f"{_line_around(message, found)}; {advice}"
    return None


def cause_of(error: BaseException) -> str | None:
    """What is wrong with the environment, from an exception; None if the candidate itself may be the cause."""
    if isinstance(error, EnvironmentFault):
        return str(error)
    if isinstance(error, OSError):
        for numbers, advice in (
            (_DISK_ERRORS, _DISK_ADVICE),
            (_LIMIT_ERRORS, _PROCESS_ADVICE),
            (_DEVICE_ERRORS, _DEVICE_ADVICE),
        ):
            if error.errno in numbers:
                where = f" ({error.filename})" if error.filename else ""
                return f"{error.strerror}{where}; {advice}"
    return cause_in(str(error))


def last_line(text: str, limit: int = 300) -> str:
    """The last line of a text that is not empty: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else "no message"


def _line_around(message: str, found: re.Match[str]) -> str:
    start = message.rfind("\n", 0, found.start()) + 1
    end = message.find("\n", found.end())
    line = message[start : end if end >= 0 else len(message)].strip()
    return line if len(line) <= 300 else found.group()
