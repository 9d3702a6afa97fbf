import pickle
import resource
import struct
import subprocess
import sys

import pytest
from image_makers import environment

from vfmtok.data.published_records import unpickle_builtins

_TEXT = b"\x80\x02X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x000]("
_CALL = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
BOMBS = {
    "long memo index": b"\x80\x02Nr" + struct.pack("<I", 2**27) + b".",
    "text memo index": b"Np134217728\n.",
    "copies": _TEXT + _CALL * 2000 + b"e.",
}


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


@pytest.mark.parametrize("name", BOMBS)
def test_a_memory_bomb_is_refused_before_it_allocates(tmp_path, name):
    (tmp_path / "bomb").write_bytes(BOMBS[name])
    code = "import resource, sys\nfrom vfmtok.data.published_records import unpickle_builtins\n"
    code += "from vfmtok.errors import DataError\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "try: unpickle_builtins(open(sys.argv[1], 'rb').read())\nexcept DataError as error: print(error)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    command = [sys.executable, "-c", code, tmp_path / "bomb"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), preexec_fn=_limit_memory)
    message, growth = result.stdout.splitlines()
    assert "memo index" in message or "2000 calls" in message
    assert int(growth) < 64 << 10  # KiB


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_large_honest_pickles_are_read(protocol):
    value = {"image": bytes(range(256)) * 40, "label": 3, "more": [str(i) for i in range(300)]}
    assert unpickle_builtins(pickle.dumps(value, protocol)) == value
