import importlib
import re
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from tokencredit.engines import versions
from tokencredit.errors import ConfigError


@pytest.mark.parametrize("found", ["1.16.0", "1.16", "1.16.9.post1", "1.16.1rc1"])
def test_a_tested_version_passes(found, monkeypatch):
    monkeypatch.setattr(versions, "version", lambda package: found)
    versions.require_version("trl", at_least="1.16", below="1.17", extra="trl")


@pytest.mark.parametrize("found", ["1.15.3", "1.17.0", "1.17.0.dev0", "2.0", "0.29.1"])
def test_another_version_is_an_error_that_says_how_to_go_on(found, monkeypatch):
    monkeypatch.setattr(versions, "version", lambda package: found)
    message = rf"trl is {re.escape(found)}; expected trl>=1.16,<1.17.*TOKENCREDIT_ANY_VERSION=1"
    with pytest.raises(ConfigError, match=message):
        versions.require_version("trl", at_least="1.16", below="1.17", extra="trl")
    monkeypatch.setenv(versions.ANY_VERSION, "1")
    versions.require_version("trl", at_least="1.16", below="1.17", extra="trl")


def test_a_missing_package_is_an_error_that_says_what_to_install():
    with pytest.raises(ConfigError, match=r"no-such is not installed.*'tokencredit\[some\]'"):
        versions.require_version("no-such", at_least="1", below="2", extra="some")


def test_the_adapter_without_trl_says_what_to_install(monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", absent)
    monkeypatch.delitem(sys.modules, "tokencredit.engines.trl_grpo", raising=False)
    message = r"trl is not installed; expected trl>=1.16,<1.17: pip install 'tokencredit\[trl\]'"
    with pytest.raises(ConfigError, match=message):
        importlib.import_module("tokencredit.engines.trl_grpo")
