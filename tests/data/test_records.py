import io
import multiprocessing
import os
import pickle
import subprocess
import sys

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_makers import encoded, environment, vfmtok

from vfmtok.data.records import Record, RecordDataset, RecordWriter, decode_record, encode_record, write_records
from vfmtok.errors import DataError

RECORDS = [Record(encoded(i), i % 3, f"ünï/{i}.jpg") for i in range(40)]


@given(st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_record_comes_back(image, label, name):
    assert decode_record(encode_record(Record(image, label, name))) == Record(image, label, name)


def test_every_damaged_byte_is_noticed():
    blob = encode_record(Record(b"pixels" * 5, 7, "a/b.jpg"))
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 0x40
        with pytest.raises(DataError):
            decode_record(bytes(damaged))
    for size in range(len(blob)):
        with pytest.raises(DataError):
            decode_record(blob[:size])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_published_pickles_of_every_protocol_are_read(protocol):
    for image in (bytes(range(256)), b""):
        blob = pickle.dumps({"image": image, "label": 999}, protocol)
        assert decode_record(blob) == Record(image, 999, "")


class _Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    proof = tmp_path / "ran"
    attack = pickle.dumps({"image": _Attack(proof), "label": 1}, protocol)
    pickle.loads(attack)
    assert proof.exists()  # the attack is a real one
    proof.unlink()
    with lmdb.open(str(tmp_path / "set")) as opened, opened.begin(write=True) as transaction:
        transaction.put(b"0", attack)
        transaction.put(b"num_samples", b"1")
    with pytest.raises(DataError, match="system"):
        RecordDataset(tmp_path / "set")[0]
    assert not proof.exists()


@pytest.mark.parametrize(
    "blob",
    [
        b"c_codecs\nencode\n(Vx\nVidna\ntR.",  # any codec but latin1 would be imported by name
        b"cbuiltins\nbytes\n(I1000000000000\ntR.",  # an allocation
        b"cbuiltins\neval\n(V1\ntR.",
        pickle.dumps([1, 2]),
        pickle.dumps({"image": "text", "label": 1}),
        pickle.dumps({"image": b"x", "label": True}),
        b"",
        b"garbage",
    ],
)
def test_other_pickles_are_refused(blob):
    with pytest.raises(DataError):
        decode_record(blob)


@pytest.mark.parametrize("layout", ["vfmtok", "published"])
def test_a_dataset_comes_back_in_either_layout(tmp_path, layout):
    write_records(tmp_path, RECORDS, layout, classes=["a", "b", "c"])
    dataset = RecordDataset(tmp_path)
    assert [dataset[i] for i in range(len(dataset))] == RECORDS
    assert dataset[-1] == RECORDS[-1] and dataset.classes == ["a", "b", "c"]
    for index in (40, -41):
        with pytest.raises(IndexError):
            dataset[index]


def test_the_published_layout_is_what_plain_pickle_reads(tmp_path):
    write_records(tmp_path, RECORDS[:5], "published")
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as opened, opened.begin() as transaction:
        assert int(transaction.get(b"num_samples")) == 5
        for i in range(5):
            assert pickle.loads(transaction.get(str(i).encode())) == {"image": RECORDS[i].image, "label": i % 3}


@pytest.mark.parametrize("count", [b"2", pickle.dumps(2), pickle.dumps("2"), pickle.dumps(b"2", 2)])
def test_foreign_datasets_need_no_metadata(tmp_path, count):
    for folder, second in (("x", b"two"), ("y", b"2wo")):
        with lmdb.open(str(tmp_path / folder)) as opened, opened.begin(write=True) as transaction:
            transaction.put(b"0", pickle.dumps({"image": b"one", "label": 5}))
            transaction.put(b"1", pickle.dumps({"image": second, "label": 0}))
            transaction.put(b"num_samples", count)
    dataset = RecordDataset(tmp_path / "x")
    assert [dataset[0], dataset[1]] == [Record(b"one", 5, ""), Record(b"two", 0, "")]
    assert dataset.classes is None and dataset.metadata == {}
    assert dataset.fingerprint != RecordDataset(tmp_path / "y").fingerprint
    assert len(bytes.fromhex(dataset.fingerprint)) == 32


def test_the_fingerprint_tells_records_and_order_apart(tmp_path):
    variants = [RECORDS, RECORDS[::-1], RECORDS[:-1], [Record(RECORDS[0].image, 2, RECORDS[0].name), *RECORDS[1:]]]
    prints = set()
    for i, records in enumerate(variants):
        write_records(tmp_path / str(i), records)
        prints.add(RecordDataset(tmp_path / str(i)).fingerprint)
    assert len(prints) == len(variants)
    write_records(tmp_path / "published", RECORDS, "published")
    assert RecordDataset(tmp_path / "published").fingerprint == RecordDataset(tmp_path / "0").fingerprint


def _names(dataset):
    return [dataset[i].name for i in (0, 17, 39)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_an_opened_dataset(tmp_path, method):
    write_records(tmp_path, RECORDS)
    first, second = RecordDataset(tmp_path), RecordDataset(tmp_path)  # two on one file share the environment
    assert _names(first) == _names(second)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_names, [first, second, first]) == [_names(first)] * 3
    assert _names(first) == _names(second)


def test_the_map_grows_within_one_transaction(tmp_path):
    with RecordWriter(tmp_path, map_size=1 << 16) as writer:
        writer.append((Record(bytes([i]) * 100_000, i, str(i)) for i in range(20)), 20)
        writer.finish()
    assert [r.image for r in map(RecordDataset(tmp_path).__getitem__, range(20))] == [
        bytes([i]) * 100_000 for i in range(20)
    ]


def test_missing_foreign_and_unfinished_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk/data.mdb").write_bytes(b"no database " * 1000)
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero/data.mdb").touch()
    for name in ("absent", "empty", "junk", "zero"):
        with pytest.raises(DataError, match=name):
            RecordDataset(tmp_path / name)
    with RecordWriter(tmp_path / "begun") as writer:
        writer.append(RECORDS, 40)
    with pytest.raises(DataError, match="begun is not complete"):
        RecordDataset(tmp_path / "begun")
    with pytest.raises(DataError, match="unfinished"):
        write_records(tmp_path / "begun", RECORDS)


def test_the_last_dataset_to_go_closes_the_file(tmp_path):
    write_records(tmp_path, RECORDS)
    first, second = RecordDataset(tmp_path), RecordDataset(tmp_path)
    del first
    assert second[3] == RECORDS[3]
    del second
    lmdb.open(str(tmp_path)).close()  # LMDB refuses a second environment while one is open


def test_a_complete_dataset_is_not_overwritten(tmp_path):
    write_records(tmp_path, RECORDS)
    reader = RecordDataset(tmp_path)
    with pytest.raises(DataError):
        write_records(tmp_path, RECORDS[:3])
    assert reader[39] == RECORDS[39]
    del reader
    with pytest.raises(DataError, match="complete"):
        write_records(tmp_path, RECORDS[:3])
    assert len(RecordDataset(tmp_path)) == 40


_WRITER = """
import sys
from vfmtok.data.records import Record, RecordWriter
with RecordWriter(sys.argv[1]) as writer:
    writer.append([Record(b"x" * 5000, 0, str(i)) for i in range(100)], 100)
    print("begun", flush=True)
    sys.stdin.readline()
    writer.append([Record(b"y" * 5000, 0, str(i)) for i in range(100, 200)], 200)
    writer.finish()
"""


def test_reading_while_another_process_writes(tmp_path):
    done = tmp_path / "done"
    write_records(done, RECORDS)
    undisturbed = RecordDataset(done)
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "set")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    with pytest.raises(DataError, match="not complete"):
        RecordDataset(tmp_path / "set")
    with RecordWriter(tmp_path / "set") as second:
        assert second.progress["count"] == 100
        process.communicate("go\n")
        assert process.returncode == 0
        with pytest.raises(DataError, match="another process"):
            second.append([Record(b"z", 0, "z")], 101)
    assert RecordDataset(tmp_path / "set")[150].image == b"y" * 5000
    assert [undisturbed[i] for i in range(40)] == RECORDS


