"""A template that leaves out what a tool was asked or answered is refused."""

import pytest
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.errors import DataError
from tokencredit.text.hf_encoding import encode_chats
from tokencredit.text.hf_reading import Reading

USER = {"role": "user", "content": "weather"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "rome"}}]}
TOOL = {"role": "tool", "content": "sun"}
WITH_CALLS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for call in m.tool_calls %}"
    "<call>{{ call.function.name }}{% endfor %}\n{% endfor %}"
)
WITHOUT_TOOLS = (
    "{% for m in messages if m.role != 'tool' %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
)


def test_calls_that_the_template_renders_are_read():
    tokenizer = byte_level(bos=False, chat_template=WITH_CALLS)
    other = CALL | {"tool_calls": [{"function": {"name": "oslo"}}]}
    texts = [
        tokenizer.decode(encode_chats(tokenizer, [[USER, call, TOOL]], ["ok"]).batch.prompt_ids[0])
        for call in (CALL, other)
    ]
    assert "<call>rome" in texts[0]
    assert texts[1] == texts[0].replace("rome", "oslo")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (CHAT_TEMPLATE, [USER, CALL, USER], "leaves out 'tool_calls' of message 1"),
        (WITHOUT_TOOLS, [USER, TOOL], "leaves out message 1, of the role 'tool'"),
    ],
)
def test_calls_that_it_leaves_out_are_refused(template, messages, message):
    tokenizer = byte_level(bos=False, chat_template=template)
    with pytest.raises(DataError, match=message):
        encode_chats(tokenizer, [messages], ["ok"])
    with pytest.raises(DataError, match=message):
        Reading(tokenizer, "chat").prompt_rows([messages], where="prompts.jsonl")
