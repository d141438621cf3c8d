"""What a hostile person writes: recipes that ship, mutated, and text that only resembles YAML."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from hypothesis import strategies as st

from hydrometer.run.graph.recipes import recipes, shipped_recipes

RECIPES: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((shipped_recipes() / f"{name}.yaml").read_text("utf-8")) for name in sorted(recipes())
}

for _recipe in RECIPES.values():  # hundreds of seeds are planned as two are
    _recipe["seeds"] = min(2, _recipe.get("seeds", 2))

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "inf", "nan", "truth", "above", "../../x", "/etc/passwd", "a\0b", "\x1b[31m", "\u202eevil", "=1+1",
         "{{x}}", "<script>", "x" * 5000, "a.b", "__class__", "1e400", "\ud800", "²", "__proto__", "~", "-"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from(
        [10**9, 10**12, 10**18, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**18), 0.5, -0.0, 1e-300,
         1e300, float("inf"), float("-inf"), float("nan")]
    ),
    st.just(5000).map(lambda n: 16**n),  # more digits than Python writes out
    st.floats(),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for k, v in value.items():
            found += _places(v, (*path, k))
    elif isinstance(value, list):
        for i, v in enumerate(value):
            found += _places(v, (*path, i))
    return found


def _by_name() -> dict[Any, list[Any]]:
    """Every value that a recipe gives to a key of some name, wherever it stands."""
    found: dict[Any, list[Any]] = {}
    for recipe in RECIPES.values():
        for path in _places(recipe):
            value: Any = recipe
            for part in path:
                value = value[part]
            found.setdefault(path[-1] if path else None, []).append(value)
    return found


VALUES = _by_name()
NEARBY = (lambda x: x - 1, lambda x: x + 1, lambda x: x / 2, lambda x: 2 * x, lambda x: 0)


@st.composite
def mutated_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe that ships, one to three of its values replaced, deleted, doubled or joined by a key of no meaning.

    Half of what is put there could stand there: a number nearby, or what another recipe has under that name.
    """
    body = copy.deepcopy(draw(st.sampled_from(list(RECIPES.values()))))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = [p for p in _places(body) if p]
        path = draw(st.sampled_from(places)) if places else ("name",)
        here: Any = body
        for part in path[:-1]:
            here = here[part]
        match draw(st.sampled_from(["replace", "number", "delete", "extra", "wrap", *["near", "named"] * 3])):
            case "replace":
                here[path[-1]] = draw(JUNK)
            case "near" if isinstance(here[path[-1]], int | float) and abs(here[path[-1]]) < 1e9:
                here[path[-1]] = draw(st.sampled_from(NEARBY))(here[path[-1]])
            case "named":
                here[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES.get(path[-1], [None]))))
            case "number":
                here[path[-1]] = draw(NUMBERS)
            case "delete":
                del here[path[-1]]
            case "extra" if isinstance(here, dict):
                here[draw(TEXTS)] = draw(JUNK)
            case _:
                if isinstance(here, dict) or path[-1] < len(here):
                    here[path[-1]] = [here[path[-1]]] * draw(st.integers(1, 3))
    return body


YAML_TEXT = st.one_of(
    st.text(alphabet="abc:-[]{}&*!|>%@`'\"#,?\n \t0123456789.~<=", max_size=200),
    st.text(max_size=100),
    st.binary(max_size=100),
    st.lists(
        st.sampled_from(
            ["name: x\n", "seeds: 0x" + "f" * 900 + "\n", "seeds: 1:1:1\n", "chains:\n", "  m: &a [*a]\n", "  m: *a\n",
             "- 1\n", "!!python/object/apply:os.system [ls]\n", "? [a, b]\n", ": c\n", "<<: *a\n", "2001-01-01\n",
             "2001-99-99\n", "!!binary x\n", "!!set {a, b}\n", "!!timestamp foo\n", "!!int foo\n", "!!float []\n",
             "key: !!omap [a: 1]\n", "k: !!pairs [a]\n", "\t\n", "---\n", "...\n", "%YAML 9.9\n", "a: 1e999\n",
             "a: .nan\n", "a: ''\n", "\ufeff", "a: \"\\ud800\"\n", "= : 1\n", "a: 0b1111\n", "a: 190:20:30.15\n"]
        ),
        max_size=12,
    ).map("".join),
)  # fmt: skip
