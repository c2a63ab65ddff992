"""Which fenced code is missing or broken."""

import pytest

from axolotl_sdft.distillation.checks import code
from tests.distillation.checks.samples import asked, written


def block(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (f"Here it is:\n{block('x = 1')}\nDone.", block("x = 2")),
        (block("x = 1", "Py"), block("x = 2")),
        (block("x = 1"), block("x = 2", "")),
        (f"1. First:\n   {block('   x = 1').replace('```', '   ```', 1)}", block("x = 2")),
        (block("!pip install tea\n%time brew()"), block("x = 2")),
        (block(">>> 1 + 1\n2\n>>> for x in y:\n...     x"), block("x = 2")),
        (block("print 'hot'"), block("print 'cold'")),
        (block("let a = ['(', \"}\"]; // ]", "js"), block("let a", "javascript")),
        (block("any ( text", "text"), block("some text", "text")),
        ("~~~python\nx = '```'\n~~~", block("x = 2")),
        ("No code in either.", "None here."),
        (block("In [3]: 1 +\nOut[3]: ???"), block("x = 2")),
        (block("$ brew tea --hot\ndone"), block("x = 2")),
        (block("%%bash\nls -l (x"), block("x = 2")),
        (block("def brew[T](cup: T) -> T:\n    return cup"), block("x = 2")),
        (block("impl<'a> Cup<'a> { fn sip(&self) -> char { '{' } }", "rust"), "None."),
        (block("let cups = s.split(/[({]/);", "js"), "None."),
        (block("const cup = <p>Don't spill :)</p>;", "jsx"), "None."),
        (block("-- it's hot :(\nSELECT 1", "sql"), "None."),
        (block("case $1 in\n  tea) brew;;\nesac", "bash"), "None."),
        (block('std::string s = R"(tea ( )";', "cpp"), "None."),
        (block("#ifdef HOT\nif (a) {\n#else\nif (b) {\n#endif\n}", "c"), "None."),
        (block("char open = '(';  // :)", "java"), "None."),
        (block('var path = @"C:\\(";', "csharp"), "None."),
        (f"{block('void f() {', 'c')}\nand its end:\n{block('}', 'c')}", "None."),
    ],
)
def test_code_that_parses_in_the_language_of_the_original_passes(text: str, reference: str):
    assert code(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("x = 1", block("x = 2"), "no code block"),
        (block("x = 1")[:-4], block("x = 2"), "no code block"),
        (f"{block('x = 1')}\nand\n```python\ny =", block("x = 2"), "a code block is left open"),
        (block("x = 1", "js"), block("x = 2"), "no python block"),
        (block("def f(:\n    pass"), block("x = 2"), "the python block does not parse: invalid syntax"),
        (block("f(a, [b)"), block("f(a)", "python"), "the python block does not parse: "),
        (block("f(a, [b)];", "js"), block("f(a)", "js"), "the javascript block has a ) too many"),
        (block("int f() { return 1;", "c"), block("int f();", "c"), "the c block leaves a { open"),
        (block("let cups = [1, 2;", "ts"), "No code.", "the typescript block leaves a [ open"),
        (block('{"cups": [1, 2}', "json"), "No code.", "the json block has a } too many"),
        (block("func f() { g(`(`)", "go"), "No code.", "the go block leaves a { open"),
        (block("fn f() { g(1; }", "rust"), "No code.", "the rust block has a } too many"),
        (block("while tea\n    drink()"), "No code.", "the python block does not parse: "),
        (block("x ="), "No code here.", "the python block does not parse: invalid syntax"),
    ],
)
def test_code_that_is_missing_open_or_broken_is_rejected(text: str, reference: str, reason: str):
    assert (code(written(text), asked(reference=reference)) or "").startswith(reason)
