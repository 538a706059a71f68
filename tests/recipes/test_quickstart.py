import json
from pathlib import Path

import pytest

from tokencredit.errors import RunFolderError
from tokencredit.recipes.quickstart import CREDITS, QuickstartConfig, quickstart
from tokencredit.recipes.quickstart_report import (
    first_step_at,
    running_means,
    true_rewards_by_step,
)
from tokencredit.toy.truth import split_words, true_reward


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> tuple[QuickstartConfig, Path, str]:
    output = tmp_path_factory.mktemp("story") / "quickstart"
    config = QuickstartConfig(
        output=str(output), steps=2, batch_size=4, reviews=40, max_new_tokens=6, progress=False
    )
    return config, output, quickstart(config).read_text()


def test_the_report_needs_nothing_beside_it(story):
    _, output, page = story
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (output / "learning-curves.png").stat().st_size > 1000
    assert (output / "credit-by-position.png").stat().st_size > 1000


def test_every_credit_has_its_row_and_its_heat_map(story):
    _, _, page = story
    for name in (*CREDITS, "truth (causal)", "truth (Shapley)"):
        assert page.count(name) >= 3, name


def test_a_second_run_trains_nothing_again(story):
    config, output, page = story
    models = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    rows = (output / "policy-terminal" / "metrics.jsonl").read_text()
    assert quickstart(config).read_text() == page
    kept = {path for path in models if "checkpoints" in path.parts or "model" in path.parts[-2]}
    assert kept
    assert all(path.stat().st_mtime_ns == models[path] for path in kept)
    assert (output / "policy-terminal" / "metrics.jsonl").read_text() == rows


def test_other_data_in_the_folder_is_refused(story):
    config, output, _ = story
    with pytest.raises(RunFolderError, match="other settings"):
        quickstart(QuickstartConfig(output=str(output), reviews=41, progress=False))
    assert json.loads((output / "data" / "drawn.json").read_text())["reviews"] == config.reviews


def test_true_rewards_are_those_of_the_written_samples(story):
    _, output, _ = story
    run = output / "policy-uniform"
    samples = [json.loads(line) for line in (run / "samples.jsonl").open()]
    first = [true_reward(split_words(s["response"])) for s in samples if s["step"] == 0]
    assert len(first) == 4
    assert true_rewards_by_step(run)[0] == pytest.approx(sum(first) / 4)


def test_running_means_of_a_short_curve_are_its_mean():
    assert running_means([1.0, 2.0], 5) == [1.5]


def test_first_step_counts_from_one_and_may_never_come():
    assert first_step_at([5.0], 1.0) == 1
    assert first_step_at([0.0, 0.0], 1.0) is None
