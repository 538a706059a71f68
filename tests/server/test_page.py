import re

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import asked, tiny_app, tiny_served

from tokencredit.errors import DataError
from tokencredit.server.page import Filled, filled_form, page

EVIL = "</textarea><script>alert(1)</script>"


def shown(data, **keywords):
    app = tiny_app(tiny_served(), **keywords)
    return asked(app, lambda client: client.post("/", data=data))


def test_the_form_is_one_page_that_loads_nothing():
    answer = asked(tiny_app(), lambda client: client.get("/"))
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert not re.search(r"<script|<link|<img|src=|https?:", answer.text)
    assert 'name="token"' not in answer.text


def test_markup_is_escaped_in_every_place():
    answer = shown({"prompt": EVIL, "response": f" {EVIL}\x1b[2J"})
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert answer.text.count("&lt;/textarea&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert answer.text.count("</textarea>") == 2
    assert "\\x1b" in answer.text.split("<section")[1]
    assert page(Filled(), asks_token=False, problem=EVIL).count("<script") == 0


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


def test_lines_are_those_that_were_typed():
    assert filled_form(b"response=a%0D%0Ab%0Ac&prompt=&x=1") == Filled("", "a\nb\nc", "")
    assert filled_form(b"\xff%ff&=") == Filled()
    answer = shown({"response": "\nfirst line is empty"})
    assert '<textarea name="response" rows="5">\n\nfirst' in answer.text


def test_a_form_with_other_fields_is_refused():
    with pytest.raises(DataError, match="expected the fields prompt, response and token"):
        filled_form(b"&".join(b"a%d=1" % number for number in range(20)))
