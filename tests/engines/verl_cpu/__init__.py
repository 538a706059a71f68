"""A CPU for verl: what it has for GPUs alone, put into its registries.

`VERL_USE_EXTERNAL_MODULES=verl_cpu` makes each process of verl import this, and `VERL_PLATFORM=cpu`
take it. None of verl's files is changed. It stands on parts of verl 0.9.1 that are not promised to
stay, each named where it is used and all of them in docs/engines-verl.md.
"""

from verl_cpu import device, engines, rollout  # engines ask for the device when they are imported

__all__ = ["device", "engines", "rollout"]
