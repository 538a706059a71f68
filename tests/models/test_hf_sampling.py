import pytest
import torch
from causal_models import FAMILIES, causal
from peft import LoraConfig, get_peft_model
from tiny_models import PAD_ID, tiny_ids

from tokencredit.models import hf_shared_beginnings
from tokencredit.models.hf_sampling import drawn_sequences
from tokencredit.sampling import Sampling

WIDTH, SAMPLES = 9, 3
NEW = Sampling(max_new_tokens=6, min_new_tokens=6)


def drawing(family, **changes):
    """A tiny language model with logits that differ enough to draw from."""
    model = causal(family, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0.0, 0.3)
    return model


def prompts(lengths=(WIDTH, 5, 1)):
    ids = tiny_ids(len(lengths), WIDTH)
    mask = torch.arange(WIDTH) >= WIDTH - torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, PAD_ID), mask


def drawn(model, ids, mask, *, price, monkeypatch, sampling=NEW, **options):
    """Sequences, and how many tokens every pass read."""
    monkeypatch.setattr(hf_shared_beginnings, "_PRICE", price)
    read = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: read.append(args[0].numel())
    )
    torch.manual_seed(0)
    try:
        found = drawn_sequences(
            model, ids, mask, sampling=sampling, pad_token_id=PAD_ID, eos_token_id=1, **options
        )
    finally:
        handle.remove()
    return found, read


@pytest.mark.parametrize("repeated_by", ["copies", "rows"])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_responses_are_those_of_prompts_read_for_every_row(
    family, changes, repeated_by, monkeypatch
):
    model = drawing(family, **changes)
    ids, mask = prompts()
    options = {"copies": SAMPLES}
    if repeated_by == "rows":
        ids, mask, options = ids.repeat(SAMPLES, 1), mask.repeat(SAMPLES, 1), {}
    drawn(model, ids, mask, price=1, monkeypatch=monkeypatch, **options)  # tries the model once
    once, read = drawn(model, ids, mask, price=1, monkeypatch=monkeypatch, **options)
    whole, read_whole = drawn(model, ids, mask, price=10**6, monkeypatch=monkeypatch, **options)
    assert torch.equal(once, whole)
    assert once[:, WIDTH:].unique(dim=0).shape[0] > len(prompts()[0])  # they are drawn apart
    rest = [len(once)] * (NEW.max_new_tokens - 1)
    assert read == [3 * (WIDTH - 1), len(once), *rest]
    assert read_whole == [len(once) * WIDTH, *rest]


def test_logits_at_every_step_are_those_of_whole_rows(monkeypatch):
    model = drawing("llama").double()
    ids, mask = prompts()
    told = {1: [], 10**6: []}
    for price, steps in told.items():
        watch = lambda logits, _drawn, steps=steps: steps.append(logits)  # noqa: E731
        drawn(model, ids, mask, price=price, monkeypatch=monkeypatch, copies=SAMPLES, watch=watch)
    torch.testing.assert_close(told[1], told[10**6], rtol=1e-6, atol=1e-6)


def test_adapters_are_part_of_what_is_read_once(monkeypatch):
    adapted = get_peft_model(drawing("llama"), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.3)
    ids, mask = prompts()
    once, read = drawn(adapted, ids, mask, price=1, monkeypatch=monkeypatch, copies=SAMPLES)
    whole, _ = drawn(adapted, ids, mask, price=10**6, monkeypatch=monkeypatch, copies=SAMPLES)
    assert torch.equal(once, whole)
    assert len(once) * WIDTH not in read


def test_what_stands_in_padding_does_not_matter(monkeypatch):
    model = drawing("llama")
    ids, mask = prompts()
    once, _ = drawn(model, ids, mask, price=1, monkeypatch=monkeypatch, copies=SAMPLES)
    other = ids.where(mask, tiny_ids(*ids.shape, seed=7))
    found, _ = drawn(model, other, mask, price=1, monkeypatch=monkeypatch, copies=SAMPLES)
    assert torch.equal(found[:, WIDTH:], once[:, WIDTH:])


@pytest.mark.parametrize(
    ("family", "price", "copies"),
    [
        ("llama", 3 * (SAMPLES - 1) * (WIDTH - 1) + 1, SAMPLES),  # saves too little
        ("llama", 1, 1),  # nothing stands twice
        ("mistral", 1, SAMPLES),  # a window shorter than the text
        ("bloom", 1, SAMPLES),  # takes no positions
    ],
)
def test_whole_rows_are_read_where_it_does_not_pay_or_cannot_be(family, price, copies, monkeypatch):
    model = drawing(family)
    ids, mask = prompts()
    _, read = drawn(model, ids, mask, price=price, monkeypatch=monkeypatch, copies=copies)
    assert read[0] == len(ids) * copies * WIDTH


@pytest.mark.parametrize("in_step", [True, False])
def test_processes_that_keep_in_step_make_the_same_passes(in_step, monkeypatch):
    model = drawing("llama")
    ids, mask = prompts()
    told = {}
    monkeypatch.setattr(model, "generate", lambda **arguments: told.update(arguments) or ids)
    drawn(model, ids, mask, price=1, monkeypatch=monkeypatch, copies=SAMPLES, in_step=in_step)
    assert bool({"cache", "past_key_values"} & set(told)) != in_step
