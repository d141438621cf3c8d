"""Distil with TRL's GKDTrainer or DistillationTrainer in the setting of a run's student.

    WAY='temperature=0.8,loss=jsd(weight=0.5),prefix_source=student'
    hydrometer export RUN --selectivity "$WAY" --trainer gkd --to FOLDER
    python examples/distil_elsewhere.py FOLDER --cpu
    hydrometer adopt RUN --model FOLDER/trained --name trl --selectivity "$WAY"

Needs: pip install 'trl>=1.16'. hydrometer itself is not needed where this runs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Trainer
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


def collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Rows by their ids, as they were drawn, padded on the left as GKDTrainer's own collator pads them."""

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([[value] * (width - len(r)) + r for r in rows])

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids, prompts = [r["input_ids"] for r in rows], [r["prompt_ids"] for r in rows]
        return {
            "input_ids": padded(ids, tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(x) for x in ids], 0),
            "labels": padded([r["labels"] for r in rows], -100),
            "prompts": padded(prompts, tokenizer.pad_token_id),
            "prompt_attention_mask": padded([[1] * len(x) for x in prompts], 0),
        }

    return collate


def trainer_of(folder: Path, *, cpu: bool) -> Trainer:
    """Make the trainer that `setting.json` names."""
    setting = json.loads((folder / "setting.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    student = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=setting["dtype"])
    student.generation_config.eos_token_id = setting["stop_ids"]
    student.generation_config.pad_token_id = tokenizer.pad_token_id
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype="float32")
    rows = Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))
    given = {"model": student, "teacher_model": teacher, "processing_class": tokenizer}
    own = {"output_dir": str(folder / "trained"), "use_cpu": cpu, "disable_tqdm": True}
    if setting["trainer"] == "distillation":  # it draws all rows itself
        arguments = DistillationConfig(**setting["arguments"], **own)
        return DistillationTrainer(**given, args=arguments, train_dataset=rows.select_columns(["prompt"]))
    rows = rows.select_columns(["input_ids", "labels", "prompt_ids"])
    arguments = GKDConfig(**setting["arguments"], **own)
    return GKDTrainer(**given, args=arguments, train_dataset=rows, data_collator=collator(tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil with TRL in the setting of a run's student.")
    parser.add_argument("folder", type=Path, help="what `hydrometer export --trainer` made")
    parser.add_argument("--cpu", action="store_true")
    a = parser.parse_args()
    trainer = trainer_of(a.folder, cpu=a.cpu)
    trainer.train()
    trainer.save_model(str(a.folder / "trained"))
    print(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
