"""Count what shows whether the code is light: lines, folders, import circles, names, long files and functions.

Prints the table of docs/architecture.md. With --check it prints what exceeds its bound and exits with 1.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE / "src"
ROLES = {"family", "law", "spec", "doctor"}  # what every family has a module of, and the general one beside them
CROSSED = "modules that a causal-LM chain's `run` calls"
PUBLIC = "verbs that users call by more than 8 keywords"
# Bounds that hold and are kept. What is above its aim has none yet.
BOUNDS = {
    "most files in a folder": 15, "import circles": 0, "module names that stand twice": 0,
    "prose wider than 120 columns": 0, "functions of more than 8 parameters": 0, PUBLIC: 5,
}  # fmt: skip
AIMS = {
    "lines": 30_000, "most files in a folder": 15, "import circles": 0, "module names that stand twice": 0,
    "files over 400 lines": 0, "functions of more than 8 parameters": 0, PUBLIC: 5, "`# fmt: skip`": 40, "`cast(`": 80,
    "modules that list the kinds of stages": 1, CROSSED: 45,
}  # fmt: skip


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that a module imports: anywhere in it, and for types alone, too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{a.name}" for a in node.names)
            found |= {name if name in known else node.module for name in names}
    return found & known


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return a circle of every knot of modules that import each other."""
    out: list[tuple[str, ...]] = []
    left = {m: set(uses) for m, uses in graph.items()}
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as e:
            circle = tuple(e.args[1])
            out.append(circle)
            for a, b in zip(circle[1:], circle, strict=False):  # cut it, and look for others
                left[a].discard(b)
        else:
            return out


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without the object that it is a method of."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def public_names() -> set[str]:
    """Names that `hydrometer` exports or that a page imports, with their modules: their signatures are users'."""
    tree = ast.parse((ROOT / "hydrometer" / "__init__.py").read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {f"{node.module}.{a.name}" for node in imports for a in node.names}
    for page in HERE.glob("docs/*.md"):
        lines = re.findall(r"^from (hydrometer[\w.]*) import ([\w, ]+)$", page.read_text("utf-8"), flags=re.M)
        found |= {f"{module}.{name.strip()}" for module, names in lines for name in names.split(",")}
    return found


def wide_prose() -> list[str]:
    """Lines of hand-written pages beyond 120 columns; code, tables and links may be wider."""
    pages = [HERE / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "benchmarks/README.md")]
    pages += [page for page in sorted(HERE.glob("docs/*.md")) if page.name != "cli.md"]
    found: list[str] = []
    for page in pages:
        text = re.sub(
            r"^ *```.*?^ *```$", lambda m: "\n" * m[0].count("\n"), page.read_text("utf-8"), flags=re.M | re.S
        )
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > 120 and not line.startswith("|") and "](" not in line:
                found.append(f"{page.relative_to(HERE)}:{number}")
    return found


def count() -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return what is counted, and what each count is made of."""
    files = sorted(ROOT.rglob("*.py"))
    texts = {f: f.read_text("utf-8") for f in files}
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files}
    trees = {f: ast.parse(texts[f]) for f in files}
    graph = {names[f]: imported(trees[f], set(names.values())) - {names[f]} for f in files}
    lines = {f: len(texts[f].splitlines()) for f in files}
    folders = Counter(str(f.parent.relative_to(ROOT)) for f in files if f.stem != "__init__")
    stems = Counter(f.stem for f in files if f.stem not in ROLES | {"__init__", "__main__"})
    functions = [
        (f"{names[f]}.{node.name}", n)
        for f in files for node in ast.walk(trees[f])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := parameters(node)) > 8
        and "triton.jit" not in map(ast.unparse, node.decorator_list)  # a card's kernel takes nothing but numbers
    ]  # fmt: skip
    public = public_names()
    lists = [
        names[f] for f in files
        if sum(isinstance(n, ast.MatchClass) and ast.unparse(n.cls).endswith("Node") for n in ast.walk(trees[f])) > 1
    ]  # fmt: skip
    everything = "\n".join(texts.values())
    details = {
        "import circles": [" > ".join(c) for c in circles(graph)],
        "module names that stand twice": [s for s, n in stems.items() if n > 1],
        "files over 400 lines": [f"{names[f]} {n}" for f, n in lines.items() if n > 400],
        "functions of more than 8 parameters": [f"{name} {n}" for name, n in functions if name not in public],
        PUBLIC: [f"{name} {n}" for name, n in functions if name in public],
        "modules that list the kinds of stages": lists,
        "prose wider than 120 columns": wide_prose(),
    }
    most = folders.most_common(1)[0]
    details["most files in a folder"] = [most[0]]
    counts = {name: len(of) for name, of in details.items()} | {
        "lines": sum(lines.values()),
        "most files in a folder": most[1],
        "`# fmt: skip`": everything.count("# fmt: skip"),
        "`cast(`": len(re.findall(r"\bcast\(", everything)),
    }
    return counts, details


def crossed() -> list[str]:
    """Modules that one tiny chain goes through; needs torch."""
    child = [sys.executable, str(HERE / "scripts" / "crossed.py")]
    return subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()


def main() -> int:
    """Print the table, or what is above its bound."""
    counts, details = count()
    if "--check" not in sys.argv[1:]:
        details[CROSSED] = crossed()
        counts[CROSSED] = len(details[CROSSED])
        print("| | counted | aim |\n|---|---|---|")
        for name, aim in AIMS.items():
            print(f"| {name} | {counts[name]:,} | {aim:,} |")
        if "--list" in sys.argv[1:]:
            for name, of in details.items():
                print(f"\n{name}:", *of, sep="\n  ")
        return 0
    above = [name for name, bound in BOUNDS.items() if counts[name] > bound]
    for name in above:
        print(f"{name}: {counts[name]}, at most {BOUNDS[name]}: {'; '.join(details[name])}", file=sys.stderr)
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
