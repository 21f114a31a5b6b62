"""Where a run's numbers go besides its folder: TensorBoard, Weights & Biases, MLflow, behind one small protocol.

spec.py          the text that names one: wandb?project=NAME&group=NAME
numbers.py       what an epoch and a result are called there, the same in all
tensorboard_files.py, wandb_run.py, mlflow_run.py   one each; every library is an extra
all_of.py        a run's loggers: one that fails at the start is refused, one that fails later is left out
group.py         runs of a sweep belong together
"""
