"""The configuration: what ships validates, what is wrong is named in one line, and short forms are spelt out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import changed, minimal, refusal
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from beco.config import (
    Cam,
    Classifier,
    Crop,
    Dataset,
    Labels,
    Prediction,
    Schedule,
    Training,
    merge,
    read_settings,
    validate,
    validate_config,
)
from beco.errors import UserError

SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "workflow" / "presets").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]


# --- paths --------------------------------------------------------------------------------------------------

FOLDER = {"format": "folder", "root": "/data", "labels": "/data/labels.csv"}
PATHS: dict[str, Any] = {
    "results": {},
    "dataset.root": FOLDER,
    "dataset.labels": FOLDER,
    "dataset.masks": FOLDER,
    "classifier.encoder.weights": {},
    "networks.default.encoder.weights": {},
    "labels.crf.source.path": {},
}


def at(config: Any, path: str) -> Any:
    """What lies under a dotted key."""
    for name in path.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def with_path(key: str, value: str) -> dict[str, Any]:
    values = changed(key, value)
    if PATHS.get(key):
        values["dataset"] = {**PATHS[key], **values["dataset"]}
    if key == "labels.crf.source.path":
        values["labels"]["crf"]["refine"] = "import"
    return values


@pytest.mark.parametrize("key", PATHS)
def test_home_is_spelt_out_in_paths(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ana")
    assert at(validate_config(with_path(key, "~/x")), key) == "/home/ana/x"
    assert at(validate_config(with_path(key, "a/~/x")), key) == "a/~/x"
    assert "write the whole path" in refusal(with_path(key, "~nobody-of-that-name/x"))


@pytest.mark.parametrize("key", [*PATHS, "dataset.train", "dataset.val", "classifier.encoder.name"])
@pytest.mark.parametrize("name", ["a{b}", "{labels}", "a}", "{"])
def test_braces_are_refused_wherever_snakemake_would_take_them_for_a_wildcard(key: str, name: str) -> None:
    said = refusal(with_path(key, name))
    assert f"{key}: `{name}`: braces" in said


def test_braces_are_refused_in_lists_and_names_of_options_too() -> None:
    assert "dataset.classes: `{dog}`" in refusal(changed("dataset.classes", ["cat", "{dog}"]))
    assert "classifier.encoder.options: `{x}`" in refusal(changed("classifier.encoder.options", {"{x}": 1}))
    values = minimal() | {"comparisons": {"a": {"title": "{seed}", "experiments": ["one"]}}}
    assert "comparisons.a.title: `{seed}`" in refusal(values)


@pytest.mark.parametrize(("given", "taken"), [("out/", "out"), ("./out", "out"), ("a//b/../c", "a/c"), (".", ".")])
def test_results_are_one_folder_however_spelt(given: str, taken: str) -> None:
    assert validate_config(changed("results", given)).results == taken


def test_an_empty_path_is_refused() -> None:
    assert "results" in refusal(changed("results", ""))


# --- what ships ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_validate(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = copy.deepcopy(values)
    config = validate_config(values, str(path))
    assert values == before  # the caller's tables are not written into
    # What the file says arrives: a key that validation swallowed would leave the default in its place.
    for keys, leaf in flat(values).items():
        if "encoder" in keys or leaf == {}:
            continue  # a short form, or nothing said
        found: Any = config
        for key in keys:
            found = found[key] if isinstance(found, dict) else getattr(found, key)
        if isinstance(found, tuple):
            found = list(found)
        assert found == (float(leaf) if isinstance(found, float) else leaf), keys
    for name, network in values["networks"].items():
        if isinstance(used := network.get("encoder"), str):
            assert config.networks[name].encoder == config.encoders[used]


def test_a_validated_configuration_validates_again() -> None:
    config = validate_config(yaml.safe_load(SHIPPED[0].read_text()))
    assert validate_config(config.model_dump(mode="json")) == config


def test_the_defaults_are_the_published_values() -> None:
    training = validate_config(minimal()).experiments["one"].training
    assert training.reliable_fraction == 0.5 and training.peer_weight == 1 and training.warmup == 1 / 80
    mix = training.mix
    assert (mix.probability, mix.online_threshold, mix.ignore_background) == (0.5, 0.95, True)
    assert (mix.band_width, mix.band_weight, mix.band_weight_peer) == (1, 0.2, 0)
    optimiser = training.optimiser
    assert (optimiser.name, optimiser.lr, optimiser.head_lr_factor) == ("sgd", 0.01, 1)
    assert (optimiser.weight_decay, optimiser.poly_power, optimiser.min_lr) == (1e-4, 0.9, 1e-5)
    assert (training.schedule.epochs, training.schedule.batch_size) == (80, 16)
    assert (training.crop.size, training.crop.area, training.crop.flip) == (512, (0.5, 0.75), 0.5)
    assert optimiser.momentum == 0.9
    irn = Labels().irn.optimiser
    assert irn == Classifier().optimiser and (irn.lr, irn.head_lr_factor, irn.momentum) == (0.1, 10, 1e-4)
    assert Labels().foreground_threshold == 0.30 and Labels().background_threshold == 0.05


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("training.warm_up", 0.1, ["training.warm_up: unknown key", "did you mean `warmup`?"]),
        ("labels.crf.crf.iteration", 3, ["labels.crf.crf.iteration: unknown key", "`iterations`"]),
        ("networks.default.encoder.weight", None, ["networks.default.encoder.weight: unknown", "`weights`"]),
        ("experiments.one.training.mix.probabilty", 1, ["experiments.one.training.mix.probabilty", "`probability`"]),
        ("compute.shards.cam", 1, ["compute.shards.cam: unknown key", "`cams`"]),
        ("qqqq", 1, ["qqqq: unknown key", "known: results, dataset"]),
        ("training.mix.probability", 1.01, ["training.mix.probability", "less than or equal to 1", "1.01"]),
        ("training.mix.band_width", -1, ["training.mix.band_width", "greater than or equal to 0", "-1"]),
        ("classifier.encoder.std", [0, 0.2, 0.2], ["classifier.encoder.std", "greater than 0"]),
        ("training.optimiser.lr", 0, ["training.optimiser.lr", "greater than 0"]),
        ("training.optimiser.lr", float("nan"), ["training.optimiser.lr", "nan"]),
        ("classifier.schedule.batch_size", 1, ["classifier.schedule.batch_size", "greater than or equal to 2"]),
        ("labels.crf.crf.gt_prob", 1, ["labels.crf.crf.gt_prob", "less than 1"]),
        ("dataset.shapes.size", 40, ["dataset.shapes.size", "48", "40"]),
        ("cam.scales", [], ["cam.scales", "at least 1 item"]),
        ("cam.scales", [1.0, -0.5], ["cam.scales.1", "greater than 0", "-0.5"]),
        ("experiments.one.seeds", [0, -1], ["experiments.one.seeds.1", "-1"]),
        ("networks.default.output_stride", 12, ["networks.default.output_stride", "8, 14, 16 or 32", "12"]),
        ("experiments.one.recipe", "becco", ["experiments.one.recipe", "`becco`", "`beco`"]),
        ("networks.default.atrous_rates", [0, 2], ["networks.default.atrous_rates"]),
        ("training.schedule.epochs", 1.5, ["training.schedule.epochs", "1.5"]),
        ("cam.flip", "perhaps", ["cam.flip", "boolean", "'perhaps'"]),
        ("results", 3, ["results", "string", "3"]),
        ("labels.truth", {}, ["labels.truth", "reserved"]),
        ("labels.a/b", {}, ["labels", "a/b"]),
        ("labels", {}, ["labels"]),
        ("training.crop.area", [0.75, 0.5], ["training.crop.area", "lower end"]),
        ("training.crop.area", [0.5, 1.5], ["training.crop.area", "at most 1"]),
        ("training.crop.long_side", [640, 320], ["training.crop.long_side", "lower end"]),
        ("training.crop.rescale", [1.5, 0.5], ["training.crop.rescale", "lower end"]),
        ("training.crop", {"scales": [1.0], "rescale": [1, 2]}, ["training.crop", "give one of scales and rescale"]),
        ("training.optimiser.momentum", 1, ["training.optimiser.momentum", "less than 1"]),
        ("classifier.frozen_stages", -1, ["classifier.frozen_stages", "greater than or equal to 0"]),
        ("classifier.encoder.weights", "classifier", ["classifier.encoder.weights", "cannot start from itself"]),
        ("classifier.frozen_stages", 2, ["classifier.frozen_stages", "weights is null", "leave frozen_stages out"]),
        ("classifier.batch_norm", "fixed", ["classifier.batch_norm", "weights is null", "leave batch_norm out"]),
        ("labels.crf", {"refine": "irn", "irn": {"start": "encoder"}}, ["labels.crf.irn.start", "never learns"]),
        ("labels.crf.foreground_threshold", 0.05, ["labels.crf", "foreground_threshold must exceed"]),
        ("dataset.format", "voc", ["dataset", "root", "missing"]),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, words: list[str]) -> None:
    message = refusal(changed(path, value))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("path", ["training", "experiments.one.training", "experiments", "classifier", "encoders"])
@pytest.mark.parametrize("value", ["text", 3, ["a"], [["a", 1]]])
def test_a_value_where_a_section_belongs(path: str, value: Any) -> None:
    message = refusal(changed(path, value))
    assert path.split(".")[0] in message


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_a_configuration_that_is_no_table(values: Any) -> None:
    assert "expected keys and values" in refusal(values)


def test_every_wrong_key_is_named_at_once() -> None:
    config = changed("cam.scale", [1])
    config["gallery"] = -1
    message = refusal(config)
    assert "cam.scale: unknown key" in message and "gallery" in message


def test_what_is_missing_is_named() -> None:
    config = minimal()
    del config["networks"], config["experiments"]["one"]["recipe"]
    message = refusal(config)
    assert "networks: missing" in message and "experiments.one.recipe: missing" in message


def test_experiments_name_labels_and_networks_that_exist() -> None:
    message = refusal(changed("experiments.one.labels", "crff"))
    assert "experiments.one.labels: no `crff` under labels" in message and "`crf`" in message
    message = refusal(changed("experiments.one.network", "defualt"))
    assert "experiments.one.network: no `defualt` under networks" in message and "`default`" in message
    assert validate_config(changed("experiments.one.labels", "truth")).experiments["one"].labels == "truth"


def test_a_schedule_has_exactly_one_length() -> None:
    for schedule in ({"epochs": 1, "steps": 1}, {"batch_size": 4}):
        with pytest.raises(UserError, match="exactly one of epochs and steps"):
            validate(Schedule, schedule, "here")
    assert validate(Schedule, {"steps": 3}, "here").steps == 3


# --- short forms --------------------------------------------------------------------------------------------


def with_encoder(entry: Any) -> dict[str, Any]:
    config = changed("encoders", {"small": {"name": "resnet10t", "options": {"a": 1, "b": 2}, "drop": ["x"]}})
    config["classifier"] = {"encoder": entry}
    config["networks"]["default"]["encoder"] = entry
    return config


def test_an_encoder_by_name() -> None:
    config = validate_config(with_encoder("small"))
    assert config.classifier.encoder == config.networks["default"].encoder == config.encoders["small"]
    assert config.classifier.encoder.options == {"a": 1, "b": 2}


def test_an_encoder_like_another() -> None:
    encoder = validate_config(
        with_encoder({"like": "small", "weights": "w.pth", "options": {"b": 3}})
    ).classifier.encoder
    assert (encoder.name, encoder.weights, encoder.drop) == ("resnet10t", "w.pth", ["x"])
    assert encoder.options == {"a": 1, "b": 3}  # laid over, key by key


@pytest.mark.parametrize("entry", ["smal", {"like": "smal", "weights": None}])
def test_an_encoder_nobody_defined(entry: Any) -> None:
    message = refusal(with_encoder(entry))
    assert "no `smal` under encoders" in message and "`small`" in message


@pytest.mark.parametrize("entry", ["small", {"like": "small"}])
def test_a_name_without_an_encoders_section(entry: Any) -> None:
    config = with_encoder(entry)
    del config["encoders"]
    message = refusal(config)
    assert "no `small` under encoders" in message


def test_an_alias_is_checked_like_the_encoder_itself() -> None:
    message = refusal(with_encoder({"like": "small", "wights": "w.pth"}))
    assert "classifier.encoder.wights: unknown key" in message and "`weights`" in message


def test_an_experiments_training_is_laid_over_the_common_one() -> None:
    config = changed("training", {"schedule": {"steps": 7, "batch_size": 4}, "crop": {"size": 64}, "warmup": 0.25})
    config["experiments"]["one"]["training"] = {"schedule": {"epochs": 3}, "mix": {"probability": 1}}
    config["experiments"]["two"] = {"recipe": "single"}
    found = validate_config(config)
    one, two = (found.experiments[name].training for name in ("one", "two"))
    assert (one.schedule.epochs, one.schedule.steps, one.schedule.batch_size) == (3, None, 4)
    assert (one.crop.size, one.warmup, one.mix.probability) == (64, 0.25, 1)
    assert two == found.training and two.schedule.steps == 7 and two.mix.probability == 0.5
    config["experiments"]["one"]["training"]["schedule"]["steps"] = 2
    assert "exactly one of epochs and steps" in refusal(config)


LEAVES = st.integers(0, 9) | st.text("ab", max_size=2) | st.lists(st.integers(0, 9), max_size=2)
TABLES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | LEAVES, max_size=3),
    max_leaves=8,
)


def flat(table: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Leaves by path; an empty table is a leaf."""
    if not isinstance(table, dict) or not table:
        return {path: table}
    return {key: leaf for name, entry in table.items() for key, leaf in flat(entry, (*path, name)).items()}


