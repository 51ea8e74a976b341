"""What a class or function takes, read from its source: nothing is imported, so that a mistake is told at once."""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Found = tuple[str, ast.stmt]  # the module that defines a name, and the definition
UNKNOWN = frozenset({"Any"})


@dataclass(frozen=True)
class Argument:
    """Says what the annotation of an argument allows.

    Args:
        types: the names of the types, "None" among them.
        choices: the names of a `Literal`.
        fields: the dotted name of our dataclass whose options a mapping stands for, None where there is none.
        has_options: whether nothing but that class or a mapping will do.
    """

    types: frozenset[str] = UNKNOWN
    choices: tuple[str, ...] = ()
    fields: str | None = None
    has_options: bool = False


@functools.cache
def find(name: str) -> Found | None:
    """Find the definition of a dotted name, through what modules import of each other.

    Args:
        name: as in `lightning.pytorch.Trainer`.

    Returns:
        None where no source tells.
    """
    module, _, last = name.rpartition(".")
    file = _file(module)
    if file is None:
        return None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _nodes(file):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == last:
            return module, node
        if isinstance(node, ast.Assign) and last in map(ast.unparse, node.targets):
            return module, node
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if last == (alias.asname or alias.name)]
            if names:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                return find(".".join([*above, *([node.module] if node.module else []), names[0]]))
    return None


@functools.cache
def arguments(target: str) -> dict[str, Argument] | None:
    """Read the arguments of a class or function by their names, None where it takes any or no source tells."""
    found = find(target)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return None if node.args.kwarg is not None else _of_function(module, node)
    if not isinstance(node, ast.ClassDef):
        return None
    makes = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    own = _of_function(module, makes[0]) if makes else {}
    own.pop("self", None)
    if makes and makes[0].args.kwarg is None:
        return own
    inherited: dict[str, Argument] = {}
    for base in node.bases:  # to which `**` hands down what it takes
        of_base = arguments(f"{module}.{ast.unparse(base)}")
        if of_base is None:
            return None
        inherited |= of_base
    if makes:
        return inherited | own if node.bases else None
    if _is_dataclass(node):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        inherited |= {ast.unparse(each.target): _argument(module, each.annotation) for each in fields}
    return inherited


@functools.cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def _file(module: str) -> Path | None:
    """Find the source of a module without importing it or the packages above it."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first) if first else None
    if spec is None:
        return None
    if not rest:
        files = [Path(spec.origin)] if spec.origin else []
    else:  # also in a folder without an __init__.py
        places = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
        files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def _of_function(module: str, node: ast.FunctionDef) -> dict[str, Argument]:
    taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {each.arg: _argument(module, each.annotation) for each in taken}


def _argument(module: str, annotation: ast.expr | None) -> Argument:
    if annotation is None:
        return Argument()
    types: set[str] = set()
    choices: list[str] = []
    fields, own = None, {"None"}
    for home, part in _parts(module, annotation):
        if isinstance(part, ast.Constant):
            types.add("None")
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value).endswith("Literal"):
            choices += [str(value) for value in ast.literal_eval(f"[{ast.unparse(part.slice).strip('()')}]")]
        else:
            name = ast.unparse(part.value if isinstance(part, ast.Subscript) else part)
            types.add(name.rpartition(".")[2])
            found = find(f"{home}.{name}")
            if fields is None and found is not None and home.startswith("lit_posttrain.") and _is_dataclass(found[1]):
                fields, own = f"{home}.{name}", {name, "Mapping", "None"}
    if not types & {"Mapping"} and not types <= own:
        fields = None
    return Argument(frozenset(types), tuple(dict.fromkeys(choices)), fields, types <= own and fields is not None)


def _is_dataclass(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list)


def _parts(module: str, annotation: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The members of a union with the module that each is written in; names that stand for others are replaced."""
    if isinstance(annotation, ast.BinOp):
        yield from _parts(module, annotation.left)
        yield from _parts(module, annotation.right)
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # a name that is defined later
        yield from _parts(module, ast.parse(annotation.value, mode="eval").body)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Optional", "Union"):
        members = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if ast.unparse(annotation.value) == "Optional":
            yield module, ast.Constant(None)
        for member in members:
            yield from _parts(module, member)
    else:
        found = find(f"{module}.{annotation.id}") if isinstance(annotation, ast.Name) else None
        if found is not None and isinstance(found[1], ast.Assign):
            yield from _parts(found[0], found[1].value)
        else:
            yield module, annotation
