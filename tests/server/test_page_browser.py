"""The page in a real browser: what one types is what one sees, and nothing of it is obeyed."""

import pytest
from chromium import chromium_or_skip
from tiny_tokenizers import CORPUS, byte_level

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from credit_names import ONE_PASS_ALONE
from tiny_server import listening, tiny_app, tiny_served

EVIL = '</textarea><script>window.obeyed = 1</script><img src=x onerror="window.obeyed = 1">'
ROWS = "[...document.querySelectorAll('.tokencredit-heatmap .row')]"
TEXT = "[...row.querySelectorAll('.tokens span')].map(cell => cell.textContent).join('')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium_or_skip(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address():
    # Enough texts for "<script>" to be no row of single characters.
    served = tiny_served(byte_level(bos=True, texts=(*CORPUS, "<script>script</script>")))
    with listening(tiny_app(served, token="sesame")) as address:
        yield address


def score(browser, address, *, response, prompt="the film is", token="sesame"):
    browser.open(f"{address}/")
    browser.type("textarea[name=prompt]", prompt)
    browser.type("textarea[name=response]", response)
    browser.type("input[name=token]", token)
    browser.click("button")
    browser.wait("document.querySelector('.tokencredit-heatmap, .problem')")


def test_a_heat_map_by_method_of_what_was_typed(browser, address):
    response = " a good café 🙂 film"
    score(browser, address, response=response)
    names = browser.value(f"{ROWS}.map(row => row.querySelector('.name').firstChild.data)")
    assert names == list(ONE_PASS_ALONE)
    for shown in browser.value(f"{ROWS}.map(row => row.querySelector('.tokens').textContent)"):
        assert shown.strip() == response.strip()
    colours = browser.value(
        f"{ROWS}.map(row => new Set([...row.querySelectorAll('.tokens span')]"
        ".map(cell => getComputedStyle(cell).backgroundColor)).size)"
    )
    by_method = dict(zip(names, colours, strict=True))
    # The tokens of the emoji are one piece, which gets the pay of them all.
    assert by_method["uniform"] == 2
    assert by_method["terminal"] == 2
    assert by_method["attention"] > 2
    assert browser.value("document.querySelector('textarea[name=response]').value") == response
    assert browser.value("document.querySelector('input[name=token]').value") == ""


def test_scripts_show_as_text_and_do_not_run(browser, address):
    score(browser, address, prompt=EVIL, response=EVIL)
    for shown in browser.value(f"{ROWS}.map(row => {TEXT})"):
        assert shown.replace(" ", "") == EVIL.replace(" ", "")
    for field in ("prompt", "response"):
        assert browser.value(f"document.querySelector('textarea[name={field}]').value") == EVIL
    assert browser.value("document.scripts.length") == 0
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("typeof window.obeyed") == "undefined"


def test_nothing_is_loaded_from_elsewhere(browser, address):
    browser.open(f"{address}/")
    loaded = browser.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(address)] == []


def test_mistakes_show_on_the_page(browser, address):
    score(browser, address, response="good", token="wrong")
    assert "not the right one" in browser.value("document.querySelector('.problem').textContent")
    assert browser.value("document.querySelector('textarea[name=response]').value") == "good"
    score(browser, address, response=" bad" * 200)
    assert "expected at most 128" in browser.value("document.querySelector('.problem').textContent")