@given(TABLES, TABLES)
def test_merge_takes_every_leaf_of_the_upper_and_the_rest_of_the_lower(base: dict, over: dict) -> None:
    before = copy.deepcopy((base, over))
    merged, upper, lower = flat(merge(base, over)), flat(over), flat(base)
    assert (base, over) == before
    for path, leaf in upper.items():
        # an empty table above says nothing about what is below it
        assert merged.get(path) == leaf or leaf == {}
    for path, leaf in lower.items():
        hidden = any(upper.get(path[:n], {}) != {} for n in range(len(path) + 1))
        hidden |= any(other[: len(path)] == path for other in upper)
        assert hidden or merged[path] == leaf
    assert set(merged) <= set(upper) | set(lower)
    assert merge(base, {}) == base and merge({}, over) == over


# --- settings of one stage ----------------------------------------------------------------------------------


def test_both_is_the_average_and_the_first_of_several() -> None:
    both = Prediction(networks="both", flip=True)
    assert both.averaged == Prediction(flip=True) and Prediction(networks="first").averaged.networks == "first"
    experiments = {name: {"recipe": name, "labels": "cam"} for name in ("single", "beco")}
    values = {"labels": {"cam": {}}, "networks": {"default": {}}, "experiments": experiments}
    for networks, found in (("both", [False, True]), ("all", [False, False]), ("first", [False, False])):
        config = validate_config({**values, "prediction": {"networks": networks}})
        assert [config.has_first(name) for name in experiments] == found


