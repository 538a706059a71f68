"""The page of architectures is what `runs/architectures.py` found, and a sample still holds."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("architectures", ROOT / "runs/architectures.py")
assert _spec is not None
assert _spec.loader is not None
architectures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architectures)
FOUND = json.loads(architectures.FOUND.read_text())


def test_the_page_is_what_was_found():
    assert architectures.PAGE.read_text() == architectures.page(FOUND)


def test_every_family_was_tried_and_none_is_silently_wrong():
    if transformers.__version__ == FOUND["transformers"]:
        assert sorted(FOUND["families"]) == architectures.FAMILIES
    verdicts = {one for family in FOUND["families"].values() for one in family.values()}
    assert not [one for one in verdicts if one.startswith("WRONG")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bart", "bert", "falcon", "gpt2", "mobilebert", "phi3"])
def test_what_was_found_still_holds(family):
    threads = torch.get_num_threads()
    found = architectures.tried(family)
    torch.set_num_threads(threads)
    words = {name: verdict.split(" (")[0] for name, verdict in found.items()}
    before = FOUND["families"][family]
    assert words == {name: verdict.split(" (")[0] for name, verdict in before.items()}
