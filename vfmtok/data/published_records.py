"""Pickles of the published layout, read without running code or giving memory away."""

import io
import pickle
import pickletools
from typing import Any

from vfmtok.errors import DataError

_MAX_CALLS = 8  # a record has one, for its bytes; each could copy the same long text again


def unpickle_builtins(blob: bytes) -> Any:
    """Unpickle dicts, lists, text, bytes and numbers. Raises DataError for everything else."""
    try:
        _check_size(blob)
        return _BuiltinUnpickler(io.BytesIO(blob)).load()
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"refused or damaged pickle: {reason}") from None


def _check_size(blob: bytes) -> None:
    """Refuse pickles that would take far more memory than they are long: the unpickler's memo is an
    array as long as the largest index that a pickle names."""
    calls = 0
    for opcode, argument, _ in pickletools.genops(blob):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= len(blob):
            raise pickle.UnpicklingError(f"memo index {argument} in {len(blob)} bytes")
        calls += opcode.name == "REDUCE"
    if calls > _MAX_CALLS:
        raise pickle.UnpicklingError(f"it makes {calls} calls")


class _BuiltinUnpickler(pickle.Unpickler):
    """Containers, text and numbers have opcodes of their own and need no lookup by name. Only bytes
    written with protocol 2 or lower do, as ``_codecs.encode(text, "latin1")`` or ``bytes()``."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) in (("builtins", "bytes"), ("__builtin__", "bytes")):
            return _no_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the real encode() would import a codec of any name
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:  # the real bytes() would allocate any number of them
    return b""
