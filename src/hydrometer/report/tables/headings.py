"""Headings of figures in tables of models."""

from __future__ import annotations

__all__ = ["EXTRA", "FITS", "MAIN", "TERMINAL"]

MAIN = {
    "precision": "precision",
    "recall": "recall",
    "entropy": "H(q)",
    "kl_student_truth": "KL(q‖p*)",
    "kl_truth_student": "KL(p*‖q)",
}
EXTRA = {
    "recall_on_support": "recall on support",
    "truth_mass_outside_support": "p* mass outside support",
    "precision_per_token": "precision / token",
    "recall_per_token": "recall / token",
    "entropy_per_token": "H(q) / token",
    "total_variation": "TV",
    "divergence_area": "divergence area",
    "typicality_50": "typicality 50 %",
    "typicality_90": "typicality 90 %",
    "entropy_kept": "entropy kept",
    "effective_volume": "effective volume",
    "collapsed": "collapsed",
    "length": "length",
    "eos_rate": "ended",
    "repetition": "repetition",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "draws_per_row": "draws / row",
    "acceptance_rate": "accepted",
    "entropy_bound": "H(q) at most",
    "kl_chosen_candidates": "KL(q‖candidates)",
    "kl_chosen_candidates_bound": "KL(q‖candidates) at most",
    "entropy_teacher": "H(teacher)",
    "capacity_gap": "capacity gap",
    "modes_covered": "modes covered",
    "effective_components": "effective components",
    "precision_per_byte": "precision / byte",
    "recall_per_byte": "recall / byte",
    "entropy_per_byte": "H(q) / byte",
    "entropy_truth_per_byte": "H(p*) / byte",
    "precision_reference": "precision under the reference",
    "precision_reference_per_byte": "precision under the reference / byte",
    "kl_student_reference": "KL(q‖reference)",
    "round_trip_truth": "texts given back",
    "round_trip_own": "own texts given back",
    "spans_prompt_truth": "texts without a boundary behind the prompt",
    "spans_prompt_own": "own texts without a boundary behind the prompt",
}
FITS = {"steps": "fit: steps", "tokens": "fit: tokens", "tokens_drawn": "fit: tokens drawn", "seconds": "fit: seconds"}
TERMINAL = ("precision", "recall", "H(q)", "KL(q‖p*)")
