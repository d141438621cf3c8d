"""Causal language models of Hugging Face: the only room that imports torch and transformers."""
