"""Arrow files, which `datasets.save_to_disk` writes, with the few calls of a parquet file that parquet.py needs.

Their record batches are the row groups. The files are mapped into memory: what is not looked at is not read.
"""

from pathlib import Path
from typing import Any, NamedTuple

SUFFIX = ".arrow"
_FILE_MAGIC = b"ARROW1"  # of Arrow's file format; `datasets` writes its stream format


class _Group(NamedTuple):
    num_rows: int


class ArrowFile:
    """Raises OSError and pyarrow's ArrowException where there is no such file."""

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.ipc

        mapped = pyarrow.memory_map(str(path))
        if mapped.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            reader = pyarrow.ipc.open_file(mapped)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        else:
            mapped.seek(0)
            reader = pyarrow.ipc.open_stream(mapped)
            self._batches = list(reader)
        self.schema_arrow, self.num_row_groups, self.metadata = reader.schema, len(self._batches), self

    def row_group(self, number: int) -> _Group:
        return _Group(self._batches[number].num_rows)

    def read_row_group(self, number: int, columns: list[str]) -> Any:
        """A table of whole columns: "image.bytes" is that of "image"."""
        import pyarrow

        names = list(dict.fromkeys(column.partition(".")[0] for column in columns))
        return pyarrow.Table.from_batches([self._batches[number].select(names)])
