"Flags: about one in a hundred usual pictures is called unlike training, with however few validation pictures"
from types import SimpleNamespace

import numpy as np
import pytest

from hpa_fastai.evaluate.flags import MANY_DISTANCES, Flagger, distance_limit


def measured(n, rng, size=1, tail=None):
    "Embeddings and figures of pictures in groups of `size`, half of whose variance lies between groups"
    def numbers(k):
        between = rng.normal(size=(-(-n//size), k)).repeat(size, 0)[:n]
        return (between+rng.normal(size=(n, k)))*.5**.5 if size > 1 else rng.normal(size=(n, k))
    x, y = numbers(24)/np.arange(1, 25)**.5, numbers(26)
    if tail: x, y = (z/np.sqrt(rng.chisquare(tail, (n, 1))/tail) for z in (x, y))
    return SimpleNamespace(embeddings=x, figures=y, saturation=np.zeros(n))


def flagged(n, size=1, tail=None, models=25):
    "Share of new pictures of the same kind that are flagged, on average over models"
    rng, rates = np.random.default_rng(0), []
    for _ in range(models):
        train, valid, new = measured(4*n, rng, size, tail), measured(n, rng, size, tail), measured(2000, rng, 1, tail)
        flagger = Flagger.fit(train, valid, np.arange(n)//size)
        rates.append((flagger.unlikeness(None, new.embeddings, new.figures) > 1).mean())
    return np.mean(rates)


@pytest.mark.parametrize('size', [1, 6])
@pytest.mark.parametrize('n', [30, 60, 120, 300])
def test_one_in_a_hundred_usual_pictures_is_flagged(n, size):
    "With thirty validation pictures it was one in fourteen"
    assert .002 < flagged(n, size) < .022


@pytest.mark.parametrize('n', [30, 120])
def test_heavy_tails_are_flagged_little_more_often(n): assert .004 < flagged(n, tail=5) < .03


def test_odd_pictures_are_still_found():
    rng = np.random.default_rng(1)
    for n in (30, 120):
        flagger = Flagger.fit(measured(4*n, rng), measured(n, rng), np.arange(n))
        new = measured(500, rng)
        assert (flagger.unlikeness(None, new.embeddings*2.5, new.figures*2.5) > 1).mean() > .95


def test_limits_of_few_and_of_many():
    d = np.random.default_rng(0).lognormal(size=MANY_DISTANCES)
    assert distance_limit(d) == np.quantile(d, .99, method='higher')
    for n in (1, 2, 3, 5, 6, 20, MANY_DISTANCES-1):
        assert np.isfinite(distance_limit(d[:n])) and distance_limit(d[:n]) >= np.median(d[:n])
        assert distance_limit(2*d[:n]) == pytest.approx(2*distance_limit(d[:n]))
    alike = np.repeat(d[:10], 6)
    assert distance_limit(alike, np.arange(60)//6) > distance_limit(alike) > 0
    assert distance_limit(np.zeros(30)) > 0
