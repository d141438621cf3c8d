"""A chat template is a program that came with a model: it may not take the machine, and may not leave its sandbox."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("transformers")

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data import templates
from hydrometer.models.causal_lm.data.templates import render_chat
from tiny import TEMPLATE, make_tokenizer

TURNS = [("user", "w3 w4"), ("assistant", "w5")]


@pytest.mark.parametrize("opened", [True, False])
def test_a_template_says_here_what_it_says_in_transformers(opened: bool) -> None:
    template = TEMPLATE + "{{ bos_token }}{{ messages | tojson }}{% generation %}x{% endgeneration %}"
    tokenizer = make_tokenizer(16, template)
    messages = [{"role": role, "content": content} for role, content in TURNS]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
    assert render_chat(tokenizer, TURNS, "here", opened=opened) == theirs


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ ('x' * 10**10) | length }}", "takes more than 1024 MiB"),
        ("{{ 'x' * 5000000 }}", "more than 4000000 characters"),
        ("{{ '%09999999999d' % 1 }}", "the chat template"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "the chat template refuses it"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "the chat template refuses it"),
        ("{{ messages.append(1) }}", "the chat template refuses it"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        ("{{ raise_exception('\x1b[31mred\u202e') }}", "\\x1b"),
        ("{% if", "the chat template refuses it"),
        ("{{ 9**(9**9) }}", "does not end within"),
    ],
)
def test_a_hostile_template_is_one_line(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        render_chat(make_tokenizer(16, template), TURNS, "prompts.jsonl, line 1", opened=True)
    assert time.monotonic() - began < 60  # 120 s is what the process is given on a busy machine
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) <= 1000
    assert said in line or said.replace("\\x1b", "\\u001b") in line


def test_after_a_template_that_never_ends_others_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    hangs = make_tokenizer(16, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    for _ in range(2):  # it is not remembered as dead, and not asked twice
        with pytest.raises(DataError, match="does not end"):
            render_chat(hangs, TURNS, "here", opened=True)
    assert render_chat(make_tokenizer(16), TURNS, "here", opened=True).startswith("<bos> user w3 w4")


def test_a_process_that_does_not_answer_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_WAIT", 1.0)
    hangs = make_tokenizer(16, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    began = time.monotonic()
    with pytest.raises(DataError, match="its process died"):
        render_chat(hangs, TURNS, "here", opened=True)
    assert time.monotonic() - began < templates.SECONDS - 5
