"""Tokens from prompts: sampled, searched, guessed ahead, constrained."""
