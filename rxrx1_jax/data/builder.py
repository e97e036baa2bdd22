"""The builder's modules that need no TFDS, as `rxrx1_jax.data.builder.release.metadata` ...

`import tfds_builder.rxrx1` makes the dataset known to TFDS, so it imports TensorFlow. Its readers
of a release's tables need neither; here they are found without that first import.
"""

import os

import tfds_builder

__path__ = [os.path.join(os.path.dirname(tfds_builder.__file__), "rxrx1")]
