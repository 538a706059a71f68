"""The page in a real browser: what one types is what one sees, and nothing of it is obeyed."""

import json
import re
from urllib.parse import urlencode

import pytest
from chromium import chromium_or_skip
from contrast import contrast
from saved_models import save_reward_model
from tiny_tokenizers import CORPUS, byte_level

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import listening, tiny_app, tiny_served

from tokencredit.recipes.serving.serve import ServeConfig, application_of

EVIL = '</textarea><script>window.obeyed = 1</script><img src=x onerror="window.obeyed = 1">'
ROWS = "[...document.querySelectorAll('.tokencredit-heatmap .row')]"
TEXT = "[...row.querySelectorAll('.tokens span')].map(cell => cell.textContent).join('')"
SCORED = "document.getElementById('status').textContent.endsWith('Scored.')"
FIRST_CHOICE = ["attention", "prefix-difference"]
STATE = {
    "prompt": "the film & <b>",
    "response": " a good café 🙂 film\nand more",
    "other": " a bad one #1",
    "credit": ["uniform", "attention"],
}


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


@pytest.fixture(scope="module")
def open_address(tmp_path_factory):
    """A server that asks for no token, of a model with three objectives."""
    names = ("helpful", "short", "true")
    folder = tmp_path_factory.mktemp("models") / "rm"
    save_reward_model(
        folder,
        byte_level(),
        "llama",
        num_labels=3,
        id2label=dict(enumerate(names)),
        label2id={name: output for output, name in enumerate(names)},
        problem_type="regression",
        max_position_embeddings=512,
    )
    asked = f"{folder}#helpful=0.5,short=-1,true=2"
    with listening(application_of(ServeConfig(reward_model=asked))) as address:
        yield address


def score(browser, address, *, response, prompt="the film is", token="sesame"):
    browser.show(width=1280)
    browser.open(f"{address}/")
    browser.type("textarea[name=prompt]", prompt)
    browser.type("textarea[name=response]", response)
    browser.type("input[name=token]", token)
    browser.click("button")
    browser.wait("document.querySelector('.tokencredit-heatmap, .problem')")


def show_state(browser, address, state, *, width=1280, scheme="light"):
    """The page of a link, once its answer is there."""
    browser.show(width=width, scheme=scheme)
    browser.open("about:blank")
    # The page writes its address anew, so that its text may be another.
    browser.call("Page.navigate", url=f"{address}/#{urlencode(state, doseq=True)}")
    browser.wait(SCORED)


def field(browser, name):
    return browser.value(f"document.querySelector('textarea[name={name}]').value")


def chosen(browser, name):
    return browser.value(
        f"[...document.querySelectorAll('input[name={name}]:checked')].map(box => box.value)"
    )


def test_a_heat_map_by_method_of_what_was_typed(browser, address):
    response = " a good café 🙂 film"
    score(browser, address, response=response)
    names = browser.value(f"{ROWS}.map(row => row.querySelector('.name').firstChild.data)")
    assert names == FIRST_CHOICE
    for shown in browser.value(f"{ROWS}.map(row => row.querySelector('.tokens').textContent)"):
        assert shown.strip() == response.strip()
    browser.wait(SCORED)
    for name in ("attention", "prefix-difference", "uniform", "terminal"):
        browser.click(f"input[value={name}]")
    names = ["terminal", "uniform"]
    browser.wait(f"JSON.stringify({ROWS}.map(row => row.querySelector('.name').firstChild.data))"
                 f" == {json.dumps(json.dumps(names, separators=(',', ':')))}")  # fmt: skip
    colours = browser.value(
        f"{ROWS}.map(row => new Set([...row.querySelectorAll('.tokens span')]"
        ".map(cell => getComputedStyle(cell).backgroundColor)).size)"
    )
    # The tokens of the emoji are one piece, which gets the pay of them all.
    assert colours == [2, 2]
    assert field(browser, "response") == response
    # The token stays where it was typed, and is in no address.
    assert browser.value("document.querySelector('input[name=token]').value") == "sesame"
    assert "sesame" not in browser.value("location.href")


def test_scripts_show_as_text_and_do_not_run(browser, address):
    score(browser, address, prompt=EVIL, response=EVIL)
    for shown in browser.value(f"{ROWS}.map(row => {TEXT})"):
        assert shown.replace(" ", "") == EVIL.replace(" ", "")
    for name in ("prompt", "response"):
        assert field(browser, name) == EVIL
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("typeof window.obeyed") == "undefined"


