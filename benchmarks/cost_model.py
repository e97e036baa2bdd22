"""What the paper's Table 1 costs on a machine, and what saturates first.

`python -m benchmarks.cost_model`: arithmetic on measured figures, no measurement. docs/scaling.md
explains the columns. The shares of an H100's peak were measured. Those of others are assumptions
until someone runs `python -m benchmarks.accelerator` on one: of TPUs a guess, of the RTX 4090 what
its memory allows, which is what bounds the step (1,008 GB/s, an H100 has 3,350).
"""

import argparse
from typing import NamedTuple

# The paper's task (configs/batch_split.py on the real metadata): training sites of an epoch, all
# cell types together. The four models of single cell types see the same sites once more.
TRAIN_SITES = 73_068
TEST_SITES = 19_900
EPOCHS = 90
RUNS = 2 * 3  # splits x folds
SITE_BYTES = 565_000  # stored, 512 px
PARAMETER_BYTES = 25_787_732 * 4  # of ResNet-50; their gradient crosses the links each step
RESNET50_FORWARD = 8.2e9 * (512 / 224) ** 2  # FLOP an image, two a multiply-add; 224 px: 4.1 GMAC
TRAIN_FLOP = 3 * RESNET50_FORWARD  # backward costs twice the forward pass
BATCH = 256


class Machine(NamedTuple):
    """`hosts` of `cores` and `devices` each (no device: the cores compute)."""

    name: str
    hosts: int
    cores: int
    devices: int = 0
    flops: float = 0  # peak of one device, FLOP/s
    share: float = 0  # of the peak that a step reaches
    link: float = 0  # bytes/s of the slowest link that a gradient crosses; 0: one device
    px: int = 512


MACHINES = (
    Machine("2 CPU cores, float32", 1, 2),
    Machine("one H100, 16 cores, bfloat16", 1, 16, 1, 989e12, 0.145),
    Machine("the same", 1, 16, 1, 989e12, 0.14, px=256),
    Machine("the same", 1, 16, 1, 989e12, 0.13, px=128),
    Machine("one RTX 4090 (24 GB), 16 cores, bfloat16", 1, 16, 1, 165e12, 0.26),
    Machine("the same", 1, 16, 1, 165e12, 0.25, px=256),
    Machine("the same", 1, 16, 1, 165e12, 0.23, px=128),
    Machine("eight H100, 128 cores, bfloat16", 1, 128, 8, 989e12, 0.145, 450e9),
    Machine("TPU v5e-8, 112 cores, bfloat16", 1, 112, 8, 197e12, 0.35, 100e9),
    Machine("64 hosts of v5e-8, 100 Gbit/s between them", 64, 112, 8, 197e12, 0.35, 12.5e9),
)


def cost(machine: Machine, decode_ms: float, cpu_step: float) -> dict[str, str]:
    """One row of the table: seconds of a step by what takes them, then what follows."""
    devices, area = machine.hosts * max(machine.devices, 1), (machine.px / 512) ** 2
    per_device = -(-BATCH // devices)  # a device works on whole images
    if machine.devices:
        compute = per_device * area * TRAIN_FLOP / (machine.flops * machine.share)
    else:
        compute = BATCH * area / (machine.cores * cpu_step)
    links = 2 * PARAMETER_BYTES / machine.link if machine.link else 0.0  # a ring's all-reduce
    decoding = BATCH * area / machine.hosts * decode_ms / 1000 / machine.cores
    # The host half works while the device computes, except where the cores are the device.
    step = max(compute + links, decoding) if machine.devices else compute + decoding
    times = {"compute": compute, "the links": links, "decoding": decoding}
    rate = BATCH / step
    images = RUNS * 2 * (TRAIN_SITES * EPOCHS + TEST_SITES / 3)  # evaluation: forward pass only
    hours = images / rate / 3600
    return {
        "machine": machine.name,
        "px": f"{machine.px}",
        "images per device": f"{per_device}",
        "compute, ms per step": f"{compute * 1000:,.1f}",
        "links": f"{links * 1000:,.1f}",
        "decoding": f"{decoding * 1000:,.1f}",
        "images/s": f"{rate:,.1f}" if rate < 10 else f"{rate:,.0f}",
        "read, MB/s per host": f"{rate * area * SITE_BYTES / 1e6 / machine.hosts:,.1f}",
        "saturates first": max(times, key=times.__getitem__),
        "Table 1": f"{hours:,.1f} h" if hours < 1000 else f"{hours / 8766:.1f} years",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decode_ms", type=float, default=4.0, help="CPU ms per site")
    parser.add_argument("--cpu_step", type=float, default=0.55, help="images/CPU-s, train_step.py")
    options = parser.parse_args()
    rows = [cost(machine, options.decode_ms, options.cpu_step) for machine in MACHINES]
    print(
        f"ResNet-50, {RUNS} x (all + four cell types), {EPOCHS} epochs, batch {BATCH}; a training"
        f" image of 512 px: {TRAIN_FLOP / 1e9:.0f} GFLOP, {options.decode_ms} CPU ms to decode\n"
    )
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
