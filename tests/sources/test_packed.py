import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfmtok.sources import listing, packed
from vfmtok.sources.class_folders import IMAGE, Image
from vfmtok.sources.files import FOUND, Found
from vfmtok.sources.packed import Packed, repeated

PLACES = [
    ("file", "/data", "a/b.jpg"),
    ("zip", "/data/x.zip", 1 << 40, 9, 8, 2**32 - 1),
    ("sparse", "/data/x.tar", 512, 4096, ((0, 10), (2048, 1))),
]


def founds(count):
    names = ("plain.jpg", "größe/猫.png", "not utf-8 \udcff.gif")
    labels = (None, 3, "tench, Tinca tinca")
    return [
        Found(f"{number * 7919 % count:05d}/{names[number % 3]}", number, "", PLACES[number % 3], labels[number % 3])
        for number in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2 * packed.BLOCK), max_size=4), st.data())
def test_it_is_the_list_that_it_was_filled_with(sizes, data):
    expected, found = [], Packed(FOUND)
    for size in sizes:  # blocks of several lists in one
        found.extend(Packed(FOUND, founds(size)))
        expected += founds(size)
    assert list(found) == expected and len(found) == len(expected) and bool(found) == bool(expected)
    start, stop = (data.draw(st.integers(0, len(expected) + 2)) for _ in range(2))
    assert found[start:stop] == list(found.between(start, stop)) == expected[start:stop]
    if start < len(expected):
        assert found[start] == expected[start]
    else:
        with pytest.raises(IndexError):
            found[start]


def test_sorting_keeps_the_order_of_equals_over_all_runs(monkeypatch):
    monkeypatch.setattr(packed, "RUN", 100)
    images = [Image("p/", found.path, "train", found.label, found, 0) for found in founds(3000)]
    found = Packed(IMAGE, images)
    assert list(found.sorted(lambda image: image.path[:4])) == sorted(images, key=lambda image: image.path[:4])
    in_order = found.sorted(lambda image: image.found.size)
    assert in_order is found


def test_an_image_takes_less_than_fifty_bytes():
    tracemalloc.start()
    kept = Packed(FOUND)
    for number in range(20_000):
        path = f"n{number // 1300:08d}/n{number // 1300:08d}_{number * 37 % 99991}.JPEG"
        kept.append(Found(path, 100_000 + number * 7919 % 50_000, "", ("file", "/data/imagenet/train", path)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 20_000 * 50


def test_repeated_texts():
    assert repeated(["a", "b", "c"]) == frozenset()
    assert repeated(["a", "b", "a", "c", "a"]) == {hash("a")}


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a.png", "a-2.png", "a-3.png", "b/a.png", "c"]), max_size=12))
def test_names_are_those_that_a_set_of_all_names_would_give(names):
    unique = listing._UniqueNames(names)
    given_names = [unique(name) for name in names]
    assert len(set(given_names)) == len(names)
    taken, repeats, expected = set(), {}, []
    for name in names:
        candidate = name
        while candidate in taken:
            repeats[name] = repeats.get(name, 1) + 1
            stem, dot, suffix = name.rpartition(".")
            candidate = f"{stem}-{repeats[name]}.{suffix}" if dot else f"{name}-{repeats[name]}"
        taken.add(candidate)
        expected.append(candidate)
    assert given_names == expected
