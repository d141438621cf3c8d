"""How each claim is measured: one module a claim, with its `World` and `measure` (`claims.claim_spec.Measure`)."""
