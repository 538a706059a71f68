import pytest
import torch
from reference.attention import attention_row

from tokencredit.models.attention_rows import at_positions, attention_rows, visible_by_distance


def test_literal():
    queries = torch.tensor([[[[1.0]]]])
    keys = torch.tensor([[[[0.0], [1.0], [5.0]]]])
    visible = torch.tensor([[[[True, True, False]]]])
    rows = attention_rows(queries, keys, visible, scaling=1.0)
    torch.testing.assert_close(rows, torch.tensor([[[0.268941, 0.731059, 0.0]]]))


@pytest.mark.parametrize("extra", ["plain", "softcap", "bias", "sinks"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_equals_the_loop(extra, key_heads):
    batch, heads, rows, length, width = 2, 4, 3, 5, 6
    queries = torch.randn(batch, heads, rows, width)
    keys = torch.randn(batch, key_heads, length, width)
    visible = torch.rand(batch, 1, rows, length) < 0.7
    visible[..., 0] = True
    options = {
        "plain": {},
        "softcap": {"softcap": 1.5},
        "bias": {"bias": torch.randn(batch, heads, rows, length)},
        "sinks": {"sinks": torch.randn(heads)},
    }[extra]
    found = attention_rows(queries, keys, visible, scaling=0.7, **options)
    for b in range(batch):
        for r in range(rows):
            per_head = []
            for h in range(heads):
                single = {"softcap": options.get("softcap")}
                if extra == "bias":
                    single["bias"] = options["bias"][b, h, r].tolist()
                if extra == "sinks":
                    single["sink"] = options["sinks"][h].item()
                per_head.append(
                    attention_row(
                        queries[b, h, r].tolist(),
                        keys[b, h * key_heads // heads].tolist(),
                        visible[b, 0, r].tolist(),
                        scaling=0.7,
                        **single,
                    )
                )
            mean = torch.tensor(per_head, dtype=torch.float64).mean(0).float()
            torch.testing.assert_close(found[b, r], mean, rtol=1e-5, atol=1e-6)


def test_scaling_is_one_over_the_root_of_the_width_by_default():
    queries, keys = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 3, 4)
    visible = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    by_default = attention_rows(queries, keys, visible)
    torch.testing.assert_close(by_default, attention_rows(queries, keys, visible, scaling=0.5))


def test_bfloat16_under_autocast_gives_float32_computed_in_float32():
    queries, keys = torch.randn(1, 2, 1, 4).bfloat16(), torch.randn(1, 2, 3, 4).bfloat16()
    visible = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = attention_rows(queries, keys, visible)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, attention_rows(queries.float(), keys.float(), visible))


def test_keys_out_of_sight_change_nothing():
    queries, keys = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 3, 4)
    visible = torch.tensor([[[[True, False, True]]]])
    rows = attention_rows(queries, keys, visible)
    keys[:, :, 1] = 1e3
    torch.testing.assert_close(attention_rows(queries, keys, visible), rows)
    assert rows[0, 0, 1] == 0


def test_at_positions_takes_each_rows_own_entries():
    values = torch.arange(12.0).view(2, 1, 3, 2)
    found = at_positions(values, torch.tensor([[2, 0], [1, 1]]))
    assert found.tolist() == [[[[4, 5], [0, 1]]], [[[8, 9], [8, 9]]]]


def test_at_positions_repeats_what_is_shared():
    found = at_positions(torch.tensor([[[[3.0]]]]), torch.tensor([[2, 0], [1, 1]]))
    assert found.shape == (2, 1, 2, 1)
    assert (found == 3).all()


def test_visible_by_distance():
    positions = torch.tensor([[2]])
    seen = {
        (causal, window): visible_by_distance(positions, 4, causal=causal, window=window)
        .int()
        .flatten()
        .tolist()
        for causal in (True, False)
        for window in (None, 2)
    }
    assert seen == {
        (True, None): [1, 1, 1, 0],
        (True, 2): [0, 1, 1, 0],
        (False, None): [1, 1, 1, 1],
        (False, 2): [0, 1, 1, 1],
    }
