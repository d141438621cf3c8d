"""Write, or with --check compare, the files that are generated from the code.

docs/cli.md             every command's help
src/hydrometer/recipes/spec.schema.json  JSON schema of a specification; docs/spec.schema.json is a link to it
docs/public-surface.txt all public names
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from surface import surface

import hydrometer
from hydrometer.models.families import BUILT_IN, RunSpec

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    [],
    ["run"],
    ["plan"],
    ["doctor"],
    ["init"],
    ["recipes"],
    ["report"],
    ["watch"],
    ["judge"],
    ["export"],
    ["adopt"],
    ["scores"],
    ["advise"],
)


def cli_page() -> str:
    """Help of every command, as a terminal of 100 columns shows it."""
    parts = ["# Command line\n\nGenerated from the code; `make check` compares.\n"]
    environment = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    for command in COMMANDS:
        argv = [str(Path(sys.executable).parent / "hydrometer"), *command, "--help"]
        text = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout
        lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        parts.append(f"## {' '.join(['hydrometer', *command])}\n\n```text\n{lines}\n```\n")
    parts.append(
        "## Exit codes\n\n0 done; 1 a cell failed; 2 input wrong, or a machine that refuses, with one line that says "
        "what, got, fix; 130 interrupted (143 by SIGTERM, 141 nobody reads the output), with the command that goes "
        "on.\n"
    )
    return "\n".join(parts)


def spec_schema() -> str:
    """The run's schema, with each family's chain in place of the open union."""
    schema = RunSpec.model_json_schema()
    choices: list[dict[str, str]] = []
    definitions: dict[str, object] = schema.setdefault("$defs", {})
    for family in BUILT_IN:
        chain = family.chain_spec.model_json_schema(ref_template=f"#/$defs/{family.name}.{{model}}")
        for name, body in chain.pop("$defs", {}).items():
            definitions[f"{family.name}.{name}"] = body
        definitions[family.name] = chain
        choices.append({"$ref": f"#/$defs/{family.name}"})
    schema["properties"]["chains"]["additionalProperties"] = {"oneOf": choices}
    schema["properties"]["chains"].pop("patternProperties", None)
    schema["properties"]["seeds"] = {
        "description": "a count n for seeds 0 .. n-1, or a list",
        "oneOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer", "minimum": 0}}],
    }
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def main() -> int:
    """Write or compare; the exit status of the comparison."""
    made = {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "src" / "hydrometer" / "recipes" / "spec.schema.json": spec_schema(),
        ROOT / "docs" / "public-surface.txt": surface(json.loads(spec_schema())),
    }
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text() != text]
    if "--check" in sys.argv[1:]:
        for p in stale:
            code = Path(hydrometer.__file__).parent  # in a worktree, set PYTHONPATH: an environment knows one checkout
            print(f"{p.relative_to(ROOT)} is not what {code} says; run: python scripts/generated.py", file=sys.stderr)
        return bool(stale)
    for p in stale:
        p.write_text(made[p])
        print(f"wrote {p.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
