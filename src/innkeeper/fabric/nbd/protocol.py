"""Numbers and packed structures of the NBD protocol, big-endian throughout."""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct

from innkeeper.model.problems import Invalid, NoSpace, Problem, Refused, Unavailable

GREETING_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = Struct(">8s8sH")
OPTION = Struct(">8sII")
"""Magic, option, length of its data."""
OPTION_REPLY = Struct(">QIII")
"""Magic, option, reply type, length of its data."""
REQUEST = Struct(">IHHQQI")
"""Magic, flags, type, cookie, offset, length."""
SIMPLE_REPLY = Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK = Struct(">IHHQI")
"""Magic, flags, type, cookie, length of what follows."""

MAX_OPTION_BYTES = 16 << 10
"""Names are at most 4,096 bytes; nothing that a client says in an option needs more than this."""
MAX_NAME_BYTES = 4096
MAX_REQUEST_BYTES = 32 << 20

BASE_ALLOCATION = "base:allocation"
BASE_ALLOCATION_ID = 1


class HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ChunkType(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


CHUNK_DONE = 1


class NbdError(IntEnum):
    """The errors that the protocol knows; their numbers are Linux's."""

    EPERM = errno.EPERM
    EIO = errno.EIO
    ENOMEM = errno.ENOMEM
    EINVAL = errno.EINVAL
    ENOSPC = errno.ENOSPC
    EOVERFLOW = errno.EOVERFLOW
    ENOTSUP = errno.EOPNOTSUPP
    ESHUTDOWN = errno.ESHUTDOWN


def command_flags(structured: bool) -> dict[int, int]:
    """The flags that each command may carry: FUA on every one, as the protocol asks; DF with structured replies only.

    Plain numbers: ``~`` of an ``IntFlag`` knows only its own bits in some versions of Python.
    """
    fua = CommandFlag.FUA
    return {
        Command.READ: int(fua | CommandFlag.DF if structured else fua),
        Command.WRITE: int(fua),
        Command.FLUSH: int(fua),
        Command.TRIM: int(fua),
        Command.WRITE_ZEROES: int(fua | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
        Command.BLOCK_STATUS: int(fua | CommandFlag.REQ_ONE),
    }


def error_of(problem: Problem) -> NbdError:
    """The protocol's error for a problem."""
    if isinstance(problem, NoSpace):
        return NbdError.ENOSPC
    if isinstance(problem, Refused):
        return NbdError.EPERM
    if isinstance(problem, Invalid):
        return NbdError.EINVAL
    if isinstance(problem, Unavailable):
        return NbdError.ESHUTDOWN
    return NbdError.EIO


def write_error(problem: Problem, end: int, size_bytes: int) -> NbdError:
    """The same for a write; one beyond the export's end is to be ENOSPC."""
    return NbdError.ENOSPC if isinstance(problem, Invalid) and end > size_bytes else error_of(problem)
