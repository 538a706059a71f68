"""Every error and warning this package raises on purpose.

TokenCreditError
├── ConfigError          a setting is unknown, misspelt or contradicts another
├── DataError            a file, dataset, prompt or response cannot be used as it is
│   └── VerdictError     what a judge says of a response cannot be read
├── ModelError           a model or tokenizer is missing or lacks what a method needs
├── ShapeError           tensors do not fit each other (also a ValueError)
├── NumericError         a score, loss or gradient is NaN or infinite
├── ProcessError         another process of a training died or fell silent
├── ServerError          a server of rewards or of responses is not there, or answers wrongly
└── RunFolderError       a run folder holds another run, or cannot be written

TokenCreditWarning       something works, but probably not as hoped

Each message says what was received, what was expected, and how to mend it.
"""


class TokenCreditError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TokenCreditError, ValueError):
    """A setting is unknown, misspelt or contradicts another."""


class DataError(TokenCreditError, ValueError):
    """A file, dataset, prompt or response cannot be used as it is."""


class VerdictError(DataError):
    """What a judge says of a response cannot be read."""


class ModelError(TokenCreditError, ValueError):
    """A model or tokenizer is missing or lacks what a method needs."""


class ShapeError(TokenCreditError, ValueError):
    """Tensors do not fit each other."""


class NumericError(TokenCreditError, ArithmeticError):
    """A score, loss or gradient is NaN or infinite."""


class ProcessError(TokenCreditError, RuntimeError):
    """Another process of a training died or fell silent."""


class ServerError(TokenCreditError, ConnectionError):
    """A server of rewards or of responses is not there, or answers wrongly."""


class RunFolderError(TokenCreditError, OSError):
    """A run folder holds another run, or cannot be written."""


class TokenCreditWarning(UserWarning):
    """Something works, but probably not as hoped."""
