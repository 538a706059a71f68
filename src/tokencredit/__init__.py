"""One reward per token instead of one per response.

The names below are pure functions on tensors; importing them imports no Hugging Face library.
`__init__.pyi` lists them; each is imported when it is first asked for, so that the command line
answers at once.
What talks to models lies in `tokencredit.reward_model.hf_scores`, `tokencredit.policy` and the
other modules named `hf_*`; whole jobs lie in `tokencredit.recipes` and behind the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
