"""Damaged, foreign and absent files are one error that names them, and nothing is unpickled."""

import json

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForSequenceClassification

from tokencredit.errors import ConfigError, ModelError
from tokencredit.models import hf_files
from tokencredit.models.hf_loading import load_config, load_model, load_tokenizer

CLASSIFIER = AutoModelForSequenceClassification


@pytest.fixture
def saved(tmp_path):
    save_reward_model(tmp_path, byte_level(), "llama")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("model.safetensors", lambda folder: load_model(CLASSIFIER, folder)),
        ("config.json", lambda folder: load_model(CLASSIFIER, folder)),
        ("tokenizer.json", load_tokenizer),
    ],
)
def test_a_pointer_of_git_lfs(saved, file, load):
    (saved / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=rf"{saved}/{file}' is a pointer of git-lfs"):
        load(saved)


@pytest.mark.parametrize("bytes_left", [0, 5, 100, -1])
def test_weights_that_are_cut_off(saved, bytes_left):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(ModelError, match=rf"{file}' cannot be read as safetensors.*cut off"):
        load_model(CLASSIFIER, saved)


def sharded(folder, change):
    """A model in several files, whose index went through `change`."""
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))
    return folder


def test_several_files(tmp_path):
    sharded(tmp_path, lambda names: None)
    assert load_model(CLASSIFIER, tmp_path).score.out_features == 1


def test_an_index_that_names_a_pickle(tmp_path):
    def named(names):
        names["score.weight"] = "head.bin"

    sharded(tmp_path, named)
    torch.save({"score.weight": torch.ones(1, 32)}, tmp_path / "head.bin")
    with pytest.raises(ModelError, match=r"index.json' names 'head.bin'.*nothing is unpickled"):
        load_model(CLASSIFIER, tmp_path)


def test_a_configuration_that_names_a_pickle(saved):
    config = json.loads((saved / "config.json").read_text())
    config["transformers_weights"] = "adapter_model.bin"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"names 'adapter_model.bin' as the file of its weights"):
        load_model(CLASSIFIER, saved)


def test_an_index_that_names_an_absent_file(tmp_path):
    sharded(tmp_path, lambda names: names.update({"score.weight": "far.safetensors"}))
    with pytest.raises(ModelError, match=r"names 'far.safetensors', which is not beside it"):
        load_model(CLASSIFIER, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path, content):
    sharded(tmp_path, lambda names: None)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="is no index of weights"):
        load_model(CLASSIFIER, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": "32"},
        {"hidden_act": "swish9"},
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}},
        {"model_type": "model_of_tomorrow"},
        {"num_attention_heads": 0},
    ],
)
def test_a_configuration_that_transformers_refuses(saved, changed):
    config = json.loads((saved / "config.json").read_text()) | changed
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"{saved}' \(config.json.*not newer than"):
        load_model(CLASSIFIER, saved)


def test_a_tokenizer_newer_than_the_package(saved):
    content = json.loads((saved / "tokenizer.json").read_text())
    content["model"]["type"] = "ModelOfTomorrow"
    (saved / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"{saved}' \(tokenizer.json.*not newer than"):
        load_tokenizer(saved)


@pytest.mark.parametrize("device", ["cuda:0", "gpu", "cpu:x"])
def test_a_device_that_is_not_there(saved, device):
    with pytest.raises(ConfigError, match=rf"device is '{device}'.*expected 'cpu'"):
        load_model(CLASSIFIER, saved, device=device)


def test_a_file_in_the_place_of_its_folder(saved):
    with pytest.raises(ModelError, match="is a file; expected the folder that holds it"):
        load_model(CLASSIFIER, saved / "model.safetensors")


def test_a_mistyped_folder_is_known_from_the_one_it_would_lie_in(saved, monkeypatch):
    (saved / "policies" / "llama").mkdir(parents=True)
    monkeypatch.chdir(saved)
    monkeypatch.setattr(hf_files, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(hf_files.constants, "HF_HUB_OFFLINE", False)
    for name in ("policies/lama", "policies\\llama", "a b", "./policies/lama"):
        with pytest.raises(ModelError, match="there is no folder") as said:
            load_tokenizer(name)
    assert "(there is 'policies/llama')" in str(said.value)


class Hub:
    """What the Hub answers, and how often it was asked."""

    def __init__(self, error):
        self.error, self.asked = error, 0

    def __call__(self, url, *, timeout):
        assert timeout <= 5
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route"), r"cannot be reached \(ConnectionError: no route\)"),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "knows none that you may read"),
    ],
)
def test_the_hub_is_asked_once(monkeypatch, error, said):
    hub = Hub(error)
    monkeypatch.setattr(hf_files, "get_hf_file_metadata", hub)
    monkeypatch.setattr(hf_files.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=said):
        load_model(CLASSIFIER, "nosuchmodel")
    assert hub.asked == 1


def test_a_hub_that_is_silent_leaves_the_cache(monkeypatch):
    monkeypatch.setattr(hf_files, "get_hf_file_metadata", Hub(ConnectionError("no route")))
    monkeypatch.setattr(hf_files.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_files, "try_to_load_from_cache", lambda name, file: "/cache/config.json")
    assert hf_files.found_place("owner/model", what="model").local_only
    monkeypatch.setattr(hf_files, "get_hf_file_metadata", Hub(EntryNotFoundError("no file")))
    assert not hf_files.found_place("owner/model", what="model").local_only


def test_the_configuration_alone(saved):
    assert load_config(saved).model_type == "llama"
    with pytest.raises(ModelError, match="there is no folder"):
        load_config("./nowhere")