def test_settings_from_text() -> None:
    assert read_settings(Cam, None) == Cam()
    assert read_settings(Cam, "") == Cam()
    assert read_settings(Cam, "{scales: [0.5, 1], flip: false}") == Cam(scales=[0.5, 1], flip=False)
    assert read_settings(Cam, '{"scales": [2.0]}').scales == [2.0]
    assert read_settings(Cam, "scales:\n- 2.0\nresize: 64\n") == Cam(scales=[2.0], resize=64)
    # YAML 1.1 takes 1e-3, without a point, for text
    assert read_settings(Training, "optimiser: {lr: 1e-3}").optimiser.lr == 0.001


@pytest.mark.parametrize("name", ["cam.yaml", "cam.yml", "cam.json"])
def test_settings_from_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"scales": [0.25]}')
    assert read_settings(Cam, str(path)).scales == [0.25]
    path.write_text('{"scale": [0.25]}')
    with pytest.raises(UserError, match=rf"{name}: scale: unknown key; did you mean `scales`"):
        read_settings(Cam, str(path))
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file"):
        read_settings(Cam, str(path))


@pytest.mark.parametrize("text", ["{scales: [1", "a: b: c", "\tx: 1", "scales: !!python/object/apply:os.getpid []"])
def test_broken_yaml(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_settings(Cam, text)
    assert "--settings: not valid YAML" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "[1, 2]", "word"])
