"""One training step as several programs, on a batch in memory: what the benchmarks compare.

A step is forward, backward and SGD with momentum, BatchNorm in training mode, cross-entropy over
1,108 classes, of images with six channels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

CLASSES, CHANNELS = 1108, 6
JAX, TORCH = ("ours", "xla", "linen"), ("torch", "torch.compile")
IMPLEMENTATIONS = (*JAX, *TORCH)
STEM = "stem"  # ours, with the first convolution as `stem_on_blocks`

Run = Callable[[int], None]  # takes so many steps and waits for the last


class Case(NamedTuple):
    """blocks: of each stage of ResNet-50, for the plain networks."""

    network: str
    px: int
    rows: int
    dtype: str = "float32"
    blocks: tuple[int, ...] = (3, 4, 6, 3)


def make(name: str, case: Case, threads: int = 1) -> Run:
    """The step of an implementation.

    ours: as a run compiles it. xla: the same network with none of the forms that
    `rxrx1_jax.model.resnet` has for XLA. stem: ours with `stem_on_blocks`. linen, torch,
    torch.compile: ResNet-50 as users write it.
    """
    return _make_torch(name, case, threads) if name in TORCH else _make_jax(name, case)


def _batch(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((case.rows, case.px, case.px, CHANNELS), np.float32),
        "label": rng.integers(0, CLASSES, case.rows).astype(np.int32),
        "mask": np.ones(case.rows, bool),
    }


def jax_spec(name: str, case: Case) -> Any:
    """The StepSpec of ours, xla or linen."""
    import jax.numpy as jnp
    import optax

    from benchmarks.plain_linen import PlainResNet50
    from rxrx1_jax.data.images import Vocabulary
    from rxrx1_jax.model import networks
    from rxrx1_jax.training import steps

    dtype = jnp.dtype(case.dtype)
    model = networks.create_model(case.network, dtype=dtype)
    return steps.StepSpec(
        PlainResNet50(dtype=dtype, blocks=case.blocks) if name == "linen" else model,
        optax.sgd(0.01, momentum=0.9), lambda step: jnp.float32(0.01),
        Vocabulary((), (), np.arange(CLASSES)), total_steps=1,
    )  # fmt: skip


def _make_jax(name: str, case: Case) -> Run:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from benchmarks.given import OnDevices
    from rxrx1_jax.data.stream import Store
    from rxrx1_jax.model import resnet
    from rxrx1_jax.training import steps

    if name == "xla":
        resnet.on_cpu = lambda: False
        window = dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        resnet.max_pool = partial(nn.max_pool, **window)
    if name == STEM:
        resnet.convolve = partial(stem_on_blocks, resnet.convolve)
    spec = jax_spec(name, case)
    shape = case.px, case.px, CHANNELS
    batch = _batch(case)
    batch["image"] = jnp.asarray(batch["image"], case.dtype)
    if name in ("ours", STEM):
        wrapped = OnDevices("jit", spec)
        state = wrapped.put(steps.create_state(spec, jax.random.key(0), shape))
        inputs: tuple = (Store({}, None), wrapped.draw(batch))
        step = wrapped.train
    else:
        state = steps.create_state(spec, jax.random.key(0), shape)
        inputs = (jax.device_put(batch),)
        step = jax.jit(partial(steps.train_step, spec), donate_argnums=0)
    compiled = step.lower(state, *inputs).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / 1e6
    print(f"{case.network}, {case.px} px, {name}: {temporary:.0f} MB temporary", flush=True)

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = compiled(state, *inputs)
        jax.block_until_ready(metrics)

    return run


def stem_on_blocks(convolve: Callable[..., Any], x: Any, kernel: Any, stride: int) -> Any:
    """`convolve`, but 7x7 with stride 2 is 4x4 over blocks of 2x2 pixels, with more channels.

    The same sums of products, in fewer and fuller passes. The sides of the images are even.
    """
    import jax
    import jax.numpy as jnp

    if kernel.shape[0] != 7:
        return convolve(x, kernel, stride)
    n, height, width, channels = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, height // 2, width // 2, 4 * channels)
    # Padding of 3 is a block and a half: a line of zeros before the kernel makes it two blocks.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    form = ("NHWC", "HWIO", "NHWC")
    padding = ((2, 1), (2, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=form)


def _make_torch(name: str, case: Case, threads: int) -> Run:
    """PyTorch, channels_last: eager, or through torch.compile; autocast for bfloat16."""
    import torch

    from benchmarks.plain_torch import plain_resnet50

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX's default is
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = plain_resnet50(CLASSES, case.blocks)
    network = network.to(device, memory_format=torch.channels_last).train()
    fused = device == "cuda"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=fused)
    forward = torch.compile(network) if name == "torch.compile" else network
    batch = _batch(case)
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(batch["label"]).long().to(device)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(forward(images).float(), targets)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def model_flops(name: str, case: Case) -> float:
    """FLOPs of one training image: of convolutions and products, two per multiply-add.

    Three times those of the forward pass, less the gradient of the images, which nobody needs.
    """
    import jax
    import jax.numpy as jnp

    from rxrx1_jax.data.info import Info

    spec = jax_spec(name, case)
    info, code = Info(spec.vocabulary), jnp.zeros(1, jnp.int32)
    codes = {"cell_type": code, "experiment": code}
    images = jax.ShapeDtypeStruct((1, case.px, case.px, CHANNELS), jnp.float32)
    variables = jax.eval_shape(lambda x: spec.model.init(jax.random.key(0), x, codes, info), images)
    traced = jax.make_jaxpr(lambda v, x: spec.model.apply(v, x, codes, info))(variables, images)
    each = list(_products(traced.jaxpr))
    return 3 * sum(each) - each[0]


def _products(jaxpr: Any) -> Iterator[float]:
    """FLOPs of each convolution and matrix product of a trace, in order."""
    from jax.extend import core

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [v.aval.shape for v in equation.invars]
        out = float(np.prod(equation.outvars[0].aval.shape))
        if name == "conv_general_dilated":
            features = equation.params["dimension_numbers"].rhs_spec[0]
            yield 2 * out * np.prod(inputs[1]) / inputs[1][features]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield 2 * out * np.prod([inputs[0][i] for i in contracted])
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
            if isinstance(inner, core.Jaxpr):
                yield from _products(inner)
