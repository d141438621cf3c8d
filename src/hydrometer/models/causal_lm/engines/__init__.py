"""Engines that draw training rows of causal LMs elsewhere: vLLM, a served model, third parties'."""
