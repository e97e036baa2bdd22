"""A vision transformer with patches of one channel each, trained as ChannelViT is.

    python -m rxrx1_jax.main --config=vit:fold=0 --workdir=runs/vit-0

Source: ChannelViT (Bao et al. 2023, arXiv:2309.16108; github.com/insitro/ChannelViT at
79de3e277e1a, channelvit/config/meta_arch/supervised.yaml): ViT-S/16, AdamW, peak learning rate 5e-4
for batches of 256, 10 epochs of warm-up and 100 in all, then a cosine. As there, biases and norms
do not decay. Different here:

- Weight decay 0.05 throughout (DeiT: Touvron et al. 2021, arXiv:2012.12877), where ChannelViT
  raises it from 0.04 to 0.4. The embeddings of places, channels and class do not decay either.
- Gradients are clipped to norm 1 (Steiner et al. 2021, arXiv:2106.10270).
- Crops of 256 px, as OpenPhenom takes them: 1 + 6 * 16 * 16 = 1,537 tokens.
- The cosine ends at 0, not at 1e-6; all six channels are used throughout.

ChannelViT has no figure for RxRx1. Not run on real data, nor on a GPU: by the estimate of
--mode=plan a step needs 33 GB of a device in bfloat16. On the smoke screen `vit_tiny(patch=8)` of
model.width 16, in 30 epochs (3 of warm-up) with batches of 16, reached 70.3 % by site (chance
12.5 %; 2 CPU cores, float32).
"""

from rxrx1_jax import config


def get_config(arg=None):
    c = config.default()
    c.data.crop = 256
    c.model.name = "vit_small(patch=16)"
    c.model.remat = True
    c.optim.accumulation = 2  # of no influence on the numbers: the network has no BatchNorm
    c.optim.name = "adamw"
    c.optim.batch_size = 256
    c.optim.epochs = 100
    c.optim.learning_rate = 5e-4
    c.optim.warmup_epochs = 10.0
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    return config.parse(arg, c)
