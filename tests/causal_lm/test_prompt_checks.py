"""What is odd about prompts: each finding fires on its fault, and on nothing that chat templates do in good order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tokenizers import processors

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data.prompts import encode_prompts, read_prompts
from hydrometer.models.causal_lm.preflight.prompt_checks import examine_prompts
from hydrometer.models.causal_lm.spec import PromptsFile
from tiny import TEMPLATE, make_tokenizer

TURNS = "{% for m in messages %}<bos> {{ m.role }} {{ m.content }} <eos> {% endfor %}"
OPENS = "{% if add_generation_prompt %}<bos> assistant{% endif %}"
# As Llama 2's and Mistral's: the answer follows the user's turn at once, whether or not a beginning is asked for.
BRACKETS = (
    "<bos> {% for m in messages %}{% if m.role == 'user' %}w9 {{ m.content }} w10 "
    "{% else %}{{ m.content }} <eos>{% endif %}{% endfor %}"
)
# As Mistral's: what the system says goes before the last that the user says.
MERGED = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<bos> {{ m.role }} "
    "{% if loop.last %}{{ s }} {% endif %}{{ m.content }} <eos> {% endfor %}" + OPENS
)
# As Phi 3's: the token that opens the assistant's turn is in the stop set.
OPENS_WITH_STOP = TURNS + "{% if add_generation_prompt %}assistant{% endif %}"
ASKED = [(("user", "w3 w4"),), (("system", "w5 w6"), ("user", "w7 w8"))]


def codes(template: str, asked: Any = ASKED, stop: tuple[int, ...] = (1,)) -> set[str]:
    tokenizer = make_tokenizer(64, template)
    prompts = encode_prompts([("here", t) for t in asked], tokenizer, chat=True, are="fixed")
    return {f.code for f in examine_prompts(prompts, tokenizer, stop)}


@pytest.mark.parametrize("template", [TEMPLATE, TURNS + OPENS, BRACKETS, MERGED, OPENS_WITH_STOP])
def test_templates_in_good_order_are_passed(template: str) -> None:
    assistant = make_tokenizer(64).convert_tokens_to_ids("assistant")
    assert codes(template, stop=(1, assistant)) == set()
    several = (("user", "w3"), ("assistant", "w4"), ("user", "w5"))
    assert codes(template, [several], stop=(1, assistant)) == set()


@pytest.mark.parametrize(
    ("code", "template", "asked"),
    [
        ("template-varies", "{{ strftime_now('%d %b %Y') }} " + TEMPLATE, ASKED),
        ("template-varies", "{{ strftime_now('%A') }} " + TEMPLATE, ASKED),
        ("template-varies", "{{ strftime_now('%H') | int // 12 }} " + TEMPLATE, ASKED),
        ("template-varies", "{{ strftime_now('%f') }} " + TEMPLATE, ASKED),
        ("template-varies", "{{ ['w9', 'w10'] | random }} " + TEMPLATE, ASKED),
        ("template-varies", "{{ lipsum(1) }} " + TEMPLATE, ASKED),
        (  # only where no system message is given, and only among many prompts that have one
            "template-varies",
            "{% if messages[0].role != 'system' %}{{ strftime_now('%Y') }} {% endif %}" + TEMPLATE,
            [*[ASKED[1]] * 40, ASKED[0]],
        ),
        ("no-generation-prompt", TURNS, ASKED),
        ("no-generation-prompt", "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}", ASKED),
        ("ends-with-assistant", TEMPLATE, [(("user", "w3"), ("assistant", "w4"))]),
        ("ends-with-assistant", TEMPLATE, [ASKED[0], (("user", "w3"), ("model", "w4"))]),
        ("text-dropped", TURNS.replace("messages %}", "messages if m.role == 'user' %}") + OPENS, ASKED),
        ("text-dropped", TURNS.replace("m.content", "m.content[:2]") + OPENS, ASKED),
        ("text-dropped", TURNS.replace("m.content", "m.content.split('/')[-1]") + OPENS, [(("user", "w3/w4"),)]),
        (  # the same words stand elsewhere
            "text-dropped",
            TURNS.replace("messages %}", "messages if m.role == 'user' %}") + OPENS,
            [(("system", "w3"), ("user", "w3 w4"))],
        ),
        (
            "text-dropped",
            TURNS.replace("m.content", "m.content.split('</think>')[-1]") + OPENS,
            [(("user", "w3"), ("assistant", "<think>w9</think>w4"), ("user", "w5"))],
        ),
        ("text-trimmed", TURNS.replace("m.content", "m.content | trim") + OPENS, [(("user", " w3 w4\n"),)]),
        ("prompt-ends-in-stop", TURNS.replace(" {% endfor", "{% endfor"), ASKED),
        ("prompt-ends-in-stop", TURNS + "{% if add_generation_prompt %}<bos> assistant <eos>{% endif %}", ASKED),
        ("messages-as-text", TEMPLATE, [(("user", json.dumps([{"role": "user", "content": "w3"}])),)]),
    ],
)
def test_each_fault_is_named(code: str, template: str, asked: Any) -> None:
    assert code in codes(template, asked)


@pytest.mark.parametrize(
    "template",
    [
        TURNS.replace("m.content", "m.content | tojson") + OPENS,
        TURNS.replace("m.content", "m.content | trim") + OPENS,
        "{% if strftime_now %}w9 {% endif %}" + TEMPLATE,
    ],
)
def test_text_that_is_quoted_or_has_no_blanks_to_trim_is_passed(template: str) -> None:
    assert codes(template, [(("user", 'w3 "w4"\nü'),)]) == set()


def test_a_template_that_refuses_what_is_only_tried_is_passed() -> None:
    """Turns must alternate, and texts be of one word: neither an answer behind nor other words can be rendered."""
    refuses = "{% if messages | length > 1 or messages[0].content != 'w3' %}{{ raise_exception('no') }}{% endif %}"
    assert codes(refuses + TEMPLATE, [(("user", "w3"),)]) == set()


def test_plain_prompts_that_end_in_a_stop() -> None:
    tokenizer = make_tokenizer(64)

    def found(prompts: Any, words: Any = tokenizer) -> list[str]:
        return [f.code for f in examine_prompts(read_prompts(prompts, words), words, (1,))]

    assert found("w3 <eos>") == ["prompt-ends-in-stop"]
    assert found("w3 <eos> w4") == found("w3") == []
    begins = make_tokenizer(64)
    begins.bos_token = "<eos>"  # as GPT-2's, which begins with its end of sequence
    assert found(None, begins) == []
    adds = make_tokenizer(64)
    adds.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    assert found("w3", adds) == ["prompt-ends-in-stop"]


def test_a_column_of_messages_may_be_json_text(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "w3"}, {"role": "user", "content": "w4"}]
    tokenizer = make_tokenizer(64)

    def read(row: object) -> Any:
        (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
        return read_prompts(PromptsFile(file=str(tmp_path / "prompts.jsonl"), chat=True), tokenizer)

    assert read({"messages": json.dumps(turns)}) == read({"messages": turns})
    for wrong in ("hello", "[", "[]", "[1]", '{"role": "user"}', '[{"role": "user"}]', "[" * 10**5):
        with pytest.raises(DataError, match=r"not JSON of messages|content must be text"):
            read({"messages": wrong})
