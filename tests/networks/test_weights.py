"""Files of weights: only dense floating-point tensors become a network's, and the same networks are the same bytes."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_encoders import full_network, loaded, refusal
from torch import Tensor

from beco.errors import UserError
from beco.networks import encoders

LATER = ["ema_state_dict", "params_ema", "params", "weights"]
WEIGHT, MEAN = "layer1.0.conv1.weight", "bn1.running_mean"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return full_network().state_dict()


def quantised(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def holed(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[0] = torch.nan
    return value


HARMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "int8": (lambda value: (value * 50).to(torch.int8), "int8"),
    "uint8": (lambda value: (value * 50).to(torch.uint8), "uint8"),
    "int64": (lambda value: (value * 50).long(), "int64"),
    "bool": (lambda value: value > 0.5, "bool"),
    "complex": (lambda value: value.to(torch.complex64), "complex64"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "sparse": (lambda value: value.to_sparse(), "sparse"),
    "sparse CSR": (lambda value: value.reshape(len(value), -1).to_sparse_csr(), "sparse"),
    "meta": (lambda value: value.to("meta"), "no content"),
    "quantised": (quantised, "quantised"),
    "NaN": (holed, "NaN"),
    "infinite half": (lambda value: (value * 1e9).half(), "infinity"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("harm", "key"), [*((harm, WEIGHT) for harm in HARMS), ("int8", MEAN), ("complex", MEAN)])
def test_only_dense_finite_floats(tmp_path: Path, state: dict[str, Tensor], key: str, harm: str) -> None:
    make, word = HARMS[harm]
    torch.save({**state, key: make(state[key])}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert message.startswith(f"{tmp_path}/w.pth: {key} ") and word in message and "; " in message, message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Half and double precision; batches are counted in whole numbers."""
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth").state_dict()
    assert torch.equal(found[WEIGHT], state[WEIGHT].to(dtype).float()) and found["bn1.num_batches_tracked"] == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "but a list"),
        (torch.ones(2), "but a Tensor"),
        ((torch.ones(2),), "but a tuple"),
        (3, "but a int"),
        (None, "but a NoneType"),
        ({}, "but an empty table"),
        ({"state_dict": {}}, "but an empty table"),
        ({0: torch.ones(2)}, "(0: Tensor)"),
        ({"a": torch.ones(2), "epoch": 3}, "(epoch: int)"),
        ({"layers": OrderedDict(a=torch.ones(2))}, "(layers: OrderedDict)"),
        ({"a": [torch.ones(2)]}, "(a: list)"),
    ],
)
def test_what_is_no_table_of_tensors(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "w.pth: holds no table of tensors" in message and words in message and "; save" in message, message


@pytest.mark.parametrize("key", ["model_state_dict", "net", "teacher", "state_dict_ema", "model_ema", *LATER])
def test_tables_of_training_programs(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    torch.save({key: state, "optimizer": {"lr": 0.1}, "epoch": 3}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth").state_dict()[MEAN], state[MEAN])


def test_of_several_tables_the_one_taken_is_told(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"state_dict_ema": other, "state_dict": state}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "beco"):
        logging.getLogger("beco").propagate = True
        found = loaded(tmp_path / "w.pth").state_dict()
    assert torch.equal(found[MEAN], state[MEAN])
    assert "`state_dict`, `state_dict_ema`; `state_dict` is taken" in caplog.text


@pytest.mark.parametrize("place", ["{}", "_orig_mod.{}", "module._orig_mod.{}", "backbone._orig_mod.{}", "teacher.{}"])
def test_names_of_compiled_networks(tmp_path: Path, state: dict[str, Tensor], place: str) -> None:
    inner = {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()}
    torch.save({place.format(key): value for key, value in inner.items()}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth").state_dict()[WEIGHT], state[WEIGHT])


def test_names_and_heads_of_moco_and_swav(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """MoCo's second encoder and queue, and SwAV's heads, are passed over."""
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    moco = {f"module.encoder_q.{key}": value for key, value in state.items()}
    moco |= {f"module.encoder_k.{key}": torch.zeros_like(value) for key, value in body.items()}
    torch.save({"state_dict": moco | {"module.queue": torch.ones(4)}}, tmp_path / "moco.pth")
    heads = {"projection_head.0.weight": torch.ones(2, 2), "prototypes.weight": torch.ones(2, 2)}
    torch.save({f"module.{key}": value for key, value in (body | heads).items()}, tmp_path / "swav.pth")
    for name in ("moco", "swav"):
        assert torch.equal(loaded(tmp_path / f"{name}.pth").state_dict()[MEAN], state[MEAN])


class Own:
    """What torch does not load without being told to."""


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (Path("x"), "pathlib."),
        (np.float64(3), "numpy."),
        (Own(), "Own"),
    ],
)
def test_what_a_checkpoint_holds_besides_tensors_is_named(
    tmp_path: Path, state: dict[str, Tensor], extra: Any, words: str
) -> None:
    torch.save({"state_dict": state, "args": extra}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "it holds more than tensors: " in message and words in message and "save its state_dict alone" in message


def test_other_formats_of_weights_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    with (tmp_path / "n.pth").open("wb") as stream:
        np.savez(stream, a=np.ones(2))
    arrays = {"model": {key: value.numpy() for key, value in state.items()}}
    for protocol in (2, 4):
        (tmp_path / f"d{protocol}.pkl").write_bytes(pickle.dumps(arrays, protocol))
    kinds = {"s.pt": "TorchScript", "n.pth": "NumPy arrays", "d2.pkl": "plain pickle", "d4.pkl": "plain pickle"}
    for name, words in kinds.items():
        message = refusal(tmp_path / name)
        assert words in message and "save its state_dict alone" in message and "copy it again" not in message, message
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(content[: len(content) // 2])
    assert "copy it again" in refusal(tmp_path / "old.pth")


def test_negative_variances_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "bn1.running_var": -state["bn1.running_var"]}, tmp_path / "w.pth")
    assert "w.pth: bn1.running_var holds negative variances; " in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [torch.ones(2), torch.tensor([torch.nan]), torch.ones(2).to_sparse()])
def test_names_with_line_breaks_make_one_line(tmp_path: Path, state: dict[str, Tensor], value: Tensor) -> None:
    torch.save({**state, "a\nb.weight": value}, tmp_path / "w.pth")
    assert "a b" in refusal(tmp_path / "w.pth")  # which looks for line breaks


# --- our own files ------------------------------------------------------------------------------------------


def test_the_same_network_is_the_same_bytes(tmp_path: Path) -> None:
    """The library's own order of metadata is another at every call; and it reads what is written."""
    given = {f"key {n}": f"é {n}" for n in range(20)} | {"classes": '["cat"]'}
    network = torch.nn.Conv2d(3, 4, 3)
    contents = set()
    for name in "abc":
        encoders.save_network(network, tmp_path / f"{name}.safetensors", given)
        contents.add((tmp_path / f"{name}.safetensors").read_bytes())
    assert len(contents) == 1
    tensors, metadata = encoders.load_network(tmp_path / "a.safetensors")
    assert metadata["key 7"] == "é 7" and list(metadata) == sorted(metadata)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == metadata and set(file.keys()) == set(tensors) == {"weight", "bias"}
        assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())


def test_a_network_of_ours_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(3, 4, 3)
    torch.nn.init.constant_(network.weight, torch.nan)
    encoders.save_network(network, tmp_path / "n.safetensors", {"classes": "[]"})
    with pytest.raises(UserError, match=r"n\.safetensors: weight holds NaN"):
        encoders.load_network(tmp_path / "n.safetensors")
