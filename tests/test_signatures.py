"""Functions take six arguments at most beyond tensors and models; what needs more takes a frozen dataclass."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qrobust"
MOST = 6
# By annotation, alone or in a union or a sequence: arrays of either library, and pairs of images and labels.
TENSORS = {"Tensor", "Array", "ndarray", "Images", "Given", "Generator"}
MODELS = {"Module", "GraphModule"}
CONTAINERS = {"Sequence", "Iterable", "tuple", "list"}
EXCEPTIONS = {
    ("runtime.py", "square_attack"),  # its `logits_fn` is the model: without torch there is no class for one
}


def is_data(annotation):
    """Whether a parameter is a tensor or a model."""
    match annotation:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in TENSORS | MODELS
        case ast.BinOp(left=left, right=right):
            return is_data(left) or is_data(right)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in CONTAINERS:
            return any(map(is_data, inner.elts if isinstance(inner, ast.Tuple) else [inner]))
    return False


def is_verb(function):
    """A parameter of a command is an option of the command line."""
    return any("app.command" in ast.unparse(decorator) for decorator in function.decorator_list)


def settings_of(function):
    """Names of the parameters that are neither tensors nor models."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return [one.arg for one in named if one.arg not in ("self", "cls") and not is_data(one.annotation)]


def too_long(source):
    """Functions and methods, private ones too, with what they take."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    found = {one.name: settings_of(one) for one in functions if not is_verb(one)}
    return {name: settings for name, settings in found.items() if len(settings) > MOST}


def test_signatures_are_short():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    found = {(path, name): taken for path, source in sources.items() for name, taken in too_long(source).items()}
    assert {name: taken for name, taken in found.items() if name not in EXCEPTIONS} == {}
    assert found.keys() >= EXCEPTIONS


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a, b, c, d, e, g): ...", 0),
        ("def f(a, b, c, *, d, e, g, h=1): ...", 1),
        ("class A:\n    def f(self, a, b, c, d, e, *g, **h): ...", 1),
        ("def f(a, b, c, d, e, g, x: Tensor | None, model: nn.Module, others: Sequence[nn.Module]): ...", 0),
        ("def f(a, b, c, d, e, g, loss: Callable[[Tensor], Tensor]): ...", 1),
        ("@app.command()\ndef f(a, b, c, d, e, g, h): ...", 0),
    ],
)
def test_a_long_signature_is_seen(source, count):
    assert len(too_long(source)) == count
