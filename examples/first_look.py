"""Trains on the synthetic screen, scores the run, and predicts an image as if it were your own.

tfds build tfds_builder/rxrx1 --config=synthetic --data_dir=data
python examples/first_look.py
"""

import rxrx1_jax as rx

data = rx.open_dataset("rxrx1/synthetic", "data")
config = rx.config.read("demo:fold=0,optim.epochs=10")
run = rx.train(config, "runs/first_look")  # a minute on two cores; again: nothing to do
predicted = run.predict(data)  # features and log-probabilities of every site
print("accuracy of the test sites:", rx.score(predicted, role="test")["site"])

site, planes = data.sites[0], data[0]  # uint8 [6, H, W]
mine = rx.InMemory(planes[None], control_mean=site["control_mean"], control_std=site["control_std"])
mine = run.predict(mine)
print("siRNA", mine.classes[mine.log_probs[0].argmax()], "features", mine.x.shape)
