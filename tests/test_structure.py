"""The house: imports point from higher rooms to lower ones, in no circle, and files stay short."""

import ast
from pathlib import Path

import pytest

import lightning_signin

ROOT = Path(lightning_signin.__file__).parent
# From the lowest room to the highest: each may import from those before it, and from itself.
ROOMS = [
    "_version",
    "errors",
    "kernels",
    "core",
    "objective",
    "units",
    "masks",
    "randomness",
    "parametrizations",
    "verbs",
    "weightfiles",
    "updates",
    "metrics",
    "report",
    "export",
    "arguments",
    "callback",
    "iterative",
    "lightning_cli",
    "sweep",
    "recipes",
    "cli",
    "__init__",
]
LOWEST_WITH_LIGHTNING = "callback"
INTERNALS = {"core.torch_internals", "callback.lightning_internals"}
LONGEST = 250  # lines

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
EVERY_FILE = pytest.mark.parametrize("name", FILES)


def imported(name: str, everywhere: bool) -> set[str]:
    """Full names of the modules that a file imports, at its top level or everywhere in it."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if own(whole) else str(node.module))  # `from package import module` is the module
    return found


def imported_names(name: str) -> set[str]:
    """Full names of all that a file imports, functions and classes too."""
    nodes = list(ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    return whole | parts


def own(module: str) -> str | None:
    """The name below the package of one of its modules, "__init__" for the package itself."""
    if module == "lightning_signin":
        return "__init__"
    name = module.removeprefix("lightning_signin.")
    return name if name != module and name in FILES else None


def own_imports(name: str, everywhere: bool = False) -> set[str]:
    return {inside for module in imported(name, everywhere) if (inside := own(module))}


def room(name: str) -> str:
    return name.partition(".")[0]


def rank(name: str) -> int:
    return ROOMS.index(room(name))


def test_every_room_has_its_place_and_no_file_stands_outside():
    assert {room(name) for name in FILES} == set(ROOMS)
    outside = {path.name for path in ROOT.glob("*.py")}
    assert outside == {"__init__.py", "_version.py", "arguments.py", "errors.py"}


@EVERY_FILE
def test_imports_point_down(name):
    # Also those inside functions. `__init__` hands out the callback on demand: it is above everything.
    above = {other for other in own_imports(name, everywhere=True) if rank(other) > rank(name)}
    assert not above, f"{name} imports {above} from a higher room."


def test_imports_have_no_cycle():
    graph = {name: own_imports(name) for name in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(FILES)


@EVERY_FILE
def test_only_the_upper_rooms_import_lightning(name):
    if rank(name) < ROOMS.index(LOWEST_WITH_LIGHTNING):
        outside = {module.partition(".")[0] for module in imported(name, everywhere=True)}
        assert not outside & {"lightning", "pytorch_lightning", "lightning_fabric"}


@EVERY_FILE
def test_private_names_of_others_are_imported_in_two_files_only(name):
    # As attributes ruff finds them (SLF001), as imports it does not.
    others = {each for each in imported_names(name) if not each.startswith("lightning_signin.")}
    private = {each for each in others if any(part.startswith("_") for part in each.split("."))}
    assert name in INTERNALS or not private


def test_package_itself_imports_no_lightning():
    seen: set[str] = set()
    waiting = ["__init__"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += own_imports(name)
    outside = {module.partition(".")[0] for name in seen for module in imported(name, everywhere=False)}
    assert "torch" in outside
    assert "lightning" not in outside


@EVERY_FILE
def test_file_is_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST


@EVERY_FILE
def test_errors_for_users_are_of_our_own_type(name):
    # The command line prints these in one line, and shows the traceback of all others.
    raised = [
        node.exc for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)
    ]
    types = {call.func.id for call in raised if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    assert not types & {"ValueError", "FileNotFoundError"}
