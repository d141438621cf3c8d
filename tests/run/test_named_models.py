"""Models of a run by name: as links that open like any model's folder, and as a list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402
import yaml  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import lm_chain, write_spec  # noqa: E402
from hydrometer.cli.commands import app  # noqa: E402
from hydrometer.core.distillation import Distillation, Objective  # noqa: E402
from hydrometer.core.errors import FolderError  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.report import build_report  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.run.results.model_card import model_card  # noqa: E402
from hydrometer.run.results.named_models import named_models  # noqa: E402
from hydrometer.stages.cells import Cell, Place  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
STUDENTS = {f"{kind}-seed{n}" for kind in ("direct", "distilled-t1.0", "distilled-t0.6") for n in (0, 1)}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "truth"
    CausalLM(make_llama(), make_tokenizer(64)).save(folder)
    return folder


def begin(folder: Path, truth: Path) -> Path:
    return write_spec({"name": "tiny", "seeds": 2, "chains": {"lm": lm_chain(truth)}}, folder)


def test_a_model_is_opened_by_its_name(tmp_path: Path, truth: Path) -> None:
    out = tmp_path / "out"
    found = hm.run(begin(tmp_path, truth), out=out)
    jsonschema.validate(found.results, SCHEMA)
    assert {p.name for p in (out / "models").iterdir()} == {*STUDENTS, "teacher"}
    named = {m.name: m for m in named_models(out)}
    for cell in found.results["cells"]:
        is_named = cell["decoding"] is None and cell["role"] != "truth"
        assert ("name" in cell) is is_named
        if is_named:
            assert named[cell["name"]].cell == cell["id"]
            fit = (out / "artifacts" / cell["artifacts"]["fit"]).resolve()
            own = out / "models" / cell["name"]
            assert named[cell["name"]].place == own
            links = [p for p in own.iterdir() if p.name != "README.md"]
            assert {p.resolve() for p in links} == {p for p in fit.iterdir() if p.name != "meta.json"}
            assert not any(p.readlink().is_absolute() for p in links)  # the folder can be moved
    link = out / "models" / "distilled-t0.6-seed1"
    judged = judge_models([link], truth=truth, answers_per_prompt=64, out=tmp_path / "judged")
    assert judged.results["cells"][1]["model"] == "distilled-t0.6-seed1"
    here = next(c for c in found.results["cells"] if c.get("name") == link.name)["metrics"]["precision"]
    there = judged.results["cells"][1]["metrics"]["precision"]
    assert abs(here["value"] - there["value"]) < 5 * (here["se"] ** 2 + there["se"] ** 2) ** 0.5
    said = CliRunner().invoke(app, ["models", str(out)])
    assert said.exit_code == 0
    assert f"distilled-t0.6-seed1  {link}" in said.stdout.splitlines()
    assert f"teacher               {out / 'models' / 'teacher'}" in said.stdout.splitlines()
    assert "direct-seed0" in build_report([out]).read_text(encoding="utf-8")
    hm.adopt(out, model=link, name="trl", selectivity="temperature=0.6")
    assert (out / "models" / "adopted-trl-distilled-t0.6-seed0").is_dir()
    check_cards(out, truth, found.results)


def check_cards(out: Path, truth: Path, results: dict[str, Any]) -> None:
    """A card says whose student it is, its figures as the results have them, and what makes it again."""
    cards = {p.parent.name: p.read_text("utf-8") for p in (out / "models").glob("*/README.md")}
    assert cards.keys() == {*STUDENTS, "teacher", "adopted-trl-distilled-t0.6-seed0"}
    for cell in results["cells"]:
        if "name" in cell:
            _, front, body = cards[cell["name"]].split("---\n", 2)
            assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["distillation", "hydrometer"]}
            low, high = cell["metrics"]["recall"]["ci95"]
            assert f"| recall | {cell['metrics']['recall']['value']:.5g} | {low:.5g} to {high:.5g} | nats |" in body
            assert cell["artifacts"]["fit"] in body
    body = cards["distilled-t0.6-seed1"]
    assert '| teacher\'s setting | {"temperature": 0.6} |' in body
    assert "| trained on | the teacher's rows |" in body
    assert "| trained on | the truth's rows |" in cards["direct-seed1"]
    assert '| starts from | {"layers_of": "above", "layers": [0]} |' in body
    assert f"| base | {truth} |" in body
    assert f"| torch | {torch.__version__} |" in body
    said = yaml.safe_load(body.rpartition("```yaml\n")[2].rpartition("```")[0])
    assert said == results["specs"][-1]
    assert f"`{results['spec_hashes'][-1]}.yaml`" in body
    assert '"adopted": "trl"' in cards["adopted-trl-distilled-t0.6-seed0"]


GIVEN = {"source": "org/teacher"}


@pytest.mark.parametrize(
    ("init", "teacher", "training", "base"),
    [
        ("scratch", GIVEN, "distilled", None),
        ("truth", GIVEN, "distilled", "org/truth"),
        ("above", GIVEN, "distilled", "org/teacher"),
        ("above", GIVEN, "direct", "org/truth"),
        ({"layers_of": "above", "layers": [0]}, {"init": {"source": "org/other"}}, "distilled", "org/other"),
        ("above", {"init": "scratch"}, "distilled", None),
        ({"source": "org/small"}, "truth", "direct", "org/small"),
        ({"source": "./small"}, "truth", "direct", None),
    ],
)
def test_a_card_names_a_base_on_a_hub(init: object, teacher: object, training: str, base: str | None) -> None:
    chain = {"truth": {"source": "org/truth"}, "teacher": teacher, "student": {"init": init}}
    record = {"name": "x", "id": "y", "role": "student", "metrics": {}, "artifacts": {"fit": "fit-0"}}
    record["training"] = training
    front = yaml.safe_load(model_card(record, chain, "org/truth", {}, {}).split("---\n")[1])
    assert front.get("base_model") == base


def test_a_list_serves_where_links_cannot(tmp_path: Path, truth: Path) -> None:
    """A cache elsewhere, a folder of somebody's in a link's place, results of before."""
    overrides = ["seeds=1", "chains.lm.selectivity=[{temperature: 1.0}]"]
    spec = begin(tmp_path, truth)
    hm.run(spec, out=tmp_path / "here", overrides=overrides, cache=tmp_path / "local")
    shutil.rmtree(tmp_path / "here" / "models")  # as in a folder that was copied without links
    with pytest.raises(FolderError, match="3 of 3 models are not there") as caught:
        named_models(tmp_path / "here")
    assert "give --cache" in str(caught.value)
    hm.run(spec, out=tmp_path / "here", overrides=overrides, cache=tmp_path / "local")
    link = tmp_path / "here" / "models" / "direct-seed0"
    assert (link / "config.json").resolve().parents[1] == tmp_path / "local"
    shutil.rmtree(link)
    link.mkdir()  # somebody's own: nothing is written there
    hm.run(spec, out=tmp_path / "here", overrides=overrides, cache=tmp_path / "local")
    assert not any(link.iterdir())
    said = CliRunner().invoke(app, ["models", str(tmp_path / "here"), "--cache", str(tmp_path / "local"), "--json"])
    listed = {m["name"]: m["place"] for m in json.loads(said.stdout)["models"]}
    assert list(listed) == ["teacher", "direct-seed0", "distilled-t1.0-seed0"]
    assert Path(listed["direct-seed0"]).parent == tmp_path / "local"
    assert Path(listed["teacher"]) == tmp_path / "here" / "models" / "teacher"
    results = json.loads((tmp_path / "here" / "results.json").read_text())
    for cell in results["cells"]:
        cell.pop("name", None)
    (tmp_path / "here" / "results.json").write_text(json.dumps(results))
    with pytest.raises(FolderError, match="gave models no names"):
        named_models(tmp_path / "here")


def test_names_are_as_different_as_cells() -> None:
    settings: list[dict[str, Any]] = [
        {"temperature": 0.7}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.7},
        {"weight_power": float("inf")}, {"temperature": 0.7, "best_of": 4, "rank_by": "-length"},
    ]  # fmt: skip
    methods = (Objective("mle"), Objective("jsd", (("weight", 0.5),)))
    made = [Distillation(Selectivity(**s), m) for s in settings for m in methods]
    cells: list[Cell] = []
    for d in (None, *made):
        for role in ("assistant_1", "student"):
            for origin in (None, {"adopted": "x"}, {"adopted": "x-direct"}):
                training = "direct" if d is None else "distilled"
                place = Place(level=2, role=role, training=training, distillation=d, origin=origin)
                cells += [
                    Cell.at(place, id="", group="", chain=c, seed=s, judge="") for c in "ab" for s in (None, 0, 1)
                ]
    names = [c.model_name(with_chain=True) for c in cells]
    assert len(set(names)) == len(names)
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for n in names)


@pytest.mark.parametrize("name", [7, "../../lnk", "/tmp/lnk", "\u001b]0;owned\u0007", "x" * 300])
def test_names_from_elsewhere_lead_nowhere(tmp_path: Path, truth: Path, name: object) -> None:
    """Results are a file that somebody else may have written."""
    out = tmp_path / "out"
    hm.run(begin(tmp_path, truth), out=out)
    link = out / "models" / "direct-seed0"
    own = (link / "config.json").resolve().parent
    shutil.rmtree(link)
    link.symlink_to(truth)  # no model of this run
    assert {m.name: m.place for m in named_models(out)}["direct-seed0"].resolve() == own
    results = json.loads((out / "results.json").read_text())
    next(c for c in results["cells"] if c.get("name") == "direct-seed0")["name"] = name
    (out / "results.json").write_text(json.dumps(results))
    with pytest.raises(FolderError, match="name a model as no run does"):
        named_models(out)
