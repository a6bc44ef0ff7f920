"""The benchmark: its figures exist and are what they say; and a training step never waits for the device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from beco.artifacts.files import read_json
from beco.artifacts.pseudolabels import UNCERTAIN
from beco.benchmark import bare, pictures, presets, process, report, stages, stores, training
from beco.benchmark.clock import Times, by_turns
from beco.cli import app
from beco.config import Network, Training, validate_config
from beco.errors import UserError
from beco.networks.segmenter import Segmenter
from beco.schema.slots import RECIPES
from beco.stage2 import recipes
from beco.training.sampling import Draws
from beco.training.trainer import Compute

TINY_NETWORK = "{encoder: {options: {channels: [8, 16, 24, 32]}}, decoder_channels: 8}"
TINY = "{crop: {size: 32}, schedule: {batch_size: 4}}"
WAITS = {
    "aten._local_scalar_dense.default",
    "aten.item.default",
    "aten.is_nonzero.default",
    "aten.equal.default",
    "aten.nonzero.default",
    "aten.nonzero_static.default",
    "aten.masked_select.default",
    "aten.unique_dim.default",
    "aten._unique2.default",
    "aten.bincount.default",
}


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading values, and results whose size depends on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert str(func) not in WAITS, f"{func} waits for the device"
        if "index" in str(func) and len(args) > 1 and isinstance(args[1], list | tuple):
            masks = [one for one in args[1] if isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask waits for the device"
        if str(func) == "aten.repeat_interleave.Tensor":
            assert kwargs.get("output_size") is not None, f"{func} of unknown length waits for the device"
        if str(func) == "aten._to_copy.default":
            assert kwargs.get("device") in (None, args[0].device), f"{func} from device to device"
        return func(*args, **kwargs)


def tiny(recipe: str = "beco", settings: str = TINY) -> presets.Setting:
    return presets.setting("demo", TINY_NETWORK, settings, recipe, None, "cpu")


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("single", ""),
        ("cotraining", ""),
        ("beco", ""),
        ("beco", ", colour: bgr, loss_mean: labelled"),
        ("beco", ", mix: {labels: offline}"),
        ("beco", ", mix: {band_width: 3, ignore_background: false}"),
        ("beco", ", warmup: 1.0"),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_never_waits_for_the_device(recipe: str, more: str, parts: int) -> None:
    settings = f"{{crop: {{size: 32}}, schedule: {{batch_size: 4, accumulate: {parts}}}{more}}}"
    bench = training.prepare(tiny(recipe, settings), Compute("cpu"))
    with NoWaiting():
        bench.passes()
    assert all(parameter.grad is not None for parameter in bench.task.parameters())
    bench.optimise()  # its own counts are on the host, beside a GPU too
    assert bench.online == (recipe == "beco" and "offline" not in more and "warmup" not in more)


class WithoutValues(Draws):
    """Draws on the device that has shapes and no values."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.pictures, *shape, device="meta")


@pytest.mark.parametrize("recipe", ["single", "cotraining", "beco"])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_a_step_needs_no_values_on_the_host(recipe: str, colour: str) -> None:
    """On the meta device whatever asks for a value, or for the host's copy of a tensor, is an error."""
    setting = tiny(recipe, f"{{crop: {{size: 32}}, schedule: {{batch_size: 4}}, colour: {colour}}}")
    networks = [Segmenter(setting.network, 6) for _ in range(RECIPES.fact(recipe, "NETWORKS"))]
    task = recipes.make(setting.recipe, networks, setting.training, 6).to("meta")
    batch = {key: value.to("meta") for key, value in training.made_up_batch(setting).items()}
    losses = task(batch | task.totals(batch), 9, 10, WithoutValues(4))
    losses["loss"].backward()
    assert all(value.device.type == "meta" for value in losses.values())
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.mean()),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: (x > 0).nonzero(),
        lambda x: x.to("meta"),
        lambda x: torch.where(x > 0),
        lambda x: x.index_put((x > 0,), x.new_zeros(())),
    ],
)
def test_the_guard_notices(waits: Any) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        waits(torch.randn(8))


