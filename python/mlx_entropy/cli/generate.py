"""`mlx-entropy generate`: text from a converted model."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..prompts import TemplateError, chat_tokens, has_template
from .arguments import (
    add_codec,
    add_json,
    add_trust,
    add_verb,
    positive_int,
    temperature,
)

_EXAMPLES = """\
  mlx-entropy generate ./model-ec --prompt "Once upon a time"
  mlx-entropy generate ./model-ec --prompt "Hi" --max-tokens 50 --temp 0.7
  mlx-entropy generate ./model-ec --prompt "Hi" --codec rans  # least memory
"""

_DESCRIPTION = """\
Generate text through mlx-lm. The text goes to stdout, the speed to stderr.
"""


def configure(subparsers: Any) -> None:
    parser = add_verb(
        subparsers,
        "generate",
        "generate text from a model",
        _DESCRIPTION,
        _EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="converted directory")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument(
        "--max-tokens",
        type=positive_int,
        default=100,
        metavar="N",
        help="stop after N tokens (default: 100)",
    )
    parser.add_argument(
        "--temp",
        type=temperature,
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 takes the likeliest token (default)",
    )
    parser.add_argument(
        "--no-chat-template",
        action="store_true",
        help="pass the prompt as it is, even to a chat model",
    )
    add_codec(parser)
    add_trust(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from .. import load
    from ..mlx_lm_files import import_mlx_lm
    from ..sources import hub

    import_mlx_lm()
    from mlx_lm import stream_generate
    from mlx_lm.sample_utils import make_sampler

    path = hub.model_directory(args.model)
    model, tokenizer = load(
        path, codec=args.codec, trust_remote_code=args.trust_remote_code
    )
    responses = stream_generate(
        model,
        tokenizer,
        _prompt(args, tokenizer),
        max_tokens=args.max_tokens,
        sampler=make_sampler(temp=args.temp),
    )
    text, last = "", None
    try:
        for last in responses:
            text += last.text
            if not args.json:
                print(last.text, end="", flush=True)
    finally:  # After Ctrl-C, too, a message starts on a new line.
        if not args.json:
            print(flush=True)
    if args.json:
        print(json.dumps({"text": text, **_statistics(last)}, indent=2))
    else:
        _print_statistics(last)
    return 0


def _prompt(args: argparse.Namespace, tokenizer: Any) -> Any:
    """A string, or tokens where a chat template was applied."""
    if args.no_chat_template or not has_template(tokenizer):
        if not tokenizer.encode(args.prompt):
            raise ValueError(
                "the prompt is empty; there is nothing to continue"
            )
        return args.prompt
    try:
        return chat_tokens(tokenizer, args.prompt)
    except TemplateError as error:
        raise TemplateError(
            f"{error}; --no-chat-template passes it as it is"
        ) from error


def _statistics(last: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "prompt_tokens_per_second": last.prompt_tps,
        "generated_tokens": last.generation_tokens,
        "generated_tokens_per_second": last.generation_tps,
        "peak_memory_gb": last.peak_memory,
        "finish_reason": last.finish_reason,
    }


def _print_statistics(last: Any) -> None:
    print(
        f"prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.1f} tokens/s; "
        f"generated: {last.generation_tokens} tokens, "
        f"{last.generation_tps:.1f} tokens/s; "
        f"peak memory {last.peak_memory:.3f} GB",
        file=sys.stderr,
    )
