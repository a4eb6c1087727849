"""Do the numbers mean anything? A small vision transformer, trained with dropout, on bars in noise."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tessera.mcdropout.recipes import Recipe, resolve
from tessera.mcdropout.reliability import auroc, reliability
from tessera.mcdropout.towers import TowerConfig, VisionTower, initialise
from tessera.mcdropout.trial import EngineSettings, TrialEngine

SIDE, RATE, STEPS, BATCH = 16, 0.05, 200, 32
TINY = TowerConfig("clip", "hf", 32, 2, 2, 64, 4, SIDE, 4, "gelu", 1e-5, "cls", 0, True, True, False, False, "linear")


def bars(noise: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw upright, level and two slanted bars of different places, lengths and brightness; noise: sigma of each."""
    rng = np.random.default_rng(seed)
    n = len(noise)
    kind = rng.integers(0, 4, n)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre = rng.uniform(5.5, SIDE - 6.5, (2, n, 1, 1))
    half = rng.uniform(3.5, 5, (n, 1, 1))
    right, down = x - centre[0], y - centre[1]
    inside = np.maximum(np.abs(right), np.abs(down)) < half
    lines = np.abs(np.stack([right / 1.3, down / 1.3, (right - down) / 1.8, (right + down) / 1.8])) < 1
    pictures = (inside & lines[kind, np.arange(n)]) * rng.uniform(0.8, 1.2, (n, 1, 1))
    pictures = pictures + noise[:, None, None] * rng.normal(size=pictures.shape)
    return torch.tensor(pictures, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1), torch.tensor(kind)


@pytest.fixture(scope="module")
def trained() -> VisionTower:
    """A tower whose four features are the logits of the kinds, trained with the dropout that the trials draw."""
    torch.set_num_threads(1)
    tower = VisionTower(TINY)
    initialise(tower, 0)
    sites = resolve(Recipe("uniform", RATE), tower.sites()).active
    optimizer = torch.optim.AdamW(tower.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS)
    pictures, kinds = bars(np.random.default_rng(0).uniform(0, 0.3, BATCH * STEPS), 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for x, kind in zip(pictures.split(BATCH), kinds.split(BATCH), strict=True):
            logits = tower(x, lambda site, a: functional.dropout(a, RATE) if site.id in sites else a)
            optimizer.zero_grad()
            functional.cross_entropy(logits, kind).backward()
            optimizer.step()
            schedule.step()
    return tower.eval().requires_grad_(requires_grad=False)


def look(tower: VisionTower, noise: np.ndarray, seed: int, trials: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return traces (trials, N), post-normalisation, of 16 passes, and which images the plain network gets wrong."""
    pictures, kinds = bars(noise, seed)
    engine = TrialEngine(tower, resolve(Recipe("uniform", RATE), tower.sites()), EngineSettings(micro_batch=32))
    numbers = np.arange(len(noise))
    runs = [engine.run(pictures, numbers, seed=k, trial=k, passes=range(16)) for k in range(trials)]
    wrong = (tower(pictures).argmax(1) != kinds).numpy()
    return np.stack([run.moments.trace("post") for run in runs]), wrong


def test_traces_rise_with_noise_and_find_the_errors(trained):
    means, wrong = [], []
    for noise in (0.0, 0.3, 0.6):
        traces, errors = look(trained, np.full(120, noise), 99)
        means.append(traces.mean())
        wrong.append(errors.mean())
    assert wrong[0] == 0
    assert means[1] > 1.5 * means[0]
    assert means[2] > 1.3 * means[1]
    # Among images of the same noise it is not the noise that the trace finds.
    assert 10 <= errors.sum() <= 60
    assert auroc(traces[0], errors) > 0.6


def test_over_all_noises_the_errors_are_found_and_trials_agree(trained):
    traces, errors = look(trained, np.random.default_rng(5).uniform(0, 0.8, 250), 7, trials=2)
    assert auroc(traces[0], errors) > 0.75
    assert reliability(traces).pairwise_spearman_median > 0.6
