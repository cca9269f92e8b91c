"""Prompts as the tokens that a chat model expects."""

from __future__ import annotations

from typing import Any


class TemplateError(ValueError):
    """The model's chat template does not render the prompt."""


def has_template(tokenizer: Any) -> bool:
    """Whether the model is one to chat with, by a template or by mlx-lm."""
    return (
        getattr(tokenizer, "has_chat_template", False)
        or getattr(tokenizer, "chat_template", None) is not None
    )


def chat_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a user's message; TemplateError if there are none."""
    message = [{"role": "user", "content": prompt}]
    try:
        tokens = list(
            tokenizer.apply_chat_template(message, add_generation_prompt=True)
        )
    except Exception as error:  # Templates are programs of the model's.
        raise TemplateError(
            f"the model's chat template cannot render this prompt: {error}"
        ) from error
    if not tokens:
        raise TemplateError(
            "the model's chat template renders this prompt to nothing"
        )
    return tokens
