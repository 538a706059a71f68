import base64
import hashlib
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from parsed_heatmap import Page
from tiny_server import asked, tiny_app, tiny_served

import tokencredit.server
from tokencredit.errors import DataError
from tokencredit.server.page import Filled, Offer, filled_form, page
from tokencredit.server.rows import ObjectiveOfRow, RowScores, TokenRow

EVIL = "</textarea><script>alert(1)</script>"
SCRIPT = Path(tokencredit.server.__file__).with_name("page.js").read_text()


def shown(data, **keywords):
    app = tiny_app(tiny_served(), **keywords)
    return asked(app, lambda client: client.post("/", data=data))


def row(text: str) -> TokenRow:
    return TokenRow([0], [1, 2], [], [text, "b"], [(0, len(text)), (len(text), len(text) + 1)], ())


def scores_with(objectives, total=1.0) -> RowScores:
    return RowScores(total, {"attention": [0.25, 0.75]}, objectives=objectives)


def test_the_form_is_one_page_that_loads_nothing():
    answer = asked(tiny_app(), lambda client: client.get("/"))
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert not re.search(r"<script .|<link|<img|src=|https?:", answer.text)
    assert 'name="token"' not in answer.text


def test_no_script_runs_but_the_page_s_own():
    answer = asked(tiny_app(), lambda client: client.get("/"))
    (written,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert written == SCRIPT
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert re.findall(r"script-src ([^;]*);", policy) == [f"'sha256-{digest}'"]
    # Nothing that makes code or markup of text, and no other address.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval|Function\(|https?:", SCRIPT)


def test_markup_is_escaped_in_every_place():
    answer = shown({"prompt": EVIL, "response": f" {EVIL}\x1b[2J", "other": f" {EVIL}"})
    assert answer.status_code == 200
    assert answer.text.count("<script") == 1
    assert answer.text.count("&lt;/textarea&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert answer.text.count("</textarea>") == 3
    assert "\\x1b" in answer.text.split("<section")[1]
    assert page(Filled(), Offer(), problem=EVIL).count("<script") == 1


def test_names_are_escaped_too():
    evil = f'"><b>{EVIL}'
    said = RowScores(1.0, {evil: [1.0, 0.0]}, objectives={evil: ObjectiveOfRow(2.0, 0.5, {})})
    html = page(
        Filled(response=f"{evil}b"), Offer((evil,), (evil,)), rows=[row(evil)], scores=[said]
    )
    assert html.count("<script") == 1
    assert "<b>" not in html


@pytest.mark.parametrize("field", ["credit", "objective"])
def test_names_that_are_not_on_offer_are_refused(field):
    answer = shown({"response": "good", "credit": "attention", field: EVIL})
    assert answer.status_code == 422
    assert answer.text.count("<script") == 1
    assert "which this" in answer.text


def test_what_was_chosen_is_drawn_and_stays_chosen():
    answer = shown({"response": " a good film", "credit": ["uniform", "terminal"]})
    names = re.findall(r'role="rowheader">([^<]*)<', answer.text)
    assert sorted(names) == ["terminal", "uniform"]
    checked = re.findall(r'value="([^"]*)" checked', answer.text)
    assert sorted(checked) == ["terminal", "uniform"]
    first = shown({"response": " a good film"})
    assert set(re.findall(r'role="rowheader">([^<]*)<', first.text)) == {
        "attention",
        "prefix-difference",
    }


def test_two_responses_stand_side_by_side_with_their_difference():
    answer = shown({"prompt": "the film", "response": " is good", "other": " is a bad one"})
    parsed = Page(answer.text[answer.text.index("<figure") :].split("</div>\n</section>")[0])
    assert parsed.figures == 2
    assert ["".join(cell["text"] for cell in one).replace(" ", "") for one in parsed.rows] == [
        *["isgood"] * 2,
        *["isabadone"] * 2,
    ]
    captions = re.findall(r"<figcaption><span>(Response .): score (\S+) nats", answer.text)
    assert [name for name, _ in captions] == ["Response A", "Response B"]
    table = answer.text.split("<table>")[1].split("</table>")[0]
    first, second, difference = map(float, re.findall(r"<td>([^<]*)</td>", table))
    assert [first, second] == [float(score) for _, score in captions]
    assert difference == pytest.approx(second - first, abs=0.0011)
    # The same score has the same colour in both.
    assert len(set(re.findall(r'class="key">.*?</span>', answer.text))) == 1


def test_each_objective_and_the_sum_are_shown():
    own = {"attention": [0.5, 1.5]}
    objectives = {
        "helpful": ObjectiveOfRow(2.0, 0.75, own),
        "short": ObjectiveOfRow(1.0, -0.5, {"attention": [0.25, 0.75]}),
    }
    offer, filled = Offer(("attention",), tuple(objectives)), Filled(response="ab")
    both = page(filled, offer, rows=[row("a")], scores=[scores_with(objectives)])
    names = re.findall(r'role="rowheader">([^<]*)<small>sum (\S+),', both)
    assert names == [
        ("attention", "+1"),
        ("attention: 0.75 helpful", "+1.5"),
        ("attention: -0.5 short", "-0.5"),
    ]
    table = both.split("<table>")[1].split("</table>")[0]
    assert re.findall(r"<td>([^<]*)<", table) == ["+1.500", "-0.500", "+1.000"]
    assert re.findall(r"alone ([^<]*)<", table) == ["+2.000", "+1.000"]
    chosen = Filled(response="ab", credit=("attention",), objectives=("short",))
    one = page(chosen, offer, rows=[row("a")], scores=[scores_with(objectives)])
    assert re.findall(r'role="rowheader">([^<]*)<', one) == ["attention", "attention: -0.5 short"]


def test_an_objective_without_a_weight_is_told_and_not_added():
    objectives = {"worst": ObjectiveOfRow(2.0, None, {})}
    html = page(Filled(response="ab"), Offer(), rows=[row("a")], scores=[scores_with(objectives)])
    table = html.split("<table>")[1].split("</table>")[0]
    assert "<td>&ndash;<small>alone +2.000</small></td>" in table


def test_the_token_is_asked_for_and_never_shown():
    wrong = shown({"response": "good", "token": "wrong one"}, token="sesame")
    assert wrong.status_code == 401
    assert 'role="alert"' in wrong.text
    right = shown({"response": "good", "token": "sesame"}, token="sesame")
    assert right.status_code == 200
    assert "tokencredit-heatmap" in right.text
    assert "wrong one" not in wrong.text
    assert "sesame" not in right.text


def test_mistakes_are_told_on_the_page():
    answer = shown({"prompt": "a", "response": " bad" * 200})
    assert answer.status_code == 422
    assert "expected at most 128" in answer.text
    assert answer.text.count(" bad") >= 200
    other = shown({"response": " good", "other": " bad" * 200})
    assert "text 1" in other.text


def test_lines_are_those_that_were_typed():
    assert filled_form(b"response=a%0D%0Ab%0Ac&prompt=&x=1") == Filled("", "a\nb\nc")
    assert filled_form(b"\xff%ff&=") == Filled()
    answer = shown({"response": "\nfirst line is empty"})
    assert '<textarea name="response" rows="4">\n\nfirst' in answer.text


def test_a_form_with_far_too_many_fields_is_refused():
    with pytest.raises(DataError, match="expected the fields prompt, response, other, credit"):
        filled_form(b"&".join(b"a%d=1" % number for number in range(300)))


def test_about_names_the_objectives():
    answer = asked(tiny_app(), lambda client: client.get("/about")).json()
    assert "objectives" not in answer
