"""One file that stands for this package in a checkpoint: the modules behind a pipeline class, in one."""

import ast
import importlib
import inspect
import sys
from types import ModuleType

HEADER = '''"""{name}: diffusers' {plain} with its start distribution, in one file.

Put together by onbrand {version} from its own modules, so that the checkpoint beside it draws the same
pictures on a machine without onbrand:

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
"""
'''
# diffusers runs every local pipeline.py of a process in one module and takes its only pipeline class.
FORGET = """for _name in [name for name in globals() if name.startswith("Offset")]:
    del globals()[_name]
"""
FOOTER = """{name}.source_text = Path(__file__).read_text()
# The next pipeline.py runs in another module, so that these classes keep their own names.
_next = type(sys)(__name__)
vars(_next).update(globals())
sys.modules[__name__] = _next
"""


def pipeline_source(pipeline_class: type) -> str:
    """Python source that defines the pipeline class and needs diffusers alone.

    It holds, each once and in the order they need each other, the modules that the class's own module
    imports by relative imports, then the class. Raises ValueError if two of them define the same name.
    """
    bases = [base.__name__ for base in pipeline_class.__bases__]
    mixin = sys.modules[pipeline_class.__bases__[0].__module__]
    imports, bodies = [ast.parse(f"from diffusers import {bases[-1]}").body[0]], []
    defined: dict[str, str] = {}
    for module in _with_needed(mixin):
        tree = ast.parse(inspect.getsource(module))
        for name in _defined(tree):
            if defined.setdefault(name, module.__name__) != module.__name__:
                raise ValueError(f"{name} must be defined once, got {defined[name]} and {module.__name__}")
        imports += [node for node in tree.body if _is_import(node) and not _is_relative(node)]
        bodies.append(_body(module, tree))
    version = importlib.import_module("onbrand").__version__
    header = HEADER.format(name=pipeline_class.__name__, plain=bases[-1], version=version)
    footer = FOOTER.format(name=pipeline_class.__name__)
    imports += ast.parse("import sys\nfrom pathlib import Path").body
    parts = [header, _joined(imports), FORGET, *bodies, inspect.getsource(pipeline_class), footer]
    return "\n\n".join(parts)


def _with_needed(module: ModuleType) -> list[ModuleType]:
    """The module after all that its relative imports lead to."""
    found: list[ModuleType] = []

    def visit(module: ModuleType) -> None:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                package = module.__name__.split(".")[: -node.level]
                visit(importlib.import_module(".".join([*package, *(node.module or "").split(".")])))
        if module not in found:
            found.append(module)

    visit(module)
    return found


def _joined(imports: list[ast.stmt]) -> str:
    """Each import once, a module's names in one line."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(node.module or "", set()).update(ast.unparse(alias) for alias in node.names)
        else:
            plain.add(ast.unparse(node))
    lines = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    return "\n".join([*sorted(plain), "", *lines]) + "\n"


def _body(module: ModuleType, tree: ast.Module) -> str:
    """The module's text without its docstring and imports."""
    lines = inspect.getsource(module).splitlines()
    for node in tree.body:
        is_docstring = node is tree.body[0] and ast.get_docstring(tree) is not None
        if _is_import(node) or is_docstring:
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            lines[first:last] = [""] * (last - first)
    return f"# {module.__name__}\n\n" + "\n".join(lines).strip() + "\n"


def _defined(tree: ast.Module) -> set[str]:
    """The names that a module's top level gives a meaning to, its logger apart."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names - {"logger"}


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _is_relative(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level > 0
