"""Train a student with TRL on a run's rows, and import it to be judged beside the run's own students.

    hydrometer run RECIPE --out RUN            # or with --until draw: only the rows
    python examples/train_elsewhere.py RUN --student MODEL --selectivity temperature=0.8

MODEL is where the student starts: a folder or hub id of a causal language model with the truth's own tokenizer.
Needs: pip install 'hydrometer[lm]' trl
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import hydrometer as hm


def read(rows: Path, cache: Path) -> Dataset:
    """The columns that TRL trains on: the ids as they were drawn, and labels on the answer alone."""
    whole = Dataset.from_parquet(str(rows), cache_dir=str(cache))
    return whole.select_columns(["input_ids", "labels"])


def train(student: str, rows: Path, held_out: Path, checkpoint: Path, *, epochs: float, seed: int, cpu: bool) -> float:
    """Fit the student by maximum likelihood; returns the held-out loss, nats/token."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(student, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(student),
        train_dataset=read(rows, checkpoint.parent),
        eval_dataset=read(held_out, checkpoint.parent),
        args=SFTConfig(
            output_dir=str(checkpoint),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            max_length=None,  # the rows were cut where the law cuts them
            bf16=False,
            use_cpu=cpu,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(str(checkpoint))  # safetensors, and the tokenizer beside them
    return float(trainer.evaluate()["eval_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a student with TRL on a run's rows, and judge it in the run.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--student", required=True, help="folder or hub id to start from")
    parser.add_argument("--selectivity", required=True, help="of the teacher, for example temperature=0.8")
    parser.add_argument("--name", default="trl", help="what the student is called in the run")
    parser.add_argument("--seed", type=int, default=0, help="of the run's rows, and of the training")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--work", type=Path, default=Path("elsewhere"), help="new folder for rows and checkpoint")
    parser.add_argument("--cpu", action="store_true")
    a = parser.parse_args()

    a.work.mkdir(parents=True)
    rows, held_out, checkpoint = a.work / "rows.parquet", a.work / "held-out.parquet", a.work / "student"
    print(hm.export(a.run, to=rows, selectivity=a.selectivity, seed=a.seed).advice)
    hm.export(a.run, to=held_out, selectivity=a.selectivity, seed=a.seed, held_out=True)
    loss = train(a.student, rows, held_out, checkpoint, epochs=a.epochs, seed=a.seed, cpu=a.cpu)
    print(f"held-out loss {loss:.3f} nats/token")

    done = hm.adopt(a.run, model=checkpoint, name=a.name, selectivity=a.selectivity, seed=a.seed)
    cells = {c["id"]: c for c in done.run.results["cells"]}
    for name in done.cells:
        figures = cells[name]["metrics"]
        print(f"{name}: precision {figures['precision']['value']:.2f}, recall {figures['recall']['value']:.2f} nats")
    print("report", hm.build_report([done.run.folder]))


if __name__ == "__main__":
    main()