def test_flops_of_one_convolution_by_hand() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    images = torch.rand(2, 3, 8, 6)
    assert bare.count(lambda: layer(images)) == 2 * (2 * 8 * 6) * 5 * (3 * 3 * 3)


def test_flops_are_counted_without_content_and_grow_with_the_pixels() -> None:
    network = tiny().network
    small, large = (bare.forward_flops(lambda: Segmenter(network, 6), size, size) for size in (64, 128))
    assert small > 1e6 and 3.9 < large / small < 4.1
    real = Segmenter(network, 6).eval()
    assert small == bare.count(lambda: real(torch.rand(1, 3, 64, 64)))


def test_ratios_are_of_the_same_round() -> None:
    one, two = (Times(np.array(wall), np.array(wall) * 10, False) for wall in ([2.0, 6.0, 8.0], [1.0, 2.0, 8.0]))
    assert one.over(two) == 2 and one.seconds == 6 and (one + two).seconds == 8
    order: list[str] = []
    times = by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, True, calls=2, warm=1)
    assert order == list("aabb") * 3 and len(times["a"].wall) == 2


def test_the_demo_is_what_the_configuration_says() -> None:
    """But for the labels of mixed pictures: measured is the published step, whose networks first look themselves."""
    import yaml

    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = validate_config(values)
    chosen = presets.setting("demo", None, None, "beco", None, "cpu")
    network = config.networks["default"].alone.model_dump()
    network["encoder"]["weights"] = None
    assert chosen.network.model_dump() == network
    training = config.experiments["beco"].training
    mix = training.mix.model_copy(update={"labels": "online"})
    assert training.mix.labels == "offline"
    looks = {"validate_every": None, "watch_labels": None}  # no part of a step
    assert chosen.training == training.model_copy(update={"warmup": 0.5, "mix": mix, **looks})


def test_the_paper_fits_into_the_memory_of_a_cpu() -> None:
    on_cpu, on_gpu = (presets.setting("paper", None, None, "beco", None, device) for device in ("cpu", "cuda"))
    assert (on_cpu.training.schedule.accumulate, on_gpu.training.schedule.accumulate) == (8, 1)
    assert on_gpu.network == Network.model_validate({"encoder": {"name": "resnet101d"}, "multi_grid": [1, 2, 4]})
    assert on_gpu.training == Training.model_validate(
        {"schedule": {"epochs": 80, "batch_size": 16, "precision": "bf16"}}
    )


def test_made_up_pictures_are_like_real_ones() -> None:
    label, doubt = pictures.pseudo_label(np.random.default_rng(0), 20, 60, 80)
    assert label.shape == doubt.shape == (60, 80)
    assert set(np.unique(label)) - {UNCERTAIN} <= set(range(21)) and 0 < (label == UNCERTAIN).mean() < 0.3
    assert ((doubt == 1) == (label == UNCERTAIN)).all() and doubt.min() < 0.9
    cam = pictures.activation(np.random.default_rng(0), 61, 80)
    assert cam.shape[1:] == (16, 20) and 1 <= len(cam) <= 3 and cam.max() <= 1


def positive(values: dict[str, Any]) -> None:
    """All numbers of a result are finite; speeds, times and sizes are above 0."""
    for name, value in report._flat(values):
        if isinstance(value, float):
            assert math.isfinite(value) and value >= 0, name
            if not name.endswith(("share", "share_of_step", "loss_added")):
                assert value > 0, name


