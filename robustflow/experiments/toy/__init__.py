"""The 2-D toy: the exploding inverse in two minutes, with its cause and its controls.

- :mod:`~robustflow.experiments.toy.law`: the data: what shows the effect, and the controls.
- :mod:`~robustflow.experiments.toy.models`: the couplings, and a small flow alike but for them.
- :mod:`~robustflow.experiments.toy.training`: maximum likelihood, and who counts as untrained.
- :mod:`~robustflow.experiments.toy.reading`: samples by the radius of the condition; layers.
- :mod:`~robustflow.experiments.toy.attack`: the condition of the largest sample, and the bound.
- :mod:`~robustflow.experiments.toy.runs`: what one model did: a worker's job.
- :mod:`~robustflow.experiments.toy.summary`: over seeds, and the JSON file.
- :mod:`~robustflow.experiments.toy.figures`: the picture.
- :mod:`~robustflow.experiments.toy.tables`: what is printed.
- :mod:`~robustflow.experiments.toy.demonstration`: all of it: ``robustflow demo --toy``.
"""
