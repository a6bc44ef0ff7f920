"""The artifacts on disk: what goes in comes out, damage is noticed, and a file is whole or absent."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from beco.artifacts import store
from beco.artifacts.files import read_json, whole, write_json
from beco.artifacts.folders import whole_folder
from beco.artifacts.store import Store, create, gather
from beco.errors import UserError


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "000001": rng.integers(0, 256, (5, 7), dtype=np.uint8),
        "a.b-c": rng.random((3, 4, 2)).astype(np.float16),
        "wide": rng.normal(size=(1, 50)).astype(np.float32),
        "flags": rng.random((4, 4)) < 0.5,
        "nothing": np.zeros((0, 6, 5), np.float16),  # a picture without classes has no CAM
        "signed": np.array([-3, 2**40]),
        "odd": np.array([np.nan, np.inf, -0.0], np.float16),
    }


def write(path: Path, content: dict[str, np.ndarray], layer: str = "cam", **attributes: object) -> Path:
    with create(path, **attributes) as writer:
        for image_id, array in content.items():
            writer.put(layer, image_id, array, classes=[1, 3])
    return path


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# --- round trip ---------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    content = some_arrays()
    settings = {"scales": [0.5, 1], "name": "é", "none": None}
    with Store(write(tmp_path / "new" / "s.h5", content, cam=settings, classes=["cat", "dog"])) as reader:
        assert reader.layers == ["cam"] and reader.ids("cam") == sorted(content) and reader.ids("label") == []
        assert reader.attributes == {"cam": settings, "classes": ["cat", "dog"]}
        for image_id, array in content.items():
            assert same(reader.get("cam", image_id), array), image_id
            assert reader.attribute("cam", image_id, "classes").tolist() == [1, 3]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.h5"]


@settings(max_examples=40, deadline=None)
@given(arrays(st.sampled_from([np.uint8, np.float16, np.bool_, np.int64]), st.tuples(*[st.integers(0, 5)] * 3)))
def test_any_array_comes_back(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("store") / "s.h5"
    assert same(Store(write(path, {"x": array})).get("cam", "x"), array)


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    reader = Store(write(tmp_path / "s.h5", some_arrays()))
    first = reader.get("cam", "wide")
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert same(copy.get("cam", "wide"), first) and same(reader.get("cam", "wide"), first)


# --- shards -------------------------------------------------------------------------------------------------


def test_gathered_shards_equal_one_file(tmp_path: Path) -> None:
    content = some_arrays()
    ids = list(content)
    parts = [write(tmp_path / f"{n}.h5", {i: content[i] for i in ids[n::3]}, seed=4) for n in range(3)]
    gather(parts, tmp_path / "all.h5")
    one, joined = Store(write(tmp_path / "one.h5", content, seed=4)), Store(tmp_path / "all.h5")
    assert joined.attributes == one.attributes == {"seed": 4}
    assert joined.layers == one.layers and joined.ids("cam") == one.ids("cam")
    for image_id in ids:
        assert same(joined.get("cam", image_id), one.get("cam", image_id))
        assert joined.attribute("cam", image_id, "classes").tolist() == [1, 3]
    gather(reversed(parts), tmp_path / "other.h5")
    assert Store(tmp_path / "other.h5").ids("cam") == one.ids("cam")  # whatever the order of the shards


def test_several_layers_are_gathered(tmp_path: Path) -> None:
    for name in "ab":
        with create(tmp_path / f"{name}.h5") as writer:
            for layer, value in (("label", 1), ("confidence", 2)):
                writer.put(layer, name, np.full((2, 2), value, np.uint8))
    gather([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    found = Store(tmp_path / "all.h5")
    assert {(layer, name): found.get(layer, name)[0, 0] for layer in found.layers for name in found.ids(layer)} == {
        ("label", "a"): 1, ("label", "b"): 1, ("confidence", "a"): 2, ("confidence", "b"): 2,
    }  # fmt: skip


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "1.h5", {"a": np.ones(3)}, seed=1)
    second = write(tmp_path / "2.h5", {"b": np.ones(3)}, seed=2)
    with pytest.raises(UserError, match=r"2\.h5: made with other settings than .*1\.h5"):
        gather([first, second], tmp_path / "all.h5")
    with pytest.raises(UserError, match="nothing to gather"):
        gather([], tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5", "2.h5"]


def test_shards_do_not_take_the_place_of_another_kind(tmp_path: Path) -> None:
    for name, layer in (("maps.h5", "cam"), ("shard.h5", "label"), ("all.h5", "label")):
        with create(tmp_path / name) as writer:
            writer.put(layer, "a", np.zeros((2, 2), np.uint8))
    gather([tmp_path / "shard.h5"], tmp_path / "all.h5")
    before = (tmp_path / "maps.h5").read_bytes()
    with pytest.raises(UserError, match=r"maps.h5: is there, is not what .* would be lost"):
        gather([tmp_path / "shard.h5"], tmp_path / "maps.h5")
    assert (tmp_path / "maps.h5").read_bytes() == before


def test_a_picture_in_two_shards_is_refused(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{n}.h5", {"a": np.full(3, n)}) for n in range(2)]
    with pytest.raises(UserError, match=r"1\.h5"):
        gather(parts, tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


# --- damage -------------------------------------------------------------------------------------------------


def data_region(path: Path, layer: str, image_id: str) -> tuple[int, int]:
    """Offset and length of the one chunk of a dataset."""
    with h5py.File(path) as file:
        dataset = file[layer][image_id]
        assert dataset.fletcher32 and dataset.chunks == dataset.shape  # what the format promises
        chunk = dataset.id.get_chunk_info(0)
    return chunk.byte_offset, chunk.size


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_noticed_and_named(tmp_path: Path, share: float, bit: int) -> None:
    rng = np.random.default_rng(1)
    content = {name: rng.integers(0, 21, (40, 40), dtype=np.uint8) for name in ("first", "second")}
    path = write(tmp_path / "s.h5", content)
    offset, length = data_region(path, "cam", "second")
    flip(path, offset + int(share * length), bit)
    assert same(Store(path).get("cam", "first"), content["first"])
    with pytest.raises(UserError, match=r"s\.h5: cam of second is damaged"):
        Store(path).get("cam", "second")
    gather([path], tmp_path / "all.h5")  # copies compressed chunks; the damage must not become valid
    with pytest.raises(UserError, match=r"all\.h5: cam of second is damaged"):
        Store(tmp_path / "all.h5").get("cam", "second")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What a reader says for one flipped bit at every seventh byte of a store."""
    path = tmp_path_factory.mktemp("damage") / "s.h5"
    array = np.random.default_rng(2).integers(0, 256, (8, 8), dtype=np.uint8)
    clean = write(path, {"a": array}, seed=3).read_bytes()
    found = {}
    for position in range(0, len(clean), 7):
        path.write_bytes(clean)
        flip(path, position, position % 8)
        try:
            with Store(path) as reader:
                sound = same(reader.get("cam", "a"), array) and reader.attributes == {"seed": 3}
                found[position] = "the data" if sound else "other data"
        except Exception as error:
            found[position] = f"{type(error).__name__}: {error}"
    return found


