"""One training process as Slurm starts it: srun is the launcher, one task a GPU.

    srun --ntasks-per-node=8 … python -m launch.rank [--config_file launch/accelerate/zero3.yaml] -m recipes.sft --config …

Sets what torch.distributed and accelerate read from the environment, then becomes the stage. No launcher stands between
srun and the process, so Slurm's warning before a preemption (SIGUSR1) reaches it, and it saves a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from foundation.machine import MachineError

_NEEDED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT")


def distributed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables from Slurm's.

    Raises:
        MachineError: not started by srun, or MASTER_ADDR or MASTER_PORT are not set.
    """
    if missing := [name for name in _NEEDED if not environment.get(name)]:
        raise MachineError(f"{', '.join(missing)} not set; start this by srun, as launch/slurm/sft.sbatch does")
    per_node = environment.get("SLURM_NTASKS_PER_NODE") or environment["SLURM_NTASKS"]
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": per_node,
    }


def accelerate_environment(config: Path) -> dict[str, str]:
    """The variables by which `accelerate launch` hands its configuration to a process.

    Raises:
        MachineError: no such configuration.
    """
    if not config.is_file():
        known = ", ".join(sorted(path.stem for path in (Path(__file__).parent / "accelerate").glob("*.yaml")))
        raise MachineError(f"no accelerate configuration {config}; PARALLEL is one of {known}")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import check_cuda_p2p_ib_support
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    # Port 0: the port is ours to set (MASTER_PORT), and must not be checked by each process.
    words = ["--config_file", str(config), "--main_process_port", "0", "-m", "recipes"]
    arguments = launch_command_parser().parse_args(words)
    arguments, defaults, precision_from_config = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        # As accelerate's launch_command does: the fields that a DeepSpeed JSON file, were there one, may not contradict.
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if precision_from_config else [])]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    elif arguments.multi_gpu or arguments.use_fsdp:
        environment = prepare_multi_gpu_env(arguments)
    else:
        _, environment = prepare_simple_launcher_cmd_env(arguments)
    theirs = ("ACCELERATE_", "FSDP_", "MIXED_PRECISION")
    chosen = {name: value for name, value in environment.items() if name.startswith(theirs)}
    if not check_cuda_p2p_ib_support():  # GPUs of the RTX 4000 series
        chosen |= {name: os.environ.get(name, "1") for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")}
    return chosen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m launch.rank")
    parser.add_argument("--config_file", type=Path, help="an accelerate configuration; none for plain data parallel")
    parser.add_argument("-m", dest="stage", nargs=argparse.REMAINDER, required=True, help="module and its arguments")
    given = parser.parse_args(arguments)
    if not given.stage:
        parser.error("-m needs a module")
    try:
        os.environ.update(distributed_environment(os.environ))
        if given.config_file:
            os.environ.update(accelerate_environment(given.config_file))
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv = [given.stage[0], *given.stage[1:]]
    runpy.run_module(given.stage[0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
