"""python -m fastbn.patch show|diff|apply|merge: what patches hold, how far two are apart, a patch onto the
weights of its base, the average of several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastbn.cli import command
from fastbn.cli.parser import Parser
from fastbn.errors import MachineError, UsageError
from fastbn.files import reason, writing
from fastbn.machine.load_torch import load_torch

MOST_BASE = 1 << 36  # bytes of a base's weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, a file that is none or does not fit, a disk that is full; 130
    interrupted."""
    return command.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    asked = _parser().parse_args(arguments)
    load_torch()
    said = {"show": _show, "diff": _diff, "apply": _apply, "merge": _merge}[asked.what](asked)
    command.show(said)
    return 0


def _parser() -> Parser:
    examples = (
        ("show flowers.safetensors", "what the patch holds, and of what base"),
        ("diff a.safetensors b.safetensors", "how far two are apart"),
        ("merge a.safetensors b.safetensors --out c.safetensors", "their average"),
    )
    about = "Show, compare, apply and average what fastbn.save wrote."
    parser = Parser("patch", examples, description=about)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="show|diff|apply|merge")
    kinds.add_parser("show", help="what a patch holds").add_argument(
        "patch", metavar="FILE", help="what fastbn.save wrote"
    )
    both = kinds.add_parser("diff", help="how far the second is from the first")
    both.add_argument("first", metavar="A", help="a patch, or a run's checkpoint")
    both.add_argument("second", metavar="B", help="another, of the same base")
    onto = kinds.add_parser("apply", help="the base's weights with the patch in them")
    onto.add_argument("patch", metavar="FILE", help="what fastbn.save wrote")
    what = "the base's state dict, .safetensors or .pth; of a FastBNOnlyResNet the patch itself says it"
    onto.add_argument("--base", metavar="FILE", help=what)
    onto.add_argument("--out", metavar="FILE", required=True, help="the .safetensors file to write")
    several = kinds.add_parser("merge", help="the average of patches of one base")
    several.add_argument("patches", metavar="FILE", nargs="+", help="two or more")
    several.add_argument("--out", metavar="FILE", required=True, help="the patch to write")
    what = "how much each counts (all the same; running statistics by the batches that they have seen)"
    several.add_argument("--weights", metavar="W", type=float, nargs="+", help=what)
    return parser


def _show(asked: argparse.Namespace) -> str:
    from fastbn.patches.summary import inspect

    return str(inspect(asked.patch))


def _diff(asked: argparse.Namespace) -> str:
    from fastbn.patches.summary import diff_patches

    return str(diff_patches(asked.first, asked.second))


def _apply(asked: argparse.Namespace) -> str:
    import safetensors.torch

    from fastbn.models.load_weights import read_state
    from fastbn.patches.apply import fitted
    from fastbn.patches.patch import read
    from fastbn.training.checkpoint import load

    patch = read(asked.patch)
    if patch.of_checkpoint:
        state = load(asked.patch, "stock", asked.base).state_dict()
    elif asked.base is None:
        raise UsageError(f"{asked.patch} holds what changed alone; name the base's weights with --base")
    else:
        state = read_state(Path(asked.base), MOST_BASE)[1]
        state |= fitted(state, patch, True, lambda: "")
    content = safetensors.torch.save({name: t.contiguous().clone() for name, t in state.items()})
    try:
        with writing(asked.out) as file:
            file.write(content)
    except OSError as error:
        raise MachineError(f"could not write {asked.out}: {reason(error)}; give another --out") from error
    return f"{asked.out}: {len(state):,} tensors, {len(content):,} bytes"


def _merge(asked: argparse.Namespace) -> str:
    from fastbn.patches.merge import merge_patches
    from fastbn.patches.summary import inspect

    merge_patches(asked.patches, asked.out, asked.weights)
    return str(inspect(asked.out))


if __name__ == "__main__":
    command.leave(main())
