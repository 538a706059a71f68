"""`tokencredit merge-weights`: the merged policy, and what is refused with nothing written."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import tiny_config, write_models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError, ModelError, RunFolderError
from tokencredit.models.merging import depth_groups
from tokencredit.recipes.merging.merge_weights import MergeWeightsConfig, merge_weights
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.settings import settings_from
from tokencredit.toy.hf_tokenizer import toy_tokenizer


def saved(folder, seed: int, **changes):
    tokenizer = toy_tokenizer()
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    saved(folder / "base", 0)
    saved(folder / "tuned", 1)
    saved(folder / "tied-base", 2, tie_word_embeddings=True)
    saved(folder / "tied", 3, tie_word_embeddings=True)
    saved(folder / "wider", 4, hidden_size=32)
    saved(folder / "deeper", 5, num_hidden_layers=4)
    rows = [
        {"prompt": "the plot is", "response": " good", "ended": True},
        {"prompt": "this film", "response": " was a bad comedy", "ended": False},
        {"prompt": "the cast", "response": " is great", "ended": True},
    ]
    (folder / "best.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(models, output, base="base", tuned="tuned", **changes) -> MergeWeightsConfig:
    values = {"base": str(models / base), "tuned": str(models / tuned), "output": str(output)}
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return settings_from(MergeWeightsConfig, {**values, **changed})


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("base", "tuned"), [("base", "tuned"), ("tied-base", "tied")], ids=["untied", "tied"]
)
def test_the_average_is_halfway_and_tied_weights_stay_tied(models, tmp_path, base, tuned):
    merge_weights(config_of(models, tmp_path / "merged", base, tuned))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    before, after = (AutoModelForCausalLM.from_pretrained(models / n) for n in (base, tuned))
    for name, weight in merged.named_parameters():
        expected = (before.get_parameter(name) + after.get_parameter(name)) / 2
        torch.testing.assert_close(weight, expected)
    head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
    assert (head.weight is embeddings.weight) == (tuned == "tied")


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"share": 1.0}, "tuned"),
        ({"share": 0.0}, "base"),
        ({"method": "lines", "alpha": 1.0, "beta": 0.0}, "tuned"),
        ({"method": "lines", "alpha": 0.0, "beta": 0.0}, "base"),
    ],
)
def test_at_the_ends_are_the_models(models, tmp_path, settings, model):
    merge_weights(config_of(models, tmp_path / "merged", **settings))
    expected = weights(models / model)
    assert all(torch.equal(v, expected[k]) for k, v in weights(tmp_path / "merged").items())


def test_lines_give_deeper_blocks_more(models, tmp_path):
    merge_weights(config_of(models, tmp_path / "merged", method="lines"))
    folders = (tmp_path / "merged", models / "base", models / "tuned")
    merged, base, tuned = map(weights, folders)
    for name, share in {"layers.0.": 0.0, "layers.1.": 0.5, "layers.2.": 1.0, "embed": 0.0}.items():
        for key in (key for key in merged if name in key):
            torch.testing.assert_close(merged[key], base[key] + share * (tuned[key] - base[key]))
    told = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert told["shares"]["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert told["settings"]["method"] == "lines"


def test_fitted_shares_keep_their_mean_and_write_better(models, tmp_path):
    data = str(models / "best.jsonl")
    fit = {"method": "ama", "ama.data": data, "ama.batch_size": 2, "ama.base_share": 0.5}
    losses, shares = {}, {}
    for name, epochs in (("even", 1), ("fitted", 40)):
        rate = {"ama.learning_rate": 1e-9 if name == "even" else 0.2, "ama.epochs": epochs}
        folder = merge_weights(config_of(models, tmp_path / name, **fit, **rate))
        shares[name] = json.loads((folder / "merge.json").read_text())["shares"]
        losses[name] = likelihood(folder, models / "best.jsonl")
    groups = depth_groups(shares["fitted"], 3)
    blocks = {group: shares["fitted"][name] for name, group in groups.items() if group is not None}
    assert sum(blocks.values()) / 3 == pytest.approx(0.5, abs=1e-6)
    assert max(blocks.values()) - min(blocks.values()) > 0.05
    assert all(share == pytest.approx(0.5, abs=1e-6) for share in shares["even"].values())
    assert shares["fitted"]["model.embed_tokens.weight"] == pytest.approx(0.5)
    assert losses["fitted"] < losses["even"]


def likelihood(folder, data) -> float:
    """Negative log-likelihood of the responses, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), toy_tokenizer()
    total = 0.0
    for line in data.read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(row["prompt"] + row["response"])["input_ids"]
        start = len(tokenizer(row["prompt"])["input_ids"])
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(logprobs[t - 1, ids[t]].item() for t in range(start, len(ids)))
    return total


def test_the_same_seed_fits_the_same(models, tmp_path):
    fit = {"method": "ama", "ama__data": str(models / "best.jsonl"), "ama__batch_size": 1}
    for name in ("one", "two"):
        merge_weights(config_of(models, tmp_path / name, **fit))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_a_policy_with_an_adapter_from_the_command_line(tmp_path):
    folder = write_models(tmp_path / "models")
    policy = train_policy(tiny_config(folder, tmp_path / "run", steps=1, lora__rank=2))
    given = ["--base", str(folder / "policy"), "--tuned", str(policy)]
    told = ["--output", str(tmp_path / "merged"), "--method", "lines", "--alpha", "0.5"]
    assert main(["merge-weights", *given, *told, "--beta", "0.5"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ("base", "wider", "has shape"),
        ("base", "deeper", "in one of the models alone"),
        ("tied", "tuned", "lm_head.weight.*weights tied"),
        ("base", "tied", "lm_head.weight.*weights tied"),
    ],
)
def test_models_that_do_not_fit_leave_nothing(models, tmp_path, base, tuned, message):
    with pytest.raises(ModelError, match=message):
        merge_weights(config_of(models, tmp_path / "merged", base, tuned))
    assert not list(tmp_path.iterdir())


def test_other_vocabularies_are_refused(models, tmp_path):
    other = saved(tmp_path / "other", 6)
    tokenizer = toy_tokenizer()
    file = json.loads((other / "tokenizer.json").read_text())
    vocab = file["model"]["vocab"]
    vocab["good"], vocab["bad"] = vocab["bad"], vocab["good"]
    (other / "tokenizer.json").write_text(json.dumps(file))
    assert tokenizer.get_vocab()["good"] == vocab["bad"]
    config = MergeWeightsConfig(str(models / "base"), str(other), str(tmp_path / "merged"))
    with pytest.raises(ModelError, match="different vocabularies"):
        merge_weights(config)


def test_a_folder_that_is_there_is_left_alone(models, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "kept.txt").write_text("kept")
    with pytest.raises(RunFolderError, match="is there already"):
        merge_weights(config_of(models, tmp_path / "merged"))
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "line"}, "did you mean 'lines'"),
        ({"share": 1.5}, "share is 1.5"),
        ({"method": "ama"}, "expected texts for 'ama'"),
        ({"ama.data": "x"}, "and none for others"),
        ({"method": "ama", "ama.data": "x", "ama.groups": 0}, r"ama\.groups is 0"),
        ({"method": "ama", "ama.data": "x", "ama.learning_rate": 0.0}, r"ama\.learning_rate is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(models, tmp_path / "merged", **changes)


def test_texts_that_are_not_there_leave_nothing(models, tmp_path):
    config = config_of(models, tmp_path / "m", method="ama", ama__data=str(tmp_path / "no.jsonl"))
    with pytest.raises(DataError):
        merge_weights(config)
    assert not list(tmp_path.iterdir())
