"""Judges that differ in cost: what each needs of a server and of GPUs. Any other model can be served by its name too.

    python -m launch.judges                         the table
    python -m launch.judges --options NAME          vLLM's options for one (launch/judge_server.sh), one a line

None of them is the paper's GPT-4, and which one agrees with radiologists is not known before it is measured: have some
hundred reports counted and run `python -m rewards judge-agreement` before a paper rests on a judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from foundation.machine import GIB

DEFAULT = "Qwen/Qwen3-30B-A3B-Instruct-2507"  # as judge_model in recipes/unirg_cxr/rl_step2.yaml
# Tokens by answer format, counted by Qwen's vocabulary: the system message; an answer with its end; and what stands around the
# two reports (markers, keys, closing words). vLLM's cache holds blocks of 16 tokens on a GPU.
RUBRIC_TOKENS = {"auto": 1508, "json": 1508, "list": 1625, "digits": 1081}
ANSWER_TOKENS = {"auto": 97, "json": 97, "list": 110, "digits": 13}
FRAME_TOKENS, BLOCK_TOKENS = 45, 16


@dataclass(frozen=True)
class JudgeKind:
    """Sizes of a judge, from its config.json on the hub.

    Attributes:
        parameters: all of them, in bfloat16.
        active: those that one token passes; fewer than `parameters` in a mixture of experts.
        experts, experts_a_token: of a layer; 1 and 1 where it is no mixture.
        cache_bytes: of KV cache a token, in bfloat16: 2 · layers · KV heads · head size · 2.
        thinks: reasons before it answers unless it is told not to, which its server does here.
    """

    parameters: float
    active: float
    cache_bytes: int
    experts: int = 1
    experts_a_token: int = 1
    thinks: bool = False

    def parameters_read(self, together: float) -> float:
        """Parameters that a decoding step of `together` sequences reads: all but the experts that no token takes.

        Each token takes its experts evenly and independently of the others, by assumption.
        """
        if self.experts == 1:
            return self.parameters
        share = self.experts_a_token / self.experts
        routed = (self.parameters - self.active) / (1 - share)
        return self.parameters - routed * (1 - share) ** together


JUDGES = {
    "Qwen/Qwen3-32B": JudgeKind(32.8e9, 32.8e9, 2 * 64 * 8 * 128 * 2, thinks=True),
    DEFAULT: JudgeKind(30.5e9, 3.3e9, 2 * 48 * 4 * 128 * 2, experts=128, experts_a_token=8),
    "Qwen/Qwen3-8B": JudgeKind(8.2e9, 8.2e9, 2 * 36 * 8 * 128 * 2, thinks=True),
}


def judge_kind(name: str) -> JudgeKind | None:
    """Of a hub name or a folder that is named like one; None for any other."""
    return next((kind for known, kind in JUDGES.items() if _last(known) == _last(name)), None)


def server_options(name: str) -> list[str]:
    """vLLM's options for a judge: one that thinks is told not to, for every request."""
    kind = judge_kind(name)
    return ["--default-chat-template-kwargs", '{"enable_thinking": false}'] if kind and kind.thinks else []


def _last(name: str) -> str:
    return PurePosixPath(name.rstrip("/")).name


def table() -> str:
    """The judges for a screen."""
    lines = [f"{'':36}{'weights':>10}{'active':>10}{'KV cache a token':>18}"]
    for name, kind in JUDGES.items():
        sizes = f"{2 * kind.parameters / GIB:6.0f} GiB{kind.active / 1e9:7.1f} B{kind.cache_bytes / 1024:14.0f} KiB"
        lines.append(f"{name:36}{sizes}{'  (default)' if name == DEFAULT else ''}")
    lines.append("hours of each on your GPUs: make plan ASK=rl-step2 JUDGE_MODEL=NAME")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], prog="python -m launch.judges")
    parser.add_argument("--options", metavar="NAME", help="print vLLM's options for this judge, one a line")
    given = parser.parse_args(argv)
    print("\n".join(server_options(given.options)) if given.options else table())


if __name__ == "__main__":
    main()
