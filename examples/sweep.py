"""A search over learning rate, batch size and γ's initialisation by Optuna:  python examples/sweep.py
--trials 20

Chooses by held-out training images, never by the test set. With --storage sqlite:///sweep.db the search is
kept: the same command continues it, and several processes may share it."""

import argparse
import sys

import fastbn
from fastbn.data import load

asked = argparse.ArgumentParser()
asked.add_argument("--data-dir", default="data")
asked.add_argument("--dataset", default="auto")
asked.add_argument("--depth", type=int, default=14)
asked.add_argument("--images", type=int, default=5000)
asked.add_argument("--epochs", type=int, default=5)
asked.add_argument("--trials", type=int, default=20)
asked.add_argument("--storage", help="where Optuna keeps the search; in memory")
asked = asked.parse_args()

try:
    import optuna
except ImportError:
    sys.exit("examples/sweep.py needs Optuna, which is not installed; run: pip install optuna")

data = load(asked.dataset, asked.data_dir)
train, held_out = data.train.limit(asked.images).split(max(1, min(asked.images, len(data.train)) // 5), 0)


def objective(trial: optuna.Trial) -> float:
    gamma_init = trial.suggest_categorical("gamma_init", ["uniform", "ones", "uniform_symmetric", "normal"])
    recipe = {
        "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256]),
        "epochs": asked.epochs,
    }
    model = fastbn.FastBNOnlyResNet(asked.depth, len(train.classes), gamma_init=gamma_init)
    try:
        history = fastbn.fit(model, train, held_out, progress=False, **recipe)
    except RuntimeError as diverged:  # a learning rate too high is a result too
        raise optuna.TrialPruned(str(diverged)) from diverged
    return history[-1]["test_accuracy"]


study = optuna.create_study(
    study_name=f"resnet{asked.depth}-{data.name}",
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0),
    storage=asked.storage,
    load_if_exists=True,
)
study.optimize(objective, n_trials=asked.trials)
print(
    f"best of {len(study.trials)} trials on held-out images: {study.best_value:.3f} with {study.best_params}"
)