def test_no_damaged_byte_gives_other_data(outcomes: dict[int, str]) -> None:
    assert "other data" not in outcomes.values()
    assert all(any(words in text for text in outcomes.values()) for words in ("is damaged", "not a readable HDF5"))


def test_damaged_headers_are_told_as_damage(outcomes: dict[int, str]) -> None:
    errors = {position: text for position, text in outcomes.items() if text != "the data"}
    foreign = {position: text for position, text in errors.items() if not text.startswith("UserError")}
    assert not foreign
    # a picture that cannot be opened is not one that is missing
    assert not {position: text for position, text in errors.items() if "another manifest" in text}


def test_a_shard_with_damaged_headers_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", {"a": np.ones((4, 4), np.uint8)}, seed=3)
    clean, start = path.read_bytes(), data_region(path, "cam", "a")[0]
    foreign = {}
    for position in range(50, min(start, 700), 41):
        path.write_bytes(clean)
        flip(path, position)
        try:
            gather([path], tmp_path / "all.h5")
        except UserError as error:
            assert str(path) in str(error)
        except Exception as error:
            foreign[position] = f"{type(error).__name__}: {error}"
    assert not foreign


def test_attributes_of_any_length_lie_outside_of_the_heap_without_checksum(tmp_path: Path) -> None:
    """HDF5's global heap, where text of variable length goes: reading a damaged one, HDF5 may never come back."""
    attributes = {"classes": ["é"] * 30_000, "none": None, "empty": ""}
    path = write(tmp_path / "s.h5", {"a": np.ones((4, 4), np.uint8)}, **attributes)
    with Store(path) as reader:
        assert reader.attributes == attributes
    assert b"GCOL" not in path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "s.h5", some_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"s\.h5: "):
        Store(path).get("cam", "wide")


