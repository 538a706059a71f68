"""How every test runs: on the CPU, offline, on one thread, seeded, with annotations checked.

Helper modules lie beside the tests and are imported by their bare names:
`from reference.credit import ...`, `from tiny_models import ...`.
"""

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PROJECT = TESTS.parent

os.environ.update(
    ACCELERATE_USE_CPU="true",
    CUDA_VISIBLE_DEVICES="",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
)
sys.path.insert(0, str(TESTS))

import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Only modules imported from here on are checked; pytest's own command line can import some before.
for early in [name for name in sys.modules if name.split(".")[0] == "tokencredit"]:
    del sys.modules[early]
jaxtyping.install_import_hook("tokencredit", "beartype.beartype")

hypothesis.settings.register_profile(
    "offline", derandomize=True, database=None, deadline=None, max_examples=50
)
hypothesis.settings.load_profile("offline")
torch.set_num_threads(1)
os.fsync = lambda _: None  # no machine loses its power in a test, and hundreds of runs are written
gc.disable()  # until everything is imported: nothing of that ever goes


def pytest_collection_finish() -> None:
    """Collect garbage from here on, and never look again at what importing made."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Turn the package's warnings into errors.

    Not in pyproject.toml: pytest would import the package to read the filter there, before the
    import hook above is installed.
    """
    config.addinivalue_line("filterwarnings", "error::tokencredit.errors.TokenCreditWarning:")
    # PPO on attention is what this project compares. Its warning has tests of its own.
    biased = "ignore:credit.method .* the gradient is biased:tokencredit.errors.TokenCreditWarning"
    config.addinivalue_line("filterwarnings", biased)
    # Whether a processor has bfloat16 is no matter of the tests that compute in it.
    slow = "ignore:this processor has no fast products:tokencredit.errors.TokenCreditWarning"
    config.addinivalue_line("filterwarnings", slow)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations unchecked, as outside the tests, to reach the package's own shape errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip where it is absent."""
    folder = Path(os.environ.get("TOKENCREDIT_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            "the data folder is absent: expected ../shared/data beside the project "
            "or its path in TOKENCREDIT_DATA"
        )
    return folder
