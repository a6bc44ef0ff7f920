"""Sources: score maps from several localisers side by side, and what a configuration with one of them means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beco.config import Config, validate_config
from beco.errors import UserError

LABELS = {"crf": {}, "none": {"refine": "none"}}
BASE: dict[str, Any] = {"labels": LABELS, "networks": {"default": {}}, "experiments": {"one": {"recipe": "beco"}}}
SMALL = {"name": "resnet10t", "weights": "w.pth", "mean": [0.5, 0.5, 0.5]}

METHOD = '''"""A localiser that wants more than pictures."""

OPTIONS = {
    "weight": {"default": 0.5, "ge": 0, "le": 1, "description": "of the second loss"},
    "rounds": {"default": 3, "ge": 1, "description": "how often"},
    "rule": {"default": "mean", "choices": ["mean", "max"], "description": "how views are merged"},
}
INPUTS = ("labels", "start")
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "localisers").mkdir()
    (tmp_path / "localisers" / "two.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "localisers" / "bare.py").write_text('"""A localiser without settings."""\n', encoding="utf-8")
    monkeypatch.setenv("BECO_METHODS", str(tmp_path))
    return tmp_path


def read(**values: Any) -> Config:
    return validate_config({**BASE, **values})


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_sources_there_is_one_of_the_common_sections() -> None:
    config = read(classifier={"encoder": SMALL, "seed": 3}, cam={"flip": False})
    assert list(config.sources) == ["cam"] and config.sources["cam"].method == "cam"
    assert config.sources["cam"].classifier == config.classifier and config.sources["cam"].cam == config.cam
    assert config.classifiers() == {"classifier": config.classifier}
    assert config.source_of("crf") == config.source_of("truth") == "cam"
    assert config.needed() == {"classifier.encoder.weights": "w.pth"}


def test_a_source_says_what_differs() -> None:
    other = {"classifier": {"schedule": {"steps": 7}, "encoder": {"name": "resnet18"}}, "cam": {"scales": [1]}}
    config = read(
        classifier={"encoder": SMALL, "schedule": {"epochs": 2, "batch_size": 4}},
        sources={"cam": None, "small": other},
        labels={"crf": {}, "theirs": {"source": "small"}},
    )
    first, second = config.sources.values()
    assert first.classifier == config.classifier
    schedule = second.classifier.schedule
    assert (schedule.steps, schedule.epochs, schedule.batch_size) == (7, None, 4)
    # another encoder has nothing of the first one's weights and pixel values
    assert second.classifier.encoder.weights is None and second.classifier.encoder.mean is None
    assert second.cam.scales == [1] and first.cam.scales == [1.0, 0.5, 1.5, 2.0]
    assert list(config.classifiers()) == ["classifier", "sources.small.classifier"]
    assert config.used_sources() == ["cam", "small"] and config.source_of("theirs") == "small"


def test_what_nothing_is_made_of_is_not_made() -> None:
    assert read(sources={"a": {}, "b": {}}).used_sources() == ["a"]
    chain = {"a": {}, "b": {}, "c": {"method": "two", "start": "b", "labels": "none"}}
    config = read(sources=chain, labels={"none": {"refine": "none", "source": "a"}, "crf": {"source": "c"}})
    assert config.used_sources() == ["a", "b", "c"]


def test_irn_of_two_sources_is_two() -> None:
    irn = {"refine": "irn"}
    labels = {"crf": {}, "one": irn, "two": {**irn, "source": "b"}, "three": {**irn, "background": 0.3}}
    config = read(sources={"a": {}, "b": {}}, labels=labels, quality={"backgrounds": [0.2]})
    assert [config.pairs_of(name) for name in ("one", "two", "three")] == ["crf", None, "crf"]
    assert [config.scores_of(name) for name in ("one", "two", "three")] == ["one", "two", "one"]
    assert config.swept() == ["crf", "one", "two"]


def test_options_are_complete_and_of_their_kind() -> None:
    config = read(sources={"a": {}, "b": {"method": "two", "options": {"weight": 1}, "start": "a", "labels": "crf"}})
    assert config.sources["b"].options == {"weight": 1.0, "rounds": 3, "rule": "mean"}
    assert config.sources["a"].options == {"pool": "auto"}


TWO = {"method": "two", "start": "cam", "labels": "crf"}


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"b": {"method": "ca"}}, "sources.b.method: no localiser `ca`; did you mean `cam`?"),
        ({"b": {**TWO, "options": {"wieght": 1}}}, "options.wieght: unknown key; did you mean `weight`?"),
        ({"b": {**TWO, "options": {"weight": 2}}}, "options.weight: input should be less than or equal to 1"),
        ({"b": {**TWO, "options": {"rounds": 1.5}}}, "options.rounds: input should be a valid integer"),
        ({"b": {**TWO, "options": {"rule": "sum"}}}, "options.rule: input should be 'mean' or 'max'"),
        ({"b": {"method": "bare", "options": {"x": 1}}}, "options.x: unknown key; `bare` has no options, so remove it"),
        ({"b": {"method": "two", "start": "cam"}}, "labels: `two` needs it"),
        ({"b": {"labels": "crf"}}, "labels: `cam` does not use it; leave it out"),
        ({"b": {"method": "clip_es"}}, "text: `clip_es` needs it; write text: a file of `beco text-features`"),
        ({"b": {"text": "t.safetensors"}}, "text: `cam` does not use it; leave it out"),
        ({"b": {**TWO, "start": "cma"}}, "sources.b.start: no `cma` under sources; did you mean `cam`?"),
        ({"b": {**TWO, "labels": "cfr"}}, "sources.b.labels: no `cfr` under labels; did you mean `crf`?"),
        ({"b": {**TWO, "start": "b"}}, "sources.b: made of itself"),
        ({"b": {"classifier": {"sede": 1}}}, "sources.b.classifier.sede: unknown key; did you mean `seed`?"),
        ({"b": {"classifer": {}}}, "sources.b.classifer: unknown key; did you mean `classifier`?"),
        ({"b/c": {}}, "sources.b/c"),
        ({"b": [1]}, "sources.b"),
    ],
)
def test_what_is_wrong_with_a_source(sources: dict[str, Any], said: str) -> None:
    assert said in refusal(sources={"cam": {}, **sources})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"crf": {"source": "cma"}}, "labels.crf.source: no `cma` under sources; did you mean `cam`?"),
        ({"crf": {"refine": "import", "source": "cam"}}, "refine: import needs a source"),
        ({"crf": {"source": {"path": "x"}}}, "a folder is imported with refine: import"),
        (
            {"crf": {"refine": "import", "source": {"pth": "x"}}},
            "labels.crf.source.pth: unknown key; did you mean `path`",
        ),
        ({"crf": {"refine": "import", "source": {}}}, "labels.crf.source.path: missing"),
        ({"crf": {"source": 3}}, "labels.crf.source: input should be"),
    ],
)
def test_what_is_wrong_with_where_labels_come_from(labels: dict[str, Any], said: str) -> None:
    assert said in refusal(labels=labels)


@pytest.mark.parametrize("name", ["dataset", "report.html", "tables", "masks"])
def test_names_of_other_results(name: str) -> None:
    assert f"sources.{name}: results of another kind" in refusal(sources={name: {}})
    assert f"labels.{name}: results of another kind" in refusal(labels={"crf": {}, name: {}})
    read(experiments={name: {"recipe": "beco"}})


@pytest.mark.parametrize("name", ["classifier", "quality", "labels.h5", "irn"])
def test_names_of_other_files_of_labels(name: str) -> None:
    assert f"experiments.{name}: results of another kind" in refusal(experiments={name: {"recipe": "beco"}})
    read(sources={name: {}})


def test_names_with_dots_that_make_one_log() -> None:
    labels = {"crf": {}, "crf.x": {}}
    experiments = {"x.c": {"recipe": "beco", "labels": "crf"}, "c": {"recipe": "beco", "labels": "crf.x"}}
    assert "experiments.c: its logs are called as those of x.c" in refusal(labels=labels, experiments=experiments)
    experiments["c"]["labels"] = "crf"
    read(labels=labels, experiments=experiments)


def test_a_name_that_no_file_can_have() -> None:
    assert "at most 100 characters" in refusal(sources={"a" * 101: {}})
    read(sources={"a" * 100: {}})


def test_labels_made_of_what_is_made_of_them() -> None:
    two = {"method": "two", "start": "cam", "labels": "crf"}
    assert "sources.b: made of itself" in refusal(sources={"cam": {}, "b": two}, labels={"crf": {"source": "b"}})


def test_what_is_wrong_with_the_common_section_is_said_once() -> None:
    said = refusal(classifier={"sede": 1}, sources={"a": {}, "b": {}})
    assert said.count("sede") == 1 and "config: classifier.sede" in said


def test_a_method_that_wants_saliency_maps_has_the_datasets() -> None:
    sources = {"cam": {}, "other": {"method": "eps"}}
    labels = {"crf": {"source": "other"}}
    own = {"format": "voc", "root": "voc"}
    words = "dataset.saliency: missing, but `eps` (sources.other) needs it; set it to a folder of saliency maps"
    assert words in refusal(sources=sources, labels=labels, dataset=own)
    config = read(sources=sources, labels=labels, dataset=own | {"saliency": "maps"})
    assert config.saliency_of("other") == "maps" and config.saliency_of("cam") is None
    assert config.needed()["dataset.saliency"] == "maps"
    unused = read(sources=sources, dataset=own | {"saliency": "maps"})
    assert "dataset.saliency" not in unused.needed()
    drawn = read(sources=sources, labels=labels)
    assert drawn.saliency_of("other") == "shapes" and "dataset.saliency" not in drawn.needed()
    assert read(sources=sources, dataset={"saliency": "maps"}).saliency_of("other") == "maps"


def test_an_option_may_want_saliency_maps() -> None:
    own = {"format": "voc", "root": "voc"}
    found = {}
    for choice in ("none", "fuse"):
        sources = {"cam": {}, "other": {"method": "edam", "options": {"saliency": choice}}}
        found[choice] = {"sources": sources, "labels": {"crf": {"source": "other"}}}
    words = "dataset.saliency: missing, but `edam` (sources.other) needs it; set it to a folder of saliency maps"
    assert words in refusal(**found["fuse"], dataset=own)
    assert read(**found["none"], dataset=own | {"saliency": "maps"}).saliency_of("other") is None
    assert read(**found["fuse"], dataset=own | {"saliency": "maps"}).saliency_of("other") == "maps"


def test_the_file_of_texts_is_needed_where_something_is_made_of_it() -> None:
    sources = {"cam": {}, "clip": {"method": "clip_es", "text": "~/t.safetensors"}}
    assert "sources.clip.text" not in read(sources=sources).needed()
    config = read(sources=sources, labels={"crf": {"source": "clip"}})
    assert config.needed()["sources.clip.text"] == str(Path.home() / "t.safetensors")


def test_all_networks_may_start_from_one_source() -> None:
    """Else a comparison of labels is one of starting weights, too."""
    sources = {"cam": {}, "other": {}, "third": {}}
    labels = {**LABELS, "else": {"source": "other"}}
    network = {"encoder": {"weights": "classifier"}}
    experiments = {name: {"recipe": "single", "labels": name} for name in ("crf", "else", "truth")}
    own = read(sources=sources, labels=labels, networks={"default": network}, experiments=experiments)
    assert [own.start_of(name) for name in experiments] == ["cam", "other", "cam"]
    assert own.used_sources() == ["cam", "other"]
    network = {**network, "start": "third"}
    one = read(sources=sources, labels=labels, networks={"default": network}, experiments=experiments)
    assert [one.start_of(name) for name in experiments] == ["third"] * 3
    assert one.used_sources() == ["cam", "other", "third"]
    # a training is known by the content of the file, so that naming the same start anew makes nothing again
    assert one.networks["default"].alone.model_dump_json() == own.networks["default"].alone.model_dump_json()
    # what other processes are told of the whole configuration says where networks start, too
    assert validate_config(one.model_dump(mode="json")).start_of("else") == "third"


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"start": "cam"}, "networks.default: start: only with encoder.weights: classifier; set that, or leave start"),
        ({"start": "cma", "encoder": {"weights": "classifier"}}, "networks.default.start: no `cma` under sources; did"),
    ],
)
def test_what_is_wrong_with_where_networks_start(network: dict[str, Any], said: str) -> None:
    assert said in refusal(networks={"default": network})


def test_where_networks_start_is_no_column() -> None:
    network = {"start": "cam", "encoder": {"weights": "classifier"}}
    table = {"experiments": ["one"], "vary": ["network.start"]}
    assert "no setting `network.start`" in refusal(networks={"default": network}, comparisons={"x": table})