def test_a_hostile_link_is_shown_and_not_obeyed(browser, open_address):
    state = {"prompt": EVIL, "response": EVIL[:60], "credit": [EVIL, "attention"]}
    show_state(browser, open_address, state)
    browser.hover(".tokens span")
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("typeof window.obeyed") == "undefined"
    status = browser.value("document.getElementById('status').textContent")
    assert status.startswith(f"Not on offer here: {EVIL}")


def test_nothing_is_loaded_from_elsewhere(browser, address):
    score(browser, address, response=" good")
    loaded = browser.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(address)] == []


def test_mistakes_show_on_the_page(browser, address):
    score(browser, address, response="good", token="wrong")
    assert "not the right one" in browser.value("document.querySelector('.problem').textContent")
    assert field(browser, "response") == "good"
    score(browser, address, response=" bad" * 200)
    assert "expected at most 128" in browser.value("document.querySelector('.problem').textContent")


def test_a_link_restores_what_was_typed_and_chosen(browser, open_address):
    browser.show(width=1280)
    browser.open(f"{open_address}/")
    for name in ("prompt", "response", "other"):
        browser.type(f"textarea[name={name}]", STATE[name])
    for name in ("prefix-difference", "uniform"):
        browser.click(f"input[value={name}]")
    browser.click("input[value=short]")
    browser.click("form button")
    browser.wait(SCORED)
    browser.click("#copy")
    link = browser.value("location.href")
    drawn = browser.value("document.querySelector('.tokencredit-compared').outerHTML")
    browser.open("about:blank")
    browser.open(link)
    browser.wait(SCORED)
    for name in ("prompt", "response", "other"):
        assert field(browser, name) == STATE[name]
    assert chosen(browser, "credit") == STATE["credit"]
    assert chosen(browser, "objective") == ["helpful", "true"]
    assert browser.value("document.querySelector('.tokencredit-compared').outerHTML") == drawn
    # Nothing of it is asked of the server by an address, which servers write into logs.
    loaded = browser.value("performance.getEntries().map(entry => entry.name)")
    asked = [name for name in loaded if name.startswith(open_address) and "#" not in name]
    assert {name.removeprefix(open_address) for name in asked} <= {"/", "/favicon.ico"}


def test_a_link_waits_for_the_token(browser, address):
    browser.show(width=1280)
    browser.open("about:blank")
    browser.open(f"{address}/#{urlencode(STATE, doseq=True)}")
    browser.wait("document.activeElement.name == 'token'")
    assert field(browser, "response") == STATE["response"]
    assert browser.value("document.querySelector('.tokencredit-heatmap')") is None


