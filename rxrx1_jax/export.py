"""Writes the network of a run for other programs: `python -m rxrx1_jax.export RUN`.

    python -m rxrx1_jax.export runs/mine --format=safetensors
    python -m rxrx1_jax.export runs/mine --format=stablehlo

The first writes weights.safetensors, arrays with the names of torchvision: for PyTorch, timm, or
model.init of another run. The second writes network.jax_export, a StableHLO program with the
normalisation in it, for CPUs, GPUs and TPUs: it needs JAX alone. Both write vocabulary.json, the
names of classes and cell types, and README.md, a model card. They go to RUN/export, or to --out.

The network is the one that the run evaluates with: of its last checkpoint, with averaged weights
where it has them.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rxrx1_jax.config import ConfigError, flat, nearest, user_path
from rxrx1_jax.report import command

if TYPE_CHECKING:  # --help needs no JAX
    from rxrx1_jax.training.run import Run

FILES = {"safetensors": "weights.safetensors", "stablehlo": "network.jax_export"}
IN_PYTORCH = """```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{name}(num_classes={classes})
model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)
model.load_state_dict(load_file("weights.safetensors"))
model.eval()  # log_softmax of its outputs are the log-probabilities
```

Its input are images, float32 [n, {channels}, H, W], normalised as above: (counts - mean) / std."""
IN_JAX = """```python
import jax

with open("network.jax_export", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
log_probs, embedding = program.call(planes, mean, std, cell_type)
```

Any number of images n, on {platforms}. Arguments, in this order:

{arguments}"""


def write(run: "Run", out: Path, kind: str = "safetensors") -> list[Path]:
    """Writes the files and returns their paths. Raises RunError, ConfigError, OSError: a line."""
    from rxrx1_jax.data.files import replacing, write_text
    from rxrx1_jax.report import card, files
    from rxrx1_jax.training import run_dir

    if kind not in FILES:
        raise ConfigError(f"--format={kind}: expected {nearest(kind, FILES)}")
    step, path = run.checkpoint().name, run.path / "results.json"
    results = files.read_results(path, flat(run.config)) if path.exists() else {"step": ""}
    if str(results["step"]) != step:
        raise run_dir.RunError(
            f"{run.path}: its last checkpoint, of step {step}, is not evaluated; expected"
            f" results.json of it: python -m rxrx1_jax.main --workdir={run.path} --mode=evaluate"
        )
    command.check_writable("--out", out)
    content = {"safetensors": _weights, "stablehlo": _program}[kind](run)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / FILES[kind]) as partial:
        partial.write_bytes(content)
    write_text(out / "vocabulary.json", json.dumps(run.vocabulary.to_json(), indent=1) + "\n")
    uses = {"safetensors": _use_of_weights, "stablehlo": _use_of_program}
    said = [f"### {FILES[k]}\n\n{use(run)}" for k, use in uses.items() if (out / FILES[k]).exists()]
    write_text(out / "README.md", card.card(run, results, "\n\n".join(said)))
    return [out / name for name in (FILES[kind], "vocabulary.json", "README.md")]


def _weights(run: "Run") -> bytes:
    from safetensors.numpy import save

    from rxrx1_jax.model import weights

    return save(weights.to_torch(run.evaluated()))


def _program(run: "Run") -> bytes | bytearray:
    from rxrx1_jax.training import program

    return program.make(run.setup, run.state).serialize()


def _use_of_weights(run: "Run") -> str:
    name, width, head = (run.config.model[part] for part in ("name", "width", "head"))
    if name.startswith("resnet") and name != "resnet_demo" and (width, head) == (64, "linear"):
        classes, channels = len(run.vocabulary.classes), run.images.image_shape[0]
        return IN_PYTORCH.format(name=name, classes=classes, channels=channels)
    return "The arrays have PyTorch's order of axes, and the names of the network's modules."


def _use_of_program(run: "Run") -> str:
    from rxrx1_jax.training import program

    shape = run.images.image_shape
    arguments = [
        f"- `{name}`: {about.format(*shape)}" for name, about in program.ARGUMENTS.items()
    ]
    platforms = ", ".join(program.PLATFORMS)
    return IN_JAX.format(arguments="\n".join(arguments), platforms=platforms)


def main() -> int:
    parser = command.Plain("export", __doc__ or "")
    parser.add_argument("run", type=user_path, metavar="RUN", help="folder of a run")
    parser.add_argument("--format", choices=FILES, default="safetensors", help="safetensors unless"
                        " given")  # fmt: skip
    parser.add_argument("--out", type=user_path, metavar="DIR", help="in place of RUN/export")
    parser.add_argument("--data_dir", type=user_path, metavar="DIR",
                        help="where the data are now; else where the run found them")  # fmt: skip
    options = parser.parse_args()

    def work() -> None:
        run = command.open_run(options.run, options.data_dir)
        for path in write(run, options.out or options.run / "export", options.format):
            print(path)

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
