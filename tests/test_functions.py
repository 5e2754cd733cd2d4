"""Functions are short and take few arguments."""

import ast
from pathlib import Path

import pytest

from simclr_jax import version

PACKAGE = Path(version.__file__).parent
LINES, ARGUMENTS = (
    60,
    8,
)  # at most, from `def` on; lines include docstring and comments, `self` is not counted
FIELDS = "takes the fields of a part of the config as **fields; each is keyword-only and has its default"
LONGER = {}
MORE = {
    "augment.py:random_views": FIELDS,
    "augment.py:_coloured": FIELDS,
    "data/pipeline.py:eval_batches": "source, what a batch is, and which process reads which part of it",
    "data/pipeline.py:train_batches": "source, what a batch is, and which process reads which part of it",
    "data/splits.py:load": FIELDS,
    "losses/tiled.py:nt_xent": "the arguments of contrastive.nt_xent, and those of the tiles; keyword-only",
    "optim.py:create": FIELDS,
}


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines(function: ast.FunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def arguments(function: ast.FunctionDef) -> int:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def named_lambdas(tree: ast.AST) -> list[int]:
    """Lines that bind a lambda to a name, directly or by a conditional expression."""
    bound = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None
    ]
    found = []
    for node in bound:
        value = node.value
        either = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
        found += [node.lineno for each in either if isinstance(each, ast.Lambda)]
    return found


def package() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in files}


@pytest.mark.parametrize(
    ("measure", "most", "excused"), [(lines, LINES, LONGER), (arguments, ARGUMENTS, MORE)]
)
def test_functions_are_short_and_take_few_arguments(measure, most, excused):
    found = {f"{file}:{f.name}": measure(f) for file, tree in package().items() for f in functions(tree)}
    above = {name: number for name, number in found.items() if number > most}
    assert {name: n for name, n in above.items() if name not in excused} == {}
    assert not [name for name in excused if name not in above], "excused for nothing: take it out"


def test_no_lambda_has_a_name():
    found = {file: at for file, tree in package().items() if (at := named_lambdas(tree))}
    assert found == {}


def test_the_measures_see_what_they_look_for():
    text = 'class A:\n    def f(self, a, /, b, *rest, c=1, **d):\n        """Doc."""\n'
    function = functions(ast.parse(text))[0]
    assert (lines(function), arguments(function)) == (2, 3)
    bound = [
        "f = lambda: 1",
        "class A: g: int = lambda: 2",
        "h = print if f else lambda x: x",
        "(i := lambda: 3)",
    ]
    assert [named_lambdas(ast.parse(line)) for line in bound] == [[1]] * 4
    assert named_lambdas(ast.parse("sorted(x, key=lambda y: y)\nd = {'a': lambda: 1}\n")) == []
