"""Chat templates are programs in a checkpoint: they run in transformers' sandbox, and what fails in them is told."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from g4convert.errors import InputError
from g4convert.forward import chat_templates
from g4convert.forward.chat_templates import rendered

ASKED = ({"role": "user", "content": "Hello"},)
HOSTILE = {
    "reaches for classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "reaches for globals": ("{{ raise_exception.__globals__['__builtins__'] }}", "SecurityError"),
    "changes what it is given": ("{{ messages.append(1) }}", "SecurityError"),
    "counts without end": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    "does not parse": ("{% for %}", "TemplateSyntaxError"),
    "refuses": ("{{ raise_exception('no\nerror: forged') }}", "TemplateError: no"),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "adds text and numbers": ("{{ 'a' + 1 }}", "TypeError"),
    "calls what is none": ("{{ messages[0].nothing() }}", "UndefinedError"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_that_fails_is_one_refusal(case: str, moe: Path) -> None:
    template, named = HOSTILE[case]
    tokenizer = AutoTokenizer.from_pretrained(moe, local_files_only=True)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"the model's chat template fails: {named}") as caught:
        rendered(tokenizer, ASKED, asks=True)
    assert "chat_template.jinja" in caught.value.hint


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_of_loops_in_loops_has_its_time(template: str, moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "_SECONDS", 0.2)
    tokenizer = AutoTokenizer.from_pretrained(moe, local_files_only=True)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="chat template takes over 0 s for one conversation"):
        rendered(tokenizer, ASKED, asks=True)


def test_a_template_that_gives_nothing_is_refused(moe: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(moe, local_files_only=True)
    tokenizer.chat_template = "{# nothing #}"
    with pytest.raises(InputError, match="chat template gives no text"):
        rendered(tokenizer, ASKED, asks=True)


def test_a_sound_template_renders(moe: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(moe, local_files_only=True)
    assert rendered(tokenizer, ASKED, asks=True).endswith("<|turn>model\n")
    assert not rendered(tokenizer, ASKED, asks=False).endswith("<|turn>model\n")