@pytest.mark.parametrize("recipe", ["single", "beco"])
def test_training_is_measured(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = report.Options(network=TINY_NETWORK, settings=TINY, recipe=recipe, quick=True)
    report.run("training", options, Compute("cpu"), tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text())["training"]
    positive(found)
    assert {"pictures_per_s", "step_s", "overhead_ratio", "overhead_ratio_without_optimiser"} < found.keys()
    assert {"peak_memory_bytes", "convolution_tflop_per_s", "bare_share_of_convolution_rate"} < found.keys()
    pieces = {"conversion", "colour", "cross_entropy", "loss", "loss_added", "optimiser"}
    assert found["breakdown_ms"].keys() == (pieces if recipe == "single" else pieces | {"online_labels", "mixing"})
    assert 0 <= found["loader"]["waiting_share"] <= 1 and not found["loader"]["inferred"]
    assert "overhead_ratio" in capsys.readouterr().out


def test_slow_steps_have_their_waiting_inferred(tmp_path: Path) -> None:
    setting = tiny()
    bench = training.prepare(setting, Compute("cpu"))
    dataset = pictures.training_set(tmp_path, setting.training, 6)
    found = training.waiting(bench, dataset, 0, step_s=1e6)
    assert found["inferred"] and 0 < found["waiting_share"] < 0.01


def test_stages_and_stores_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_gains", lambda makers, seconds: dict.fromkeys(makers, 1.5))  # spawning takes long
    found = stages.measure(tmp_path, 48, 0.01)
    assert set(found["start_s"]) == set(process.IMPORTS)
    positive(found)
    rates = {"cam", "crf_pydensecrf_3", "crf_pydensecrf_21", "labels_from_cam", "store_write", "store_read", "evaluate"}
    assert rates < found["pictures_per_core_s"].keys()
    assert found["gain_of_second_process"].keys() == {"crf", "store_read"}
    found = stores.measure(tmp_path, 50, 3)
    positive(found)
    assert {"opening_s", "random_read_ms", "label_bytes", "confidence_bytes", "cam_bytes"} < found.keys()


def test_slow_stores_are_remarked_on() -> None:
    assert len(report.remarks({"stores": {"opening_s": 1.5, "random_read_ms": 3.0, "entries": 7}})) == 2
    assert report.remarks({"stores": {"opening_s": 0.5, "random_read_ms": 1.0}}) == report.remarks({}) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--what", "all-of-it"], "--what: no part `all-of-it`; known: training, stages, stores, crf, all"),
        (["--preset", "huge"], "--preset: no preset `huge`; known: demo, paper"),
        (["--recipe", "soup"], "--recipe: no recipe `soup`"),
        (["--settings", "{crop: {sise: 3}}"], "crop.sise: unknown key"),
        (["--network", "no.yaml"], "no.yaml: cannot be read"),
        (["--manifest", "m.csv"], "--manifest: needs --root and --labels"),
    ],
)
def test_wrong_options_are_one_line(given: list[str], said: str) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["benchmark", "--device", "cpu", "--quick", *given])
    assert isinstance(done.exception, UserError) and said in str(done.exception) and "\n" not in str(done.exception)


@pytest.mark.parametrize("own", [False, True])
def test_both_crf_backends_are_compared(own: bool, tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf")
    options = report.Options(pictures=3)
    if own:
        drawn = pictures.drawn(tmp_path, 4, 48)
        options = report.Options(pictures=3, manifest=tmp_path / "manifest.csv", root=drawn.root)
    found = report.run("crf", options, Compute("cpu"), tmp_path / "crf.json")["crf"]
    assert found == read_json(tmp_path / "crf.json")["crf"] and found["pictures"] == 3
    for name in ("irn", "test_time"):
        assert found[name]["same_labels"] >= found[name]["same_labels_worst"] > 0.999
        assert 0 <= found[name]["mean_difference_worst"] < 1e-4
        times = found[name]["torch_s_per_picture"], found[name]["pydensecrf_s_per_picture"]
        assert found[name]["ratio"] == pytest.approx(times[1] / times[0])


def test_another_encoder_leaves_the_presets_behind() -> None:
    chosen = presets.setting("paper", "{encoder: {name: resnet10t}}", None, "beco", None, "cpu")
    assert chosen.network.encoder.name == "resnet10t" and chosen.network.multi_grid is None
    kept = presets.setting("demo", "{encoder: {options: {channels: [8, 16, 32, 64]}}}", None, "beco", None, "cpu")
    assert kept.network.encoder.name == "resnet10t"