def test_files_that_are_no_store(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with pytest.raises(UserError, match=r"s\.h5: no such file"):
        Store(path).get("cam", "a")
    for content, said in ((b"image_id,split\n", "is a text, not an HDF5 file"), (b"", "not a readable HDF5 file")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"s\.h5: {said}"):
            Store(path).ids("cam")
    with h5py.File(path, "w") as file:
        file["cam/a"] = np.ones(3)
    with pytest.raises(UserError, match=r"s\.h5: store format None, this program reads 1"):
        Store(path).get("cam", "a")


def test_a_store_of_a_later_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT_VERSION", 2)
        path = write(tmp_path / "s.h5", {"a": np.ones(3)})
    for _ in range(2):  # also when asked again
        reader = Store(path)
        with pytest.raises(UserError, match="store format 2"):
            reader.get("cam", "a")
    with pytest.raises(UserError, match="store format 2"):
        reader.get("cam", "a")


def test_missing_id_and_layer(tmp_path: Path) -> None:
    reader = Store(write(tmp_path / "s.h5", some_arrays()))
    with pytest.raises(UserError, match=r"s\.h5: no cam for 000009"):
        reader.get("cam", "000009")
    with pytest.raises(UserError, match="no label for wide"):
        reader.attribute("label", "wide", "classes")


# --- whole files --------------------------------------------------------------------------------------------


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), create(tmp_path / "s.h5") as writer:
        writer.put("cam", "a", np.ones(3))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "s.h5", {"old": np.ones(3)})
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "s.h5") as writer:
        writer.put("cam", "a", np.ones(3))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    assert Store(tmp_path / "s.h5").ids("cam") == ["old"]  # what was there stays


def test_whole_file_and_folder(tmp_path: Path) -> None:
    with whole(tmp_path / "deep" / "a.txt") as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path / "deep"
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    target = tmp_path / "deep" / "folder"
    (target / "sub").mkdir(parents=True)
    with whole_folder(target) as temporary:
        (temporary / "new").write_text("1")
        assert (target / "sub").is_dir()  # the old one is there until the new one is finished
    assert [path.name for path in target.glob("[!.]*")] == ["new"]
    with pytest.raises(RuntimeError), whole_folder(target) as temporary:
        (temporary / "half").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.glob("[!.]*")] == ["new"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.txt", "folder"]


def test_leftovers_of_a_killed_process_do_not_disturb(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole(tmp_path / "a") as name:
        raise RuntimeError
    name.mkdir()
    (name / "left").write_text("")
    with whole(tmp_path / "a") as temporary:
        temporary.write_text("file")
    assert (tmp_path / "a").read_text() == "file" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"), whole(tmp_path / "file" / "a.txt"):
        pass


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, None, "é"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, None, "é"]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert json.loads((tmp_path / "a.json").read_text())["x"][0] == 1
    (tmp_path / "a.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
