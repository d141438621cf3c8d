"""From a specification to the stage graph: plan, merge with what a folder holds, reopen."""