@pytest.mark.parametrize("width", [1280, 390])
def test_two_responses_are_compared_on_one_scale(browser, open_address, width):
    show_state(browser, open_address, STATE, width=width)
    boxes = browser.value(
        "[...document.querySelectorAll('figure')].map(one => one.getBoundingClientRect().toJSON())"
    )
    first, second = boxes
    if width == 1280:
        assert first["top"] == second["top"]
        assert first["right"] <= second["left"]
        tops = browser.value(f"{ROWS}.map(row => row.getBoundingClientRect().top)")
        half = len(tops) // 2
        assert tops[:half] == tops[half:]
    else:
        assert first["bottom"] <= second["top"]
        assert first["left"] == second["left"]
    keys = browser.value("[...document.querySelectorAll('.key')].map(one => one.textContent)")
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.mark.parametrize("state", [{}, STATE, {**STATE, "other": "", "response": " w" * 60}])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(browser, open_address, width, state):
    if state:
        show_state(browser, open_address, state, width=width)
        browser.hover(".tokens span:last-of-type")
    else:
        browser.show(width=width)
        browser.open(f"{open_address}/")
    assert browser.value("document.documentElement.scrollWidth") <= width
    # What is cut off has a bar to scroll with.
    cut = browser.value(
        "[...document.querySelectorAll('main *')].filter(one =>"
        " one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0"
        " && getComputedStyle(one).display != 'inline'"
        " && !['auto', 'scroll'].includes(getComputedStyle(one).overflowX))"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert cut == []


def test_the_tab_key_goes_through_the_form_and_stops_once_per_heat_map(browser, open_address):
    show_state(browser, open_address, STATE)
    browser.value("document.querySelector('textarea[name=prompt]').focus()")
    where = "(({name, value, type, id, className}) => type == 'checkbox' ? value : name || id "
    where += "|| (type == 'submit' ? 'score' : document.activeElement.getAttribute('role')))"
    where += "(document.activeElement)"
    order = [browser.value(where)]
    for _ in range(30):
        browser.press("Tab")
        order.append(browser.value(where))
        if order[-1] is None or order.count("gridcell") == 2:
            break
    boxes = browser.value("[...document.querySelectorAll('input')].map(box => box.value)")
    fields = ["prompt", "response", "other"]
    assert order == [*fields, *boxes, "score", "copy", "region", "gridcell", "gridcell"]
    browser.press("Tab", shift=True)
    assert browser.value(where) == "gridcell"


def test_arrow_keys_go_from_token_to_token_and_tell_the_numbers(browser, open_address):
    show_state(browser, open_address, {**STATE, "other": ""})
    browser.value("document.querySelector('[role=gridcell]').focus()")
    place = (
        "(() => { const rows = [...document.querySelectorAll('.row')];"
        "const row = document.activeElement.closest('.row');"
        "return [rows.indexOf(row), [...row.querySelectorAll('[role=gridcell]')]"
        ".indexOf(document.activeElement)]; })()"
    )
    places = [browser.value(place)]
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Home", "ArrowUp"):
        browser.press(key)
        places.append(browser.value(place))
    assert places == [[0, 0], [0, 1], [0, 2], [1, 2], [1, 1], [0, 1], [0, 0], [0, 0]]
    browser.press("End")
    count = browser.value("document.querySelector('.row').querySelectorAll('.tokens span').length")
    assert browser.value(place) == [0, count - 1]
    told = browser.value(
        "[...document.querySelectorAll('#numbers dt')].map(one => one.textContent)"
    )
    assert told == browser.value(f"{ROWS}.map(row => row.querySelector('.name').firstChild.data)")
    numbers = browser.value(
        "[...document.querySelectorAll('#numbers dd')].map(one => one.textContent)"
    )
    own = browser.value(f"{ROWS}.map(row => [...row.querySelectorAll('.tokens span')].at(-1)"
                        ".dataset.score)")  # fmt: skip
    assert numbers == own
    assert browser.value("document.activeElement.getAttribute('aria-describedby')") == "numbers"
    assert browser.value("document.getElementById('numbers').checkVisibility()")
    browser.press("Escape")
    assert not browser.value("document.getElementById('numbers').checkVisibility()")


def test_the_mouse_tells_the_numbers_and_may_rest_on_them(browser, open_address):
    show_state(browser, open_address, STATE)
    browser.hover(".tokens span")
    seen = "document.getElementById('numbers').checkVisibility()"
    assert browser.value(seen)
    assert browser.value("document.querySelectorAll('.same').length") == len(
        browser.value("[...document.querySelector('.rows').children].map(row => 1)")
    )
    browser.hover("#numbers dd")
    assert browser.value(seen)
    browser.hover("h1")
    assert not browser.value(seen)


def test_screen_readers_find_names_and_roles(browser, open_address):
    show_state(browser, open_address, STATE)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            by_role.setdefault(node["role"]["value"], []).append(name)
    assert len(by_role["grid"]) == 2
    assert all(
        name.startswith(f"Response {one}") for name, one in zip(by_role["grid"], "AB", strict=True)
    )
    assert [re.sub(" (may|to|with).*", "", name) for name in by_role["textbox"]] == [
        "Prompt",
        "Response",
        "Second response",
    ]
    assert {"Score", "Copy link"} <= set(by_role["button"])
    assert by_role["status"]
    assert any(name.startswith("attention") for name in by_role["rowheader"])
    scores = [name for name in by_role["gridcell"] if re.search(r" [+-][0-9.e-]+$", name)]
    assert scores == by_role["gridcell"]
    assert len(by_role["checkbox"]) == len(set(by_role["checkbox"])) > 4
    unnamed = {role for role in ("button", "textbox", "checkbox", "grid") if "" in by_role[role]}
    assert unnamed == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(browser, open_address, scheme):
    show_state(browser, open_address, STATE, scheme=scheme)
    browser.hover(".tokens span")
    found = browser.value(TEXTS_ON_GROUNDS)
    assert len(found) > 60
    grounds = {tuple(ground) for _, _, ground in found}
    assert len(grounds) > 8, "tokens have colours"
    for text, ink, ground in found:
        assert contrast(tuple(ink), tuple(ground)) >= 4.5, (text, ink, ground)
    dark = [ground for _, _, ground in found if sum(ground) < 3 * 128]
    assert (len(dark) > len(found) / 2) == (scheme == "dark")


# Every text with its colour and what stands behind it, half transparent grounds mixed.
TEXTS_ON_GROUNDS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const mixed = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const grounds = [];
    for (let one = element; one; one = one.parentElement) {
      grounds.unshift(getComputedStyle(one).backgroundColor);
    }
    const ground = mixed(grounds);
    const color = getComputedStyle(element).color;
    found.push([texts.currentNode.data.trim(), mixed([...grounds, color]), ground]);
  }
  return found;
})()"""