def test_pickling_leaves_the_environment_behind(tmp_path):
    write_records(tmp_path, RECORDS)
    dataset = RecordDataset(tmp_path)
    buffer = io.BytesIO()
    pickle.dump(dataset, buffer)
    assert len(buffer.getvalue()) < 2000  # no key list, no records
    assert pickle.loads(buffer.getvalue())[7] == RECORDS[7]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])  # of 4 MB: more than the tail LMDB may leave unwritten
def test_a_dataset_cut_short_is_named(tmp_path, share):
    write_records(tmp_path / "d", (Record(bytes(40_000), 0, f"{i}") for i in range(100)))
    file = tmp_path / "d/data.mdb"
    os.truncate(file, int(file.stat().st_size * share))
    for command in ("stats", "prepare --verify"):  # in a process of their own: a missing page is a SIGBUS
        result = vfmtok(*command.split(), tmp_path / "d")
        assert result.returncode == 2, result
        assert f"{tmp_path / 'd'} is cut short" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("metadata", [b"[1]", b"3", b'"text"', b"null"])
def test_metadata_that_is_no_object_is_damaged(tmp_path, metadata):
    write_records(tmp_path, RECORDS[:2])
    with lmdb.open(str(tmp_path)) as opened, opened.begin(write=True) as transaction:
        transaction.put(b"metadata", metadata)
    with pytest.raises(DataError, match="damaged metadata"):
        RecordDataset(tmp_path)