def test_yaml_that_is_no_table(text: str) -> None:
    with pytest.raises(UserError, match="--settings: expected keys and values"):
        read_settings(Crop, text)


def test_the_identity_of_a_dataset() -> None:
    """More pictures of the drawn set are the same dataset; another root or list is another one."""
    assert Dataset().identity() == Dataset.model_validate({"name": "b", "shapes": {"train": 7}}).identity()
    voc = Dataset(format="voc", root="a")
    others = [Dataset(format="voc", root="b"), Dataset(format="voc", root="a", train="train_aug"), Dataset()]
    assert all(voc.identity() != other.identity() for other in others)
    assert voc.identity() == Dataset(format="voc", root="./a", name="c").identity()


@pytest.mark.parametrize(
    "text", ['a: !!int ""', 'a: !!float ""', "a: !!bool x", "a: !!timestamp x", "!!map [a]", "a: !!set [1]"]
)
def test_values_that_are_not_what_their_tag_says(text: str) -> None:
    with pytest.raises(UserError, match=r"not valid YAML .*tag"):
        read_settings(Dataset, text + "\n")


@pytest.mark.parametrize("path", ["classifier.seed", "training.schedule.steps", "cam.batch_size", "gallery"])
def test_numbers_that_no_machine_holds(path: str) -> None:
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    *keys, last = path.split(".")
    section = values
    for key in keys:
        section = section.setdefault(key, {})
    section[last] = 10**400
    with pytest.raises(UserError, match=rf"{last}: the number is too large; write one") as caught:
        validate_config(values)
    assert len(str(caught.value)) < 500
    with pytest.raises(UserError, match="seeds: the number is too large"):
        validate_config({"experiments": {"a": {"recipe": "single", "labels": "cam", "seeds": [0, 2**63]}}})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_configurations_in_utf16(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.yaml").write_bytes("{format: voc}\n".encode(encoding))
    with pytest.raises(UserError, match=r"c\.yaml: not text in UTF-8 \(it looks like UTF-16\)"):
        read_settings(Dataset, str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("written", ["32", 32])
def test_full_precision_needs_no_quotes(written: object) -> None:
    made = validate_config(changed("training.schedule", {"steps": 1, "precision": written}))
    assert made.training.schedule.precision == "32"
